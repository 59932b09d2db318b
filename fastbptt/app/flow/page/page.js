"use strict";

// Okabe and Ito's colours, which colour-blind people tell apart
const BLUE = "#0072B2", BLACK = "#000000", GREY = "#606060", KEPT = ["#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"];
const THEORY = { "largest Lyapunov exponent": { color: BLACK, dash: "dash" }, bound: { color: GREY, dash: "dot" } };
const PAGE = { "X-Page": String(Math.random()) }; // of all that one page asks for, the server computes the newest alone
const at = (id) => document.getElementById(id);

let nets = {}; // by name: the cell, and the nonlinearity of one that has no gates
let shown = null; // the answer that is drawn
let kept = [];
let asking = false;
let changed = false;

function power(log10) {
  return log10 === 0 ? "1" : `10<sup>${String(log10).replace("-", "\u2212")}</sup>`;
}

// The values are decimal logarithms, which have no end; the ticks say what they are logarithms of.
function ticks(low, high) {
  if (high - low < 1.5) {
    const values = [1, 2, 3, 5, 7].flatMap((digit) =>
      Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => [Math.floor(low) + i, digit]));
    const tickvals = values.map(([exponent, digit]) => exponent + Math.log10(digit));
    return { tickvals, ticktext: values.map(([exponent, digit]) => Number((digit * 10 ** exponent).toPrecision(2)).toString()) };
  }
  const rough = (high - low) / 6, unit = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].find((times) => times * unit >= rough) * unit);
  const tickvals = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) tickvals.push(Math.round(value));
  return { tickvals, ticktext: tickvals.map(power) };
}

function curve(answer, line, name) {
  const hovertemplate = "%{x} steps back: %{text}<extra></extra>";
  return { x: answer.decay.map((_, lag) => lag), y: answer.decay, text: answer.left, mode: "lines", name, line, hovertemplate };
}

function draw() {
  const length = shown.decay.length - 1;
  const drawn = kept.map((answer, i) => curve(answer, { color: KEPT[i % KEPT.length], width: 1.5 }, answer.name));
  drawn.push(curve(shown, { color: BLUE, width: 3 }, "measured"));
  const values = drawn.flatMap((trace) => trace.y).filter((value) => value !== null);
  const span = Math.max(...values, 0) - Math.min(...values, 0), margin = Math.max(0.05 * span, 0.15);
  const range = [Math.min(...values, 0) - margin, Math.max(...values, 0) + margin];
  for (const rate of shown.rates) {
    if (rate.name === "bound" && rate.log10 > 0) continue;
    const line = { width: 1.5, ...THEORY[rate.name] };
    drawn.push({ x: [0, length], y: [0, rate.log10 * length], mode: "lines", name: rate.name, line, hoverinfo: "skip" });
  }
  const axis = { gridcolor: "#E6E6E6", zeroline: false, linecolor: "#1a1a1a", ticks: "outside" };
  const layout = {
    margin: { l: 70, r: 15, t: 10, b: 50 },
    font: { family: "system-ui, sans-serif", size: 14, color: "#1a1a1a" },
    xaxis: { ...axis, title: { text: "lag (steps back from the loss)" }, range: [0, Math.max(length, ...kept.map((a) => a.decay.length - 1))] },
    yaxis: { ...axis, title: { text: "share of the gradient" }, range, ...ticks(...range) },
    legend: { orientation: "h", x: 0, y: 1.03, yanchor: "bottom" },
    uirevision: "same",
  };
  Plotly.react("chart", drawn, layout, { displayModeBar: false, responsive: true });
}

function tell() {
  at("headline").textContent = shown.headline;
  at("headline").className = "";
  at("numbers").replaceChildren(...Object.entries(shown.numbers).map(([name, value]) => {
    const pair = document.createElement("div");
    for (const [tag, text] of [["dt", name], ["dd", value]]) pair.appendChild(document.createElement(tag)).textContent = text;
    return pair;
  }));
}

function complain(text) {
  at("headline").textContent = text;
  at("headline").className = "error";
}

function controls() {
  return [...document.querySelectorAll("#controls select, #controls input")];
}

function label() {
  for (const input of document.querySelectorAll("#controls input")) at(`${input.id}-value`).textContent = input.value;
  at("gate_bias").disabled = nets[at("net").value][1] !== null;
}

// One request at a time; what changed in the meantime is asked for after it, once.
async function ask() {
  label();
  changed = true;
  if (asking) return;
  asking = true;
  while (changed) {
    changed = false;
    try {
      const response = await fetch(`flow?${new URLSearchParams(controls().map((control) => [control.id, control.value]))}`, { headers: PAGE });
      if (!response.ok) {
        complain((await response.text()).trim());
        continue;
      }
      shown = await response.json();
      draw();
      tell();
    } catch {
      complain("no answer: fastbptt flow --serve has ended");
    }
  }
  asking = false;
}

async function begin() {
  const { values, ranges, inits, ...start } = await (await fetch("start")).json();
  nets = start.nets;
  for (const [id, choices] of [["net", Object.keys(nets)], ["init", inits]]) {
    at(id).replaceChildren(...choices.map((choice) => new Option(choice)));
  }
  for (const [id, [low, high]] of Object.entries(ranges)) Object.assign(at(id), { min: low, max: high });
  for (const control of controls()) control.value = values[control.id];
  at("controls").addEventListener("input", ask);
  at("keep").addEventListener("click", () => {
    if (shown === null) return;
    kept = [...kept, shown].slice(-KEPT.length);
    at("clear").disabled = false;
    draw();
  });
  at("clear").addEventListener("click", () => {
    kept = [];
    at("clear").disabled = true;
    draw();
  });
  await ask();
}

begin();
