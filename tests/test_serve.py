"""The page of `fastbptt flow --serve`: what it answers, whom it refuses, and that a browser's slider moves the curve."""

import contextlib
import http.client
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from problems import GATED
from processes import current_level, environment

from fastbptt import cells
from fastbptt.app import cli
from fastbptt.app.flow.described import DescribedNet
from fastbptt.gradients import flow
from fastbptt.gradients.linearised import linearise
from fastbptt.init import MATRICES

pytest.importorskip("plotly")
pytest.importorskip("werkzeug")

from werkzeug.test import Client

from fastbptt.app.flow import serve
from fastbptt.app.flow.serve import RANGES, App, answer
from fastbptt.app.flow.turns import MOST_WAITING, OvertakenError, Turns

LINEAR = {"net": "identity", "init": "orthogonal"}
SECONDS = 120  # until something is given up


@pytest.fixture(scope="module")
def client():
    return Client(App(DescribedNet(hidden=16, steps=30)))


def get(client, path="/flow", query=None, **headers):
    environ = {"REMOTE_ADDR": headers.pop("address", "127.0.0.1")}
    headers = {"Host": "127.0.0.1:8765"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get(path, query_string=query, headers=headers, environ_overrides=environ)


# --- What it answers --------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_flow(client):
    result = get(client, query=LINEAR | {"radius": "0.5", "steps": "40"}).json
    np.testing.assert_allclose(result["decay"], np.arange(41) * math.log10(0.5), rtol=1e-12)
    assert result["headline"] == "vanishing: half-life 1 steps; after 40 steps 9.1e-13 of the gradient is left"
    assert {rate["name"]: rate["log10"] for rate in result["rates"]} == pytest.approx(
        {"largest Lyapunov exponent": math.log10(0.5), "bound": math.log10(0.5)}, rel=1e-12
    )
    assert result["numbers"]["half-life"] == "1 steps" and result["numbers"]["left at the end"] == result["left"][-1] == "9.1e-13"
    assert result["numbers"]["weights alone"] == "gradients must vanish: sigma_max 0.5 < 1/gamma 1"


@pytest.mark.parametrize("net", [*cells.NONLINEARITIES, *GATED])
def test_every_net_at_every_end_of_its_sliders(client, net):
    for i in range(2):
        for init in MATRICES:
            query = {"net": net, "init": init} | {name: str(ends[i]) for name, ends in RANGES.items()}
            result = get(client, query=query)
            assert result.status_code == 200, result.text
            assert len(result.json["decay"]) == RANGES["steps"][i] + 1


def test_what_is_not_finite_is_null():
    result = answer(DescribedNet(nonlinearity="relu", radius=1e6, hidden=12, steps=80, loss="last"))
    assert result["headline"].startswith("nonfinite: h[") and result["numbers"]["largest Lyapunov exponent"] == "-"
    nothing = answer(DescribedNet(radius=0.0, hidden=3, steps=5, loss="last"))
    assert nothing["decay"] == [0.0] + 5 * [None] and nothing["left"] == ["1"] + 5 * ["0"]


def test_a_slider_moves_without_what_does_not_depend_on_it(monkeypatch):
    """Eigenvalues are computed once for all radii, and the steps are linearised once for all panels."""
    looks = []
    monkeypatch.setattr(flow, "linearise", lambda tape: looks.append(tape) or linearise(tape))
    net = DescribedNet(cell="lstm", hidden=6, steps=9, loss="last")
    answer(net)
    assert len(looks) == 1
    expected = {radius: answer(replace(net, radius=radius)) for radius in (0.1, 1.7)}
    monkeypatch.setattr(np.linalg, "eigvals", lambda w: 1 / 0)
    assert {radius: answer(replace(net, radius=radius)) for radius in (0.1, 1.7)} == expected
    with pytest.raises(ZeroDivisionError):
        answer(replace(net, seed=1))


def test_it_starts_where_the_command_says():
    start = get(Client(App(DescribedNet(cell="lstm", radius=1.5, gate_bias=2.0, hidden=8))), "/start").json
    assert start["values"] == {"net": "lstm", "init": "gaussian", "radius": 1.5, "gain": 0.3, "gate_bias": 2.0, "steps": 100}


def test_everything_comes_from_here(client):
    page = get(client, "/")
    assert page.status_code == 200 and page.mimetype == "text/html"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
    for path, start in [("/page.js", b'"use strict"'), ("/page.css", b"body"), ("/plotly.js", b"/**\n* plotly.js")]:
        assert path[1:] in page.text
        assert get(client, path).data.startswith(start)
    addresses = re.findall(r"https?://[^\"' ]+", page.text + get(client, "/page.js").text + get(client, "/page.css").text)
    assert not addresses


# --- Whom and what it refuses -----------------------------------------------------------------------------------------

BAD_QUERIES = {
    "radius=nan": "radius: expected a number at least 0 and at most 2, got nan",
    "radius=2.1": "radius: expected a number at least 0 and at most 2, got 2.1",
    "radius=-1": "radius: expected a number at least 0 and at most 2, got -1.0",
    "radius=": "radius: expected a number, got ''",
    "radius=<script>": "radius: expected a number, got '<script>'",
    "radius=1&radius=2": "radius: expected one value, got 2",
    "steps=0": "steps: expected a number at least 1 and at most 400, got 0",
    "steps=401": "steps: expected a number at least 1 and at most 400, got 401",
    "steps=1e2": "steps: expected an integer, got '1e2'",
    "steps=" + "9" * 5000: f"steps: expected an integer, got '{'9' * 40}'",
    "gain=inf": "gain: expected a number at least 0 and at most 3, got inf",
    "net=gru&gate_bias=99": "gate_bias: expected a number at least -3 and at most 6, got 99.0",
    "net=cube": "net: expected one of 'tanh', 'relu', 'sigmoid', 'identity', 'gru', 'lstm', got 'cube'",
    "init=random": f"init: expected one of {', '.join(map(repr, MATRICES))}, got 'random'",
    "hidden=100000": "hidden: expected one of net, init, radius, gain, gate_bias, steps",
}


@pytest.mark.parametrize("query", BAD_QUERIES, ids=lambda query: query[:20])
def test_bad_queries(client, query):
    result = get(client, query=query)
    assert (result.status_code, result.mimetype, result.text) == (400, "text/plain", BAD_QUERIES[query] + "\n")


def test_other_addresses(client):
    assert get(client, "/etc/passwd").status_code == 404
    assert get(client, "/../serve.py").status_code == 404
    assert client.post("/flow", headers={"Host": "127.0.0.1"}, environ_overrides={"REMOTE_ADDR": "127.0.0.1"}).status_code == 405


@pytest.mark.parametrize("path", ["/", "/flow", "/start", "/plotly.js"])
def test_strangers(client, path):
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "192.168.0.1:8765", "[::1]:8765", ""):
        assert get(client, path, Host=host).status_code == 400
    for host in ("127.0.0.1", "localhost:8765"):
        assert get(client, path, Host=host).status_code == 200
    assert get(client, path, address="192.168.0.1").status_code == 403
    assert get(client, path, Sec_Fetch_Site="same-origin").status_code == 200
    assert get(client, path, Sec_Fetch_Site="cross-site").status_code == (200 if path == "/" else 403)  # a link may lead to the page


def test_trouble_inside_is_told(client, monkeypatch):
    monkeypatch.setattr("fastbptt.app.flow.serve.answer", lambda net: 1 / 0)
    result = get(client)
    assert (result.status_code, result.text) == (500, "ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--hidden 1000", "hidden: expected at most 256 units for a page that follows its sliders, got 1000"),
        ("--radius 3", "radius: expected a number at least 0 and at most 2, got 3.0"),
        ("--steps 1000", "steps: expected a number at least 1 and at most 400, got 1000"),
        ("--cell lstm --gate-bias 9", "gate-bias: expected a number at least -3 and at most 6, got 9.0"),
        ("--port 99999", "port: expected a number at least 0 and at most 65535, got 99999"),
        ("--port -1", "port: expected a number at least 0 and at most 65535, got -1"),
    ],
)
def test_bad_options(capsys, options, complaint):
    assert cli.main(["flow", "--serve", *options.split()]) == 2
    assert capsys.readouterr() == ("", f"fastbptt: error: {complaint}\n")


# --- The server -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(*options):
    """The command in a process of its own; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastbptt", "flow", "--serve", "--port", "0", "--hidden", "24", *options],
        env=environment(**current_level()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = threading.Timer(SECONDS, process.kill)
    limit.start()
    try:
        address = process.stdout.readline().split()[-1]
        process.stdout.readline()
        yield process, address
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_it_serves_until_ctrl_c():
    with serving() as (process, address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{address}flow?steps=7", timeout=SECONDS) as response:
            assert response.status == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS) == ("", "") and process.returncode == 0


def test_a_port_that_is_taken(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["flow", "--serve", "--port", str(port)]) == 2
    complaint = f"port {port}: taken by another program; --port 0 takes any that is free"
    assert capsys.readouterr() == ("", f"fastbptt: error: {complaint}\n")


# --- Many requests ----------------------------------------------------------------------------------------------------


def wait_until(condition):
    for _ in range(SECONDS * 1000):
        if condition():
            return
        time.sleep(0.001)
    raise TimeoutError


class Visitors:
    """Clients of a server in this process whose first answer takes as long as the test wants."""

    def __init__(self, monkeypatch, listener):
        self.computed, self.release = [], threading.Event()
        monkeypatch.setattr(serve, "answer", self.answer)
        self.app = App(DescribedNet(hidden=3))
        self.server = serve.Server(listener, self.app)
        self.address = listener.getsockname()
        self.connections = []

    def answer(self, net):
        self.computed.append(net.steps)
        assert self.release.wait(SECONDS)
        return {"steps": net.steps}

    def connect(self):
        connection = socket.create_connection(self.address, timeout=SECONDS)
        self.connections.append(connection)
        return connection

    def ask(self, steps, page=None):
        connection = self.connect()
        head = f"GET /flow?steps={steps} HTTP/1.1\r\nHost: 127.0.0.1\r\n" + (f"X-Page: {page}\r\n" if page is not None else "")
        connection.sendall(f"{head}\r\n".encode())
        return connection

    def waiting(self):
        return len(self.app.turns._waiting)


@pytest.fixture
def visitors(monkeypatch):
    with serve.listen(0) as listener:
        visitors = Visitors(monkeypatch, listener)
        thread = threading.Thread(target=visitors.server.serve_forever, args=(0.01,))
        thread.start()
        yield visitors
        visitors.release.set()
        for connection in visitors.connections:
            connection.close()
        visitors.server.shutdown()
        thread.join()


def heard(connection):
    """The status and the text of what a connection is answered."""
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.read().decode()


OVERTAKEN = (503, "newer requests have come\n")


def test_of_two_hundred_requests_the_first_and_the_newest_are_computed(visitors):
    first = visitors.ask(1)
    wait_until(lambda: visitors.computed == [1])
    old = [visitors.ask(steps) for steps in range(2, 200)]
    newest = visitors.ask(200)
    assert [heard(connection) for connection in old] == [OVERTAKEN] * len(old)  # while the first is still computed
    visitors.release.set()
    assert heard(newest) == (200, '{"steps": 200}')
    assert heard(first)[0] == 200
    assert visitors.computed == [1, 200]


def test_pages_do_not_overtake_each_other_and_the_newest_is_first(visitors):
    busy = visitors.ask(1, page="busy")
    wait_until(lambda: visitors.computed == [1])
    pages = []
    for page in range(MOST_WAITING):
        pages.append(visitors.ask(page + 2, page=page))
        wait_until(lambda n=page + 1: visitors.waiting() == n)
    one_too_many = visitors.ask(100, page="one too many")
    assert heard(pages.pop(0)) == OVERTAKEN
    visitors.release.set()
    for connection in (busy, one_too_many, *pages):
        assert heard(connection)[0] == 200
    assert visitors.computed == [1, 100, *range(MOST_WAITING + 1, 2, -1)]


def test_what_nobody_waits_for_is_not_computed(visitors):
    first = visitors.ask(1, page="first")
    wait_until(lambda: visitors.computed == [1])
    gone = visitors.ask(2, page="gone")
    wait_until(lambda: visitors.waiting() == 1)
    gone.close()
    stays = visitors.ask(3, page="stays")
    wait_until(lambda: visitors.waiting() == 2)
    visitors.release.set()
    assert heard(first)[0] == heard(stays)[0] == 200
    wait_until(lambda: not visitors.waiting())
    assert heard(visitors.ask(4))[0] == 200
    assert visitors.computed == [1, 3, 4]


def test_a_question_that_comes_late_does_not_overtake():
    """Threads may bring questions out of order: tickets tell which is older."""
    turns = Turns()
    old, new, another = (next(turns.tickets) for _ in range(3))
    with turns.turn("page", new):
        pass
    with pytest.raises(OvertakenError), turns.turn("page", old):
        pass
    with turns.turn("another page", old), pytest.raises(OvertakenError), turns.turn("another page", old - 1):
        pass
    with turns.turn("page", another), contextlib.suppress(ZeroDivisionError):
        raise ZeroDivisionError
    with turns.turn("page"):
        pass


def test_silent_connections_do_not_keep_others_out(visitors, monkeypatch):
    monkeypatch.setattr(serve._Handler, "timeout", None)
    visitors.release.set()
    silent = [visitors.connect() for _ in range(3 * serve.MOST_CONNECTIONS)]
    assert heard(visitors.ask(5)) == (200, '{"steps": 5}')
    for connection in silent[: 2 * serve.MOST_CONNECTIONS]:
        assert connection.recv(1) == b""
    assert heard(visitors.ask(6)) == (200, '{"steps": 6}')
    assert visitors.computed == [5, 6]


def test_addresses_that_are_none(visitors, capsys):
    visitors.release.set()
    for address in ("http://[bad/flow", "http://[::1/start"):
        connection = visitors.connect()
        connection.sendall(f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert heard(connection)[0] == 400
    assert heard(visitors.ask(5)) == (200, '{"steps": 5}')
    assert capsys.readouterr() == ("", "")


def test_a_connection_that_fails_is_not_told_on_the_terminal(visitors, monkeypatch, capsys):
    visitors.release.set()
    with monkeypatch.context() as patch:
        patch.setattr(serve._Handler, "handle", lambda _: 1 / 0)
        assert visitors.ask(5).recv(1) == b""
    assert heard(visitors.ask(6)) == (200, '{"steps": 6}')
    assert capsys.readouterr() == ("", "")


def test_answers_that_are_not_taken_do_not_keep_others_out(visitors, monkeypatch):
    """Others are served once those time out, which is soon here."""
    monkeypatch.setattr(serve, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(serve._Handler, "timeout", None)
    monkeypatch.setattr(serve, "_plotly", lambda: bytes(1 << 26))  # more than the system keeps for a client
    visitors.release.set()
    for _ in range(serve.MOST_CONNECTIONS):
        visitors.connect().sendall(b"GET /plotly.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    visitors.connect()
    wait_until(lambda: visitors.server._free._value >= serve.MOST_CONNECTIONS - 1)


# --- In a browser -----------------------------------------------------------------------------------------------------

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,900",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, of the distribution's packages: nothing is downloaded."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(f"no {'chromium' if chromium is None else 'chromedriver'} here; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """The page, as someone sees it who sits in front of it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.curves())

    def wait(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, SECONDS, 0.05).until(lambda _: condition())

    def curves(self):
        """The lines that are drawn, as paths on the screen."""
        script = "return [...document.querySelectorAll('#chart .scatterlayer path.js-line')].map(path => path.getAttribute('d'))"
        return self.browser.execute_script(script)

    def text(self, name):
        return self.browser.find_element("id", name).text

    def seen(self):
        """The headline, the numbers, and what is drawn: a straight line looks the same on any axis, but its values do not."""
        values = self.browser.execute_script("return document.getElementById('chart').data.map(curve => curve.y)")
        return self.text("headline"), self.text("numbers"), (values, self.curves())

    def press(self, name, *keys):
        """Press keys on a slider or list, and wait until the headline, the numbers and the curve have changed."""
        before = self.seen()
        self.browser.find_element("id", name).send_keys(*keys)
        self.wait(lambda: all(now != then for now, then in zip(self.seen(), before)))


def test_sliders_redraw_the_curve(browser):
    from selenium.webdriver.common.keys import Keys

    with serving("--nonlinearity", "identity", "--init", "orthogonal", "--radius", "0.5", "--steps", "40") as (process, address):
        page = Page(browser, address)
        assert page.text("headline") == "vanishing: half-life 1 steps; after 40 steps 9.1e-13 of the gradient is left"
        assert page.text("radius-value") == "0.5" and "9.1e-13" in page.text("numbers")
        ticks = browser.execute_script("return [...document.querySelectorAll('#chart .ytick')].map(tick => tick.textContent)")
        assert "1" in ticks and any("10\N{ZERO WIDTH SPACE}\N{MINUS SIGN}" in tick for tick in ticks)
        drawn = browser.execute_script("return document.getElementById('chart').data[0].y")
        np.testing.assert_allclose(drawn, np.arange(41) * math.log10(0.5), rtol=1e-12)

        page.press("radius", Keys.HOME)
        assert page.text("headline") == "vanishing: half-life 0 steps; after 40 steps 0 of the gradient is left"
        page.press("radius", Keys.END)
        assert page.text("headline") == "exploding: doubles every 1 steps; after 40 steps the gradient is 1.1e+12 times as large"
        page.press("steps", Keys.ARROW_RIGHT)
        assert "after 41 steps the gradient is 2.2e+12 times" in page.text("headline")

        bias = browser.find_element("id", "gate_bias")
        assert not bias.is_enabled()
        page.press("net", "lstm")
        assert bias.is_enabled()
        for slider, key in (("gate_bias", Keys.HOME), ("gate_bias", Keys.END), ("gain", Keys.END)):
            before = page.curves()
            page.press(slider, key)
            assert page.curves() != before

        kept = len(page.curves())
        browser.find_element("id", "keep").click()
        page.wait(lambda: len(page.curves()) == kept + 1)
        browser.find_element("id", "clear").click()
        page.wait(lambda: len(page.curves()) == kept)

        width = browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert width, "the page is wider than its window"
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert loaded and all(name.startswith((address, "data:")) for name in loaded)
        assert browser.get_log("browser") == []

        process.kill()
        process.wait()
        browser.find_element("id", "radius").send_keys(Keys.ARROW_LEFT)
        page.wait(lambda: page.text("headline") == "no answer: fastbptt flow --serve has ended")
