"""``fastbptt train``: train a recurrent net on a text or a task, and see what it has learned."""

from contextlib import ExitStack
from pathlib import Path

from ..._checks import DTYPES
from ..._config import set_num_threads
from ...cells import CELLS, NONLINEARITIES
from ...init import STARTS
from ...tasks import TASKS
from ..messages import fail
from ..options import REFUSALS, add_option, file_name, file_path, given, memory_for, refuse, require
from .display import is_live
from .folder import Folder
from .loop import Training
from .run import CHECKPOINT, Output, run
from .saved_run import resume
from .settings import OPTIMISERS, SCHEDULES, TaskSettings, TextSettings
from .task_objective import TaskObjective
from .text import read_corpus
from .text_objective import TextObjective

DEFAULT_OUT = "fastbptt-run"


def add_train(commands):
    """The command and its options, for the command line's parser."""
    parser = commands.add_parser(
        "train",
        help="train a recurrent net on a text or a task",
        description="Train a recurrent net by backpropagation through time, and see what it has learned: to predict a text, character by "
        "character or with --words word by word, or with --task to solve one of the classic tasks that need a long memory, until less than 1 % of 10,000 fresh "
        "sequences are answered wrongly.",
        epilog="A run keeps what it learns even if it cannot show it: where standard output is closed, full or no longer read, it goes on to "
        "its end, saves all its files, and ends with status 1. Ctrl-C, SIGTERM and a terminal that hangs up end it after the update at hand, "
        "with a checkpoint to resume from.",
    )
    parser.set_defaults(command=train)
    parser.add_argument("file", nargs="?", type=file_name, metavar="FILE", help="a text (default: the English that comes with Python)")

    def both(name):
        """The default for a text, and that for a task if it is another."""
        text, task = (getattr(settings, name) for settings in (TextSettings, TaskSettings))
        return text if text == task else f"{text}; of a task {task}"

    parser.add_argument(
        "--words", action="store_const", const=True, help="learn the text by its words, and its marks, instead of its characters"
    )
    how = "of words: how many of them; the rare ones are one token"
    add_option(parser, "vocabulary", TextSettings.VOCABULARY, how, type=int, metavar="N")
    add_option(parser, "encoding", "utf-8; of a resumed run, as before", "how FILE is encoded, by a name that Python knows", metavar="NAME")

    task = parser.add_argument_group("a task instead of a text")
    task.add_argument("--task", choices=tuple(TASKS), metavar="NAME", help=", ".join(TASKS))
    add_option(
        task, "length", TaskSettings.length, "steps of a sequence, or LOW:HIGH for any from LOW to HIGH - 1", type=length, metavar="L"
    )
    add_option(task, "check-every", TaskSettings.check_every, "updates between evaluations on fresh sequences", type=int, metavar="N")

    net = parser.add_argument_group("the net")
    add_option(net, "cell", both("cell"), ", ".join(CELLS), choices=tuple(CELLS), metavar="C")
    made_for = ", ".join(f"{start.nonlinearity} with --init {name}" for name, start in STARTS.items() if start.nonlinearity != "tanh")
    add_option(net, "nonlinearity", f"tanh; {made_for}", f"of the rnn: {', '.join(NONLINEARITIES)}", choices=NONLINEARITIES, metavar="F")
    add_option(net, "dtype", both("dtype"), ", ".join(DTYPES), choices=DTYPES, metavar="D")
    add_option(net, "hidden", both("hidden"), "units of a recurrent layer", type=int, metavar="H")
    reads = "all read forward, since the next character is not to be seen, and a task's answer is due when the last step is read"
    add_option(net, "layers", TextSettings.layers, f"recurrent layers, one above the other; {reads}", type=int, metavar="N")
    add_option(net, "dropout", TextSettings.dropout, "how likely each number between two layers is left out", type=float, metavar="P")
    add_option(
        net, "init", "default; of a task, with the rnn, basic-tanh", f"how it starts: {', '.join(STARTS)}", choices=STARTS, metavar="S"
    )

    learning = parser.add_argument_group("learning")
    add_option(
        learning, "seq-len", TextSettings.seq_len, "of a text: steps in a window, how far each gradient goes back", type=int, metavar="T"
    )
    add_option(learning, "batch", both("batch"), "streams of text, or sequences, read in parallel", type=int, metavar="B")
    add_option(learning, "optimiser", both("optimiser"), ", ".join(OPTIMISERS), choices=OPTIMISERS, metavar="O")
    cell = CELLS[TextSettings.cell]
    rate = f"{cell.rate:g} / hidden, at most 0.01, with {cell.name}; 1 with sgd; of a task 0.01, and 0.001 without sgd"
    add_option(learning, "lr", rate, "highest learning rate", type=float)
    how = f"how the learning rate goes on: {', '.join(SCHEDULES)}"
    add_option(learning, "schedule", both("schedule"), how, choices=tuple(SCHEDULES), metavar="S")
    add_option(learning, "clip", f"{TextSettings.clip:g}", "largest gradient norm; inf for any", type=float, metavar="NORM")
    how = "weight of Omega, which keeps gradients from vanishing; 0 for none"
    add_option(learning, "omega", f"{TextSettings.omega:g}", how, type=float, metavar="ALPHA")
    add_option(learning, "seed", TextSettings.seed, "seed; the same one gives the same result", type=int)
    until = learning.add_mutually_exclusive_group()
    add_option(until, "updates", both("UPDATES"), "length of the run; of a task, at most", type=int, metavar="N")
    add_option(until, "minutes", "none", "length of the run by the clock, instead", type=float, metavar="M")

    results = parser.add_argument_group("results")
    add_option(results, "out", f"{DEFAULT_OUT}, or where the resumed checkpoint is", "directory for them", type=file_path, metavar="DIR")
    results.add_argument("--overwrite", action="store_true", help="replace what an earlier run has left there")
    results.add_argument(
        "--resume",
        type=file_path,
        metavar="CHECKPOINT",
        help="go on with a run; other settings than --updates and --minutes stay as they were",
    )
    add_option(results, "save-every", 15, "seconds between checkpoints", type=float, metavar="S")
    add_option(results, "sample", 500, "of a text: characters, or words, to generate at the end", type=int, metavar="N")
    add_option(results, "temperature", 0.8, "of the sample: 0 always takes the likeliest", type=float, metavar="T")
    results.add_argument("--no-plot", action="store_true", help="draw no picture")
    shown = results.add_mutually_exclusive_group()
    shown.add_argument("--live", action="store_true", help="show how far back gradients reach while it learns, and warn if they go wrong")
    shown.add_argument("--quiet", action="store_true", help="print the results only")
    add_option(results, "threads", "FASTBPTT_NUM_THREADS, or all cores", "threads; the result does not depend on it", type=int, metavar="N")


def length(text):
    """A number, or two with a colon between them."""
    numbers = tuple(int(part) for part in text.split(":"))
    return numbers[0] if len(numbers) == 1 else numbers


def train(options):
    """``fastbptt train``: set up, then run; trouble in the former is the caller's, in the latter the run's."""
    sizes = options, "length", "hidden", "layers", "vocabulary", "seq_len", "batch", "sample"
    with ExitStack() as held:
        try:
            require_packages(options)
            with memory_for(*sizes):
                training, output = set_up(options, held)
        except REFUSALS as error:
            return fail(error, 2)
        try:
            with memory_for(*sizes):
                return run(training, output)
        except (FloatingPointError, MemoryError, OSError) as error:
            return fail(error, 1)


def require_packages(options):
    """ImportError if a package that this run needs is missing."""
    wanted = {"matplotlib": not options.no_plot, "rich": not options.quiet and is_live()}
    require("train", *(name for name, needed in wanted.items() if needed))


def set_up(options, held):
    """The `Training` and the `Output` that are asked for, whose directory is this run's as long as ``held`` is.

    Nothing is written before everything is checked.
    """
    if options.threads is not None:
        try:
            set_num_threads(options.threads)
        except (OverflowError, ValueError):
            raise ValueError(f"threads: expected a number from 1 to 256, got {options.threads}") from None
    checkpoint = options.resume
    if checkpoint is not None and checkpoint.is_dir():
        checkpoint /= CHECKPOINT
    folder = held.enter_context(Folder(options.out or (Path(DEFAULT_OUT) if checkpoint is None else checkpoint.parent)))
    if checkpoint is None:
        training = Training(objective_of(options))
    else:
        settings = given(options, TextSettings.names() | TaskSettings.names())
        training = resume(checkpoint, options.file, options.encoding, **settings)
    sample = given(options, ("sample", "temperature"))
    if training.objective.kind == "task":
        refuse(options, sample, "a task has no such setting")
        sample = {"sample": 0}
    output = Output(
        folder=folder,
        picture=not options.no_plot,
        quiet=options.quiet,
        live=options.live,
        **sample,
        **given(options, ("save_every",)),
    )
    goes_on = checkpoint is not None and folder.has(checkpoint) and checkpoint.resolve().name == CHECKPOINT
    folder.prepare(output.files(), overwrite=options.overwrite or goes_on)
    return training, output


def objective_of(options):
    """The `Objective` of a new run."""
    text, task = TextSettings.names(), TaskSettings.names()
    if options.task is None:
        refuse(options, task.keys() - text.keys(), "a text has no such setting")
        return TextObjective(TextSettings(**given(options, text)), read_corpus(options.file, options.encoding))
    if options.file is not None:
        raise ValueError(f"{options.file}: expected a text or a task to learn, got both")
    refuse(options, text.keys() - task.keys() | {"encoding"}, "a task has no such setting")
    return TaskObjective(TaskSettings(**given(options, task)))
