"""Draw the figures of how_it_works.md and performance.md: `python docs/make_figures.py` writes them beside the pages.

Each has a ground of its own, light or dark as its reader's system is, so that it can be read on any page.
"""

import re
from pathlib import Path

DOCS = Path(__file__).parent
STYLE = """
svg { --ground: #ffffff; --ink: #1f2328; --faint: #8c959f; --box: #eef1f4; --one: #0072b2; --two: #c24e00; --three: #00805c; }
@media (prefers-color-scheme: dark) {
  svg { --ground: #16191d; --ink: #e6edf3; --faint: #7d8590; --box: #262c33; --one: #62b8ee; --two: #f0954a; --three: #35c79a; }
}
.ground { fill: var(--ground); }
text { fill: var(--ink); font: 14px "DejaVu Sans", Verdana, sans-serif; text-anchor: middle; dominant-baseline: central; }
.left { text-anchor: start; }
.small { font-size: 12px; }
.head { font-weight: bold; text-anchor: start; }
.box { fill: var(--box); stroke: var(--faint); }
.line { stroke: var(--faint); fill: none; }
.one { stroke: var(--one); fill: none; stroke-width: 1.8; } text.one, .tip.one, .fill.one { fill: var(--one); stroke: none; }
.two { stroke: var(--two); fill: none; stroke-width: 1.8; } text.two, .tip.two, .fill.two { fill: var(--two); stroke: none; }
.three { stroke: var(--three); fill: none; stroke-width: 1.8; } text.three, .tip.three, .fill.three { fill: var(--three); stroke: none; }
.fill { fill-opacity: 0.3; }
"""


class Drawing:
    """An SVG picture, piece by piece; colours are classes of STYLE."""

    def __init__(self, width, height, title):
        self.pieces = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{width}" height="{height}" rx="8"/>',
        ]

    def text(self, x, y, words, kind=""):
        """`_` sets the character or the {group} behind it lower."""
        head, *rest = words.split("_")
        spans = [head]
        for part in rest:
            low, back = part[1:].split("}", 1) if part[0] == "{" else (part[0], part[1:])
            spans.append(f'<tspan dy="4" font-size="75%">{low}</tspan><tspan dy="-4">{back or "&#8203;"}</tspan>')
        self.pieces.append(f'<text class="{kind}" x="{x}" y="{y}">{"".join(spans)}</text>')

    def box(self, x, y, width, height, words="", kind="box"):
        """With its middle at x, y."""
        self.pieces.append(
            f'<rect class="{kind}" x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}" rx="3"/>'
        )
        if words:
            self.text(x, y, words, "small")

    def node(self, x, y, sign):
        self.pieces.append(f'<circle class="box" cx="{x}" cy="{y}" r="12"/>')
        self.text(x, y, sign)

    def arrow(self, points, kind):
        """Along the points, with a tip at the last."""
        (x0, y0), (x1, y1) = points[-2:]
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        path = " ".join(f"{x},{y}" for x, y in [*points[:-1], (x1 - 6 * dx, y1 - 6 * dy)])
        tip = " ".join(
            f"{x},{y}" for x, y in ((x1, y1), (x1 - 9 * dx - 4 * dy, y1 - 9 * dy - 4 * dx), (x1 - 9 * dx + 4 * dy, y1 - 9 * dy + 4 * dx))
        )
        self.pieces.append(f'<polyline class="{kind}" points="{path}"/><polygon class="tip {kind}" points="{tip}"/>')

    def mark(self, x, y, kind):
        """A point, of a shape for each colour."""
        shape = {
            "one": f'<circle class="tip one" cx="{x}" cy="{y}" r="4"/>',
            "two": f'<rect class="tip two" x="{x - 4}" y="{y - 4}" width="8" height="8"/>',
            "three": f'<polygon class="tip three" points="{x},{y - 5} {x + 5},{y + 4} {x - 5},{y + 4}"/>',
        }
        self.pieces.append(shape[kind])

    def svg(self):
        return "\n".join([*self.pieces, "</svg>", ""])


def step():
    """One step of an LSTM, and the same way back."""
    d = Drawing(920, 330, "One step of an LSTM: forward, and the gradients on their way back")
    for x0, heading, kind, back in ((0, "forward", "one", False), (460, "back", "two", True)):

        def way(*points, x0=x0, kind=kind, back=back):
            points = [(x0 + x, y) for x, y in points]
            d.arrow(points[::-1] if back else points, kind)

        d.text(x0 + 16, 20, heading, f"head {kind}")
        way((62, 70), (108, 70))  # c from the left, through both nodes, to the right
        way((132, 70), (218, 70))
        way((242, 70), (400, 70))
        way((120, 182), (120, 82))  # f
        way((196, 182), (196, 136), (218, 136))  # i, g
        way((264, 182), (264, 136), (242, 136))
        way((230, 124), (230, 82))
        way((330, 70), (330, 87))  # tanh(c), o
        way((330, 111), (330, 128))
        way((330, 182), (330, 152))
        way((342, 140), (400, 140))
        for x in (120, 196, 264, 330):
            way((x, 250), (x, 206))
        way((62, 266), (88, 266))
        d.node(x0 + 120, 70, "&#215;")
        d.node(x0 + 230, 70, "+")
        d.node(x0 + 230, 136, "&#215;")
        d.box(x0 + 330, 99, 44, 24, "tanh")
        d.node(x0 + 330, 140, "&#215;")
        for x, gate, of in ((120, "f", "&#963;"), (196, "i", "&#963;"), (264, "g", "tanh"), (330, "o", "&#963;")):
            d.box(x0 + x, 194, 56, 24, f"{gate} = {of}" if not back else f"da_{gate}")
        d.box(x0 + 225, 266, 274, 32, "a = x_t W_{ih}ᵀ + h_{t&#8722;1} W_{hh}ᵀ + b" if not back else "da = [da_i, da_f, da_g, da_o]")
        if back:
            d.text(x0 + 36, 70, "dc ⊙ f")
            d.text(x0 + 424, 70, "dc")
            d.text(x0 + 424, 140, "dh")
            d.text(x0 + 370, 56, "carried", "small two")
            d.text(x0 + 376, 122, "with dout_t", "small two")
            d.text(x0 + 34, 266, "da W_{hh}")
            d.text(x0 + 220, 306, "da W_{ih} to dx;  daᵀ x, daᵀ h_{t&#8722;1} to the weights", "small two")
        else:
            d.text(x0 + 36, 70, "c_{t&#8722;1}")
            d.text(x0 + 424, 70, "c_t")
            d.text(x0 + 424, 140, "h_t")
            d.text(x0 + 34, 266, "h_{t&#8722;1}, x_t")
            d.text(x0 + 220, 306, "kept: h, c and the four activated gates", "small one")
    d.pieces.append('<line class="line" x1="460" y1="20" x2="460" y2="310"/>')
    return d.svg()


def blocks():
    """What happens when: blocks of time, forward and back."""
    d = Drawing(920, 240, "Blocks of time: the input's product and then the steps; on the way back the steps and then the sums")
    d.text(16, 22, "forward", "head one")
    for k in range(3):
        x = 20 + 300 * k
        d.box(x + 50, 68, 92, 40, "x W_{ih}ᵀ + b", "fill one")
        for t in range(4):
            left = x + 108 + 44 * t
            d.box(left + 17, 68, 34, 40, f"h_{{{4 * k + t + 1}}}")
            d.arrow([(left - 11, 68), (left, 68)], "one")
        if k < 2:
            d.arrow([(x + 274, 68), (x + 274 + 28, 68)], "one")
    d.text(460, 106, "one block of a is written by a large product, and found in the cache by the steps that need it", "small")
    d.text(16, 142, "back", "head two")
    for k in range(3):
        x = 20 + 300 * k
        d.box(x + 50, 188, 92, 40, "dx, dW, db", "fill two")
        for t in range(4):
            left = x + 108 + 44 * t
            d.box(left + 17, 188, 34, 40, f"da_{{{4 * k + t + 1}}}")
            if t:
                d.arrow([(left, 188), (left - 10, 188)], "two")
        d.arrow([(x + 108, 188), (x + 97, 188)], "two")
        if k < 2:
            d.arrow([(x + 302, 188), (x + 274, 188)], "two")
    d.text(460, 226, "da exists for one block: its sums are taken before the block before it is entered", "small")
    return d.svg()


def panels():
    """How a matrix is packed, and what a tile does with it."""
    d = Drawing(920, 320, "W_hh in panels, and a tile of C: rows of A by vectors of W")
    d.text(16, 22, "W_{hh}, row by row", "head")
    colours = ("one", "two", "three")
    for n in range(12):
        for k in range(6):
            d.box(40 + 22 * k, 56 + 18 * n, 20, 16, "", f"fill {colours[n // 4]}")
    d.text(95, 284, "k", "small")
    d.text(16, 160, "n", "small")
    d.arrow([(184, 160), (216, 160)], "line")
    d.text(226, 22, "packed: panels of its transpose", "head")
    for p in range(3):
        for k in range(6):
            for lane in range(4):
                d.box(246 + 110 * p + 22 * lane, 74 + 22 * k, 20, 20, "", f"fill {colours[p]}")
        d.text(279 + 110 * p, 48, f"panel {p}", "small")
    for p in range(3):
        d.arrow([(290 + 110 * p + 36, 62), (290 + 110 * p + 36, 196)], "line")
    d.text(390, 226, "the arrows are the order in memory: each step of k loads one vector", "small")
    d.text(390, 244, "of every panel, and the next k is right behind it", "small")
    d.text(600, 22, "a tile of 4 rows by 3 vectors", "head")
    for j in range(3):
        d.box(705 + 72 * j, 62, 66, 22, f"w_{j}", f"fill {colours[j]}")
    for i in range(4):
        d.box(628, 104 + 36 * i, 40, 24, f"A_{{{i},k}}")
        d.arrow([(648, 104 + 36 * i), (668, 104 + 36 * i)], "line")
        for j in range(3):
            d.box(705 + 72 * j, 104 + 36 * i, 66, 28, f"acc_{{{i},{j}}}")
    d.text(777, 250, "for each k: 3 loads and 4 broadcasts", "small")
    d.text(777, 268, "feed 12 multiply-adds,", "small")
    d.text(777, 286, "and the 12 sums never leave the registers", "small")
    return d.svg()


def sharing():
    """Rows for all time, or units step by step."""
    d = Drawing(920, 230, "Threads share rows for all time, or units step by step")
    d.text(16, 22, "many rows: shared for all time", "head")
    d.text(476, 22, "few rows: the units are shared, step by step", "head")
    for thread, kind in enumerate(("one", "two")):
        y = 70 + 60 * thread
        d.text(62, y, f"thread {thread}", "small")
        d.arrow([(104, y), (430, y)], kind)
        for t in range(6):
            d.box(130 + 50 * t, y, 34, 40, "", "box")
            d.box(130 + 50 * t, y, 34, 40, f"t={t + 1}", f"fill {kind}")
        d.text(522, y, f"thread {thread}", "small")
        for t in range(6):
            d.box(590 + 52 * t, y, 34, 40, "", "box")
            d.box(590 + 52 * t, y, 34, 40, f"t={t + 1}", f"fill {kind}")
    for t in range(6):
        d.pieces.append(f'<line class="three" x1="{616 + 52 * t}" y1="44" x2="{616 + 52 * t}" y2="156"/>')
    d.text(256, 186, "W_{hh} is read by every thread; nobody waits", "small")
    d.text(720, 186, "each thread's part of W_{hh} stays in its own cache; six meetings", "small three")
    return d.svg()


def share():
    """The share of the peak at each point of RESULTS.md, forward + backward."""
    row = r"^\| (\w+), (float\d+), forward \+ backward \| (\d+) \| (\d+) \|.*\| (\d+)% \|$"
    points = re.findall(row, (DOCS.parent / "benchmarks" / "RESULTS.md").read_text(), re.MULTILINE)
    kinds = {"tanh": "one", "gru": "two", "lstm": "three"}
    d = Drawing(920, 330, "Share of the machine's best matrix product, by batch and units, for tanh, GRU and LSTM, in float64 and float32")
    for x0, dtype in ((60, "float64"), (510, "float32")):
        d.text(x0, 22, f"{dtype}, forward + backward", "head")
        for percent in range(0, 101, 25):
            y = 260 - 2 * percent
            d.pieces.append(f'<line class="line" x1="{x0}" y1="{y}" x2="{x0 + 380}" y2="{y}" stroke-width="0.5"/>')
            d.text(x0 - 22, y, f"{percent}%", "small")
        sizes = list(dict.fromkeys((B, H) for _, of, B, H, _ in points if of == dtype))
        for n, (B, H) in enumerate(sizes):
            x = x0 + 24 + 42 * n
            d.text(x, 276, f"{B}", "small")
            d.text(x, 294, f"{H}", "small")
            for cell, kind in kinds.items():
                (percent,) = (int(p) for c, of, *size, p in points if (c, of, *size) == (cell, dtype, B, H))
                d.mark(x + {"one": -8, "two": 0, "three": 8}[kind], 260 - 2 * percent, kind)
        d.text(x0 - 22, 276, "B", "small")
        d.text(x0 - 22, 294, "H", "small")
    for n, (cell, kind) in enumerate(kinds.items()):
        d.mark(380 + 80 * n, 317, kind)
        d.text(394 + 80 * n, 317, cell.upper() if cell != "tanh" else cell, "small left")
    return d.svg()


FIGURES = {"lstm_step.svg": step, "blocks.svg": blocks, "panels.svg": panels, "sharing.svg": sharing, "share_of_peak.svg": share}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (DOCS / name).write_text(draw())
