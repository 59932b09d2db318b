"""The page of ``fastbptt flow --serve``: sliders that redraw the decay of the gradient as they move.

Werkzeug serves it, Plotly draws it, out of the installed packages: no network is needed. It is for the one who started it: bound to
127.0.0.1, deaf to other names of this machine (DNS rebinding) and to requests that other sites make a browser send. However many requests
come, those that nobody waits for any more are not computed, and neither threads nor what waits for them grow without end.
"""

import errno
import json
import math
import select
import socket
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from importlib.resources import files

import numpy as np
from plotly.offline import get_plotlyjs
from werkzeug import Request, Response
from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, InternalServerError, ServiceUnavailable
from werkzeug.routing import Map, Rule
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from ... import _checks
from ..._notation import format_log10
from ...cells import CELLS, NONLINEARITIES
from ...gradients.portrait import Portrait
from ...init import MATRICES
from ..messages import say
from .described import DescribedNet
from .turns import OvertakenError, Turns

HOST = "127.0.0.1"
BATCH = 16
MOST_HIDDEN = 256  # units: few enough for the curve to follow the slider
MOST_CONNECTIONS = 64  # at a time, each with a thread
ANSWER_SECONDS = 5  # for a client to take an answer: to another program of this machine, it takes a fraction of one
TICKET = "fastbptt.ticket"  # its name in the environment of a request
RANGES = {"radius": (0.0, 2.0), "gain": (0.0, 3.0), "gate_bias": (-3.0, 6.0), "steps": (1, 400)}  # of the sliders
PAGE = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class App:
    """The WSGI application.

    Parameters
    ----------
    net : DescribedNet
        What the page starts with; what has no slider stays as it is.

    Raises
    ------
    ValueError
        If a slider cannot be put where the net is, or the net is too large to follow one.
    """

    def __init__(self, net):
        self.net = replace(net, loss="last", batch=BATCH)
        if net.hidden > MOST_HIDDEN:
            raise ValueError(f"hidden: expected at most {MOST_HIDDEN} units for a page that follows its sliders, got {net.hidden}")
        self.nets = {f: ("rnn", f) for f in NONLINEARITIES} | {name: (name, None) for name, cell in CELLS.items() if cell.gated}
        self.start = {"net": net.nonlinearity or net.cell} | {name: getattr(net, name) for name in ("init", *RANGES)}
        if self.start["gate_bias"] is None:
            self.start["gate_bias"] = 1.0
        for name, (low, high) in RANGES.items():
            _checks.number(name.replace("_", "-"), self.start[name], low, high)
        endpoints = {"/flow": "flow", "/start": "start", "/plotly.js": "plotly"} | dict.fromkeys(PAGE, "file")
        self.routes = Map([Rule(path, endpoint=endpoint, methods=["GET"]) for path, endpoint in endpoints.items()])
        self.turns = Turns()

    def __call__(self, environ, start_response):
        try:
            response = self.respond(Request(environ))
        except HTTPException as error:
            response = Response(f"{error.description}\n", error.code, mimetype="text/plain")
        except Exception as error:
            response = Response(f"{type(error).__name__}: {error}\n", InternalServerError.code, mimetype="text/plain")
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def respond(self, request):
        _refuse_strangers(request)
        endpoint, _ = self.routes.bind_to_environ(request.environ).match(method=request.method)
        if endpoint == "file":
            name, mimetype = PAGE[request.path]
            return Response(_file(name), mimetype=mimetype)
        if endpoint == "plotly":
            return Response(_plotly(), mimetype="text/javascript")
        if endpoint == "start":
            return _json({"values": self.start, "ranges": RANGES, "nets": self.nets, "inits": list(MATRICES)})
        net = self.described(request.args)
        try:
            with self.turns.turn(request.headers.get("X-Page"), request.environ.get(TICKET)):
                if _gone(request.environ.get("werkzeug.socket")):
                    raise ServiceUnavailable("nobody waits for this any more")
                return _json(answer(net))
        except OvertakenError:
            raise ServiceUnavailable("newer requests have come") from None

    def described(self, query):
        """The net that a query asks for. BadRequest, with the reason, if it asks for none."""
        unknown = sorted(set(query) - set(self.start))
        if unknown:
            raise BadRequest(f"{unknown[0]}: expected one of {', '.join(self.start)}")
        for name in query:
            if len(query.getlist(name)) > 1:
                raise BadRequest(f"{name}: expected one value, got {len(query.getlist(name))}")
        values = self.start | {name: _number(name, query[name]) if name in RANGES else query[name] for name in query}
        try:
            for name, (low, high) in RANGES.items():
                _checks.number(name, values[name], low, high)
            cell, nonlinearity = self.nets[_checks.one_of("net", values.pop("net"), tuple(self.nets))]
            if not CELLS[cell].gated:
                del values["gate_bias"]
            return DescribedNet(**asdict(self.net) | {"gate_bias": None} | values | {"cell": cell, "nonlinearity": nonlinearity})
        except (TypeError, ValueError) as error:
            raise BadRequest(str(error)) from None


def answer(net):
    """What the page shows of a net, ready for JSON: numbers that are not finite are null."""
    flow = net.flow()
    portrait = Portrait(flow, exponents=1)
    decay = flow.log10_decay
    exponent = math.nan if portrait.lyapunov is None else portrait.lyapunov.exponents[0]
    return {
        "name": str(net),
        "headline": flow.headline,
        "verdict": flow.verdict,
        "decay": [float(value) if math.isfinite(value) else None for value in decay],
        "left": [format_log10(value) for value in decay],
        "rates": [{"name": rate.name, "log10": rate.log10} for rate in portrait.rates if math.isfinite(rate.log10)],
        "numbers": {
            "half-life": f"{flow.half_life:.3g} steps" if math.isfinite(flow.half_life) else "no decay",
            "left at the end": format_log10(decay[-1]) if not np.isnan(decay[-1]) else "-",
            "a step back": f"\N{MULTIPLICATION SIGN} {format_log10(flow.log10_slope, 3)}" if not math.isnan(flow.log10_slope) else "-",
            "largest Lyapunov exponent": f"{exponent:.3g} nats a step" if not math.isnan(exponent) else "-",
            "saturated": f"{flow.saturated:.0%}",
            "weights alone": "-" if portrait.condition is None else portrait.condition.finding,
        },
    }


def listen(port):
    """A socket of this machine's own. OSError, in words, if the port is taken or closed to us."""
    _checks.number("port", port, 0, 65535)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(1024)  # more than come at once: one that is not accepted cannot be known to be the newest
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port}: taken by another program; --port 0 takes any that is free") from None
        raise OSError(f"port {port}: {error.strerror}") from None
    return listener


def serve(net, port):
    """Serve the page until Ctrl-C.

    Parameters
    ----------
    net : DescribedNet
        What it starts with.
    port : int
        0 takes any that is free.

    Returns
    -------
    int
        The exit status, 0.
    """
    app = App(net)
    with listen(port) as listener:
        server = Server(listener, app)
        say("page", f"http://{HOST}:{server.port}/")
        say("", "Ctrl-C ends it")
        server.serve_forever()
    return 0


class Server(ThreadedWSGIServer):
    """A thread for each connection, but at most `MOST_CONNECTIONS`: one more, and of those that are silent the oldest is hung up."""

    daemon_threads = True

    def __init__(self, listener, app):
        super().__init__(*listener.getsockname(), app, _Handler, fd=listener.fileno())
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        self._silent = {}  # the tickets of connections whose request has not come in; the oldest first

    def process_request(self, connection, address):
        if not self._free.acquire(blocking=False):
            for silent in list(self._silent):
                if self.heard(silent) is not None:
                    _hang_up(silent)
                    break
            self._free.acquire()
        self._silent[connection] = next(self.app.turns.tickets)
        super().process_request(connection, address)

    def heard(self, connection):
        """It is silent no more: its ticket, if it was until now."""
        return self._silent.pop(connection, None)

    def handle_error(self, *_):
        """What is wrong with a connection is the client's to see, and not on the terminal of the one who serves."""

    def shutdown_request(self, connection):
        self.heard(connection)
        super().shutdown_request(connection)
        self._free.release()


class _Handler(WSGIRequestHandler):
    timeout = 30  # seconds for a request to come in

    def run_wsgi(self):
        self.ticket = self.server.heard(self.connection)
        if self.ticket is not None:
            self.connection.settimeout(ANSWER_SECONDS)
            try:
                super().run_wsgi()
            except ValueError:  # an address that is none, for which there is no environment to answer it in
                self.send_error(BadRequest.code)

    def make_environ(self):
        return super().make_environ() | {TICKET: self.ticket}

    def log(self, *_):
        pass

    log_request = log  # which would take the address apart


def _hang_up(connection):
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _gone(connection):
    """Whether the client has closed its end: what there is to read is the end."""
    if connection is None:
        return False
    try:
        return bool(select.select([connection], [], [], 0)[0]) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _refuse_strangers(request):
    if request.remote_addr != HOST:
        raise Forbidden("only for this machine")
    host = request.headers.get("Host", "").partition(":")[0]
    if host not in (HOST, "localhost"):
        raise BadRequest(f"Host: expected {HOST} or localhost")
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and request.path != "/":
        raise Forbidden("only for its own page")


def _number(name, text):
    try:
        return int(text) if name == "steps" else float(text)
    except ValueError:
        raise BadRequest(f"{name}: expected {'an integer' if name == 'steps' else 'a number'}, got {text[:40]!r}") from None


def _json(content):
    return Response(json.dumps(content, allow_nan=False), mimetype="application/json")


@cache
def _file(name):
    return (files("fastbptt.app.flow.page") / name).read_bytes()


@cache
def _plotly():
    return get_plotlyjs().encode()
