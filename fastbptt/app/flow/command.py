"""``fastbptt flow``: what the gradients of a net do on their way back through time, in words, as a picture, or as a page to play with."""

import math
from pathlib import Path

import numpy as np

from ..._checks import DTYPES
from ..._figures import new_figure, picture_format
from ..._files import require_writable
from ..._notation import format_log10
from ...cells import CELLS, NONLINEARITIES
from ...gradients.portrait import Portrait
from ...init import MATRICES
from ...losses import perplexity
from ...pictures import draw_portrait, draw_portraits
from ..messages import PictureError, drawing, fail, printable_name, say, working
from ..options import REFUSALS, add_option, file_name, file_path, given, memory_for, refuse, require
from .described import LOSSES, DescribedNet, compared
from .saved import TextNet, load_net

PICTURE = Path("fastbptt-flow.png")
PORT = 8765
DESCRIBED = ("cell", "nonlinearity", "init", "radius", "hidden", "steps", "batch", "gain", "gate_bias", "loss", "seed", "dtype")
SAVED = ("steps", "batch", "seed")  # of these, what can be chosen of a net that is saved
COMPARED = tuple(name for name in DESCRIBED if name not in ("cell", "nonlinearity"))


def add_flow(commands):
    """The command and its options, for the command line's parser."""
    parser = commands.add_parser(
        "flow",
        help="see gradients vanish and explode",
        description="See what the gradients of a net do on their way back through time: of one that fastbptt train has saved, on its text "
        "or task with its real loss; or of one that is described, with random weights, driven by noise. Prints a report and draws a picture.",
    )
    parser.set_defaults(command=flow)
    parser.add_argument("checkpoint", nargs="?", type=file_path, metavar="CHECKPOINT", help="a net that fastbptt train has saved")
    parser.add_argument("--text", type=file_name, metavar="FILE", help="what the saved net is to read (default: what it was trained on)")
    parser.add_argument("--encoding", metavar="NAME", help="of that text (default: that of the text that the net was trained on)")

    net = parser.add_argument_group("a net that is described")
    add_option(net, "cell", DescribedNet.cell, ", ".join(CELLS), choices=tuple(CELLS), metavar="C")
    add_option(
        net,
        "nonlinearity",
        "the one that the start is made for, tanh unless it says otherwise",
        f"of the rnn: {', '.join(NONLINEARITIES)}",
        choices=NONLINEARITIES,
        metavar="F",
    )
    add_option(
        net, "init", "gaussian, of radius 0.9", f"how it starts, as of fastbptt train: {', '.join(MATRICES)}", choices=MATRICES, metavar="S"
    )
    add_option(
        net, "radius", "the start's own", "the spectral radius of the recurrent weights of each gate, exactly", type=float, metavar="R"
    )
    add_option(net, "hidden", DescribedNet.hidden, "units", type=int, metavar="H")
    how = "standard deviation of what the inputs add to each pre-activation"
    add_option(net, "gain", "the start's own; 0.3 if it leaves the input weights alone", how, type=float, metavar="G")
    keepers = ", ".join(f"{cell.keeper.letter} of the {name}" for name, cell in CELLS.items() if cell.gated)
    add_option(net, "gate-bias", 1, f"bias of the gate that keeps the state: {keepers}", type=float, metavar="B")
    how = f"at which steps there is a loss, with a random gradient: {', '.join(LOSSES)}"
    add_option(net, "loss", DescribedNet.loss, how, choices=LOSSES, metavar="L")
    how = "seed; the same one gives the same net, and a saved one the same sequences of its task"
    add_option(net, "seed", DescribedNet.seed, how, type=int)
    add_option(net, "dtype", DescribedNet.dtype, ", ".join(DTYPES), choices=DTYPES, metavar="D")

    length = parser.add_argument_group("how much of it")
    add_option(length, "steps", f"{DescribedNet.steps}; of a saved net, as in its training", "steps", type=int, metavar="T")
    add_option(length, "batch", DescribedNet.batch, "rows", type=int, metavar="B")

    results = parser.add_argument_group("results")
    what = results.add_mutually_exclusive_group()
    what.add_argument("--compare", action="store_true", help="tanh, ReLU started with the identity, gru and lstm, side by side")
    what.add_argument("--serve", action="store_true", help="open a page with sliders, on this machine only, instead of drawing a picture")
    add_option(results, "port", PORT, "of the page; 0 for any that is free", type=int, metavar="N")
    add_option(results, "out", PICTURE, "the picture: .png, .svg or .pdf; one that is there is replaced", type=file_path, metavar="PATH")
    results.add_argument("--no-picture", action="store_true", help="draw no picture")


def flow(options):
    """The command; returns the exit status. What it raises is trouble with what was asked for, but for a picture that cannot be drawn."""
    try:
        with memory_for(options, "hidden", "steps", "batch"):
            return _flow(options)
    except PictureError as error:
        return fail(error, 1)
    except REFUSALS as error:
        return fail(error, 2)


def _flow(options):
    _refuse_contradictions(options)
    if options.serve:
        return _serve(options)
    picture = None if options.no_picture else _writable(options.out or PICTURE)
    if options.compare:
        _compare(options, picture)
    elif options.checkpoint is not None:
        _look_at_saved(options, picture)
    else:
        net = DescribedNet(**given(options, DESCRIBED))
        with working("the net, forwards and back"):
            found = net.flow()
        _look_at(found, f"{net}", picture)
    return 0


def _look_at_saved(options, picture):
    net = load_net(options.checkpoint)
    if isinstance(net, TextNet):
        refuse(options, ("seed",), "nothing is random about a net that reads a text")
        with working("the net on its text"):
            tokens, source, unknown = net.tokens(options.text, options.encoding)
            found, loss = net.flow(tokens, **given(options, ("steps", "batch")))
        left_out = f"; {unknown:,} characters that the net does not know are left out" if unknown else ""
        say("text", f"{printable_name(source)}: loss {loss:.4f} nats per {net.unit}, perplexity {perplexity(loss):.2f}{left_out}")
    else:
        refuse(options, ("encoding", "text"), f"{options.checkpoint} was trained on the task {net.task.name}, not on a text")
        with working("the net on its task"):
            found, loss = net.flow(length=options.steps, **given(options, ("batch", "seed")))
        say("task", f"{net.task.name}: loss {loss:.4g}; by chance {net.task.baseline.loss:.4g}")
    _look_at(found, printable_name(net), picture)


def _look_at(found, title, picture):
    say("net", title)
    with working("gradients by lag"):
        report = str(found)
    say("gradient", report)
    portrait = Portrait(found)
    for heading, (what, find) in FINDINGS.items():
        with working(what):
            text = find(portrait)
        if text is not None:
            say(heading, text)
    if picture is not None:
        _draw(draw_portrait, portrait, picture, title)


def _compare(options, picture):
    nets = compared(**given(options, COMPARED))
    portraits = {}
    for name, net in nets.items():
        with working(f"{name}, gradients by lag"):
            portraits[name] = Portrait(net.flow())
            headline = portraits[name].flow.headline
        say("net", net)
        say("gradient", headline)
    if picture is not None:
        for name, portrait in portraits.items():
            for what, find in FINDINGS.values():
                with working(f"{name}, {what}"):
                    find(portrait)
        net = nets["tanh"]
        title = f"{net.hidden} units, {net.steps} steps, {net.init} start of radius {net.radius:g}, input gain {net.gain:g}"
        _draw(draw_portraits, portraits, picture, title)


def _draw(draw, what, picture, title):
    with working("the picture"), drawing(picture):
        draw(what, picture, title=title)
    say("picture", printable_name(picture))


def _weights(portrait):
    return None if portrait.condition is None else str(portrait.condition)


def _lyapunov(portrait):
    if portrait.lyapunov is None:
        return None
    exponents, stderr = portrait.lyapunov
    error = f" +- {stderr[0]:.2g}" if math.isfinite(stderr[0]) else ""
    factor = f"{format_log10(exponents[0] / math.log(10), 3)} a step"
    mean = f", mean {exponents.mean():.4g}" if np.isfinite(exponents).all() else f"; {np.isneginf(exponents).sum()} are -inf"
    return f"largest exponent {exponents[0]:.4g}{error} nats per step, x {factor}{mean}; {(exponents > 0).sum()} are positive"


def _singular_values(portrait):
    if portrait.singular_values is None:
        return None
    lags, log10 = portrait.singular_values
    last = log10[-1]
    largest, median, smallest = (format_log10(value) for value in (last[0], last[len(last) // 2], last[-1]))
    product = f"of the {lags[-1]} Jacobians' product" if lags[-1] > 1 else "of the Jacobian"
    return f"values {product}: largest {largest}, median {median}, smallest {smallest}"


# What the numbers behind the picture come to: the heading; what has to be computed for it; the text, None where there is nothing to tell.
FINDINGS = {
    "weights": ("the weights alone", _weights),
    "Lyapunov": ("Lyapunov exponents", _lyapunov),
    "singular": ("singular values", _singular_values),
}


def _serve(options):
    require("serve", "plotly", "werkzeug")
    from .serve import serve

    net = DescribedNet(**given(options, DESCRIBED))
    return serve(net, PORT if options.port is None else options.port)


def _refuse_contradictions(options):
    if options.checkpoint is None:
        refuse(options, ("text", "encoding"), "only a saved net reads text; which checkpoint?")
    elif options.compare or options.serve:
        raise ValueError(f"{options.checkpoint}: --{'compare' if options.compare else 'serve'} takes no checkpoint")
    if not options.serve:
        refuse(options, ("port",), "only --serve has one")
    elif options.no_picture:
        raise ValueError("no-picture: --serve draws none anyway")
    else:
        refuse(options, ("out",), "--serve draws no picture")
    if options.no_picture:
        refuse(options, ("out",), "not together with --no-picture")
    if options.checkpoint is not None:
        refuse(options, set(DESCRIBED) - set(SAVED), "a saved net has its own")
    elif options.compare:
        refuse(options, set(DESCRIBED) - set(COMPARED), "a comparison has its own")


def _writable(path):
    """The path, if a picture can be written there; nothing is computed before that is known."""
    picture_format(path)
    new_figure(1, 1)
    require_writable(path)
    return path
