"""Would the tests notice a wrong kernel? The kernels are broken on purpose, at one place at a time, and the tests are run on each.

A mutation is one change to one line of ``fastbptt/_kernels``, drawn by pattern and seed: the patterns of PATTERNS take turns, and each
takes the place whose text, not number, comes first in an order that the seed shuffles. A change elsewhere leaves the draw as it is.

What cannot be compiled, and what gives the same object code, is no mutation, and another is drawn. What can only be slower is left out,
see `only_speed`. Each of the others is compiled at one instruction-set level in a copy of the tree: in float64, and in float32 if it
survives. The tests of its file that are run at every level are run up to the first that fails, crashes or hangs. Those that ask how long
something takes are left out, as they would see the load of this very command. Survivors that are no faults are argued for, one by one, in
``mutants.toml``. An hour on two cores for a hundred mutations.

    python benchmarks/mutants.py
    python benchmarks/mutants.py --seed 1 --count 50 --json one.json

Results are kept in the JSON file. Started again, the command goes on where it was, and tries the survivors again.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KERNELS = Path("fastbptt", "_kernels")

LEVELS = {"baseline": [], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}  # as in setup.py
DIRECTIVES = ["boundscheck=False", "wraparound=False", "initializedcheck=False", "cdivision=True"]
FLAGS = ["-O1", "-fno-math-errno", "-ffp-contract=fast", "-g0", "-fPIC", "-DNDEBUG", "-DCYTHON_CLINE_IN_TRACEBACK=0"]
SILENCE = 90  # seconds without a word from the tests: one of them hangs
MEMORY = 12 << 30  # bytes of addresses for each process: some mutants would take all there are

# The tests of each file, those that find most first; and those of all other files.
TESTS = {
    "chunks.pyx": ["chunks", "clipping", "optim", "layers", "bits"],
    "clip.pxi": ["clipping", "bounds", "bits"],
    "clip_step.pxi": ["clip_step", "bounds"],
    "elimination.pxi": ["lyapunov", "exact_products", "jacobians", "regularisation"],
    "factorisation.pxi": ["exact_products", "jacobians", "lyapunov"],
    "fleet.pxi": ["fleet"],
    "gather.pxi": ["ragged", "stacks", "bounds"],
    "interleave.h": ["gradients", "fleet"],
    "jvp.pxi": ["jvp", "bounds"],
    "lanes.h": ["fleet"],
    "linear.pxi": ["layers", "bounds", "bits"],
    "loss.pxi": ["losses", "bounds", "bits"],
    "memory.pyx": ["memory", "bits", "gradients", "process"],
    "optimisers.pxi": ["optim", "layers"],
    "passes.pxi": ["core", "gradients", "bounds", "bits", "memory_budget", "early_stop", "flow", "truncation", "projection", "jvp"],
    "pieces.pyx": ["ragged"],
    "pool.pyx": ["bits", "layers", "lyapunov", "process"],
    "product.pxi": ["gradients", "bounds", "bits", "early_stop", "layers", "lyapunov"],
    "projected.pxi": ["projection"],
    "recompute.pxi": ["memory_budget"],
    "side_by_side.pxi": ["side_by_side", "core", "bits"],
    "simd.h": ["math", "bounds", "gradients", "bits"],
    "small_backward.pxi": ["fleet"],
    "small_forward.pxi": ["fleet"],
    "small_nets.pxi": ["fleet"],
    "stream.pxi": ["streaming", "bounds"],
    "sums.pxi": ["clipping", "bounds", "losses", "early_stop", "lyapunov"],
    "tangents.pxi": ["lyapunov", "exact_products", "jacobians", "regularisation"],
    "tile.h": ["gradients", "bounds", "bits", "early_stop", "layers"],
    "vector_functions.pxi": ["math"],
    "whole_nets.pxi": ["fleet"],
    "workspace.pxi": ["gradients", "bits", "layers", "lyapunov", "bad_input"],
}
TESTS_OF_OTHERS = ["gradients", "bounds", "bits", "early_stop", "layers", "flow", "truncation", "core", "jvp"]
NOT_ABOUT_TIME = "not half_a_second and not cost_nothing and not leaves_memory_alone"
SINGLE = "(float32 or single) and "


# --- Patterns ---------------------------------------------------------------------------------------------------------


def larger(match):
    number = match.group()
    return str(int(number) + 1) if number.isdecimal() else f"{number} * 1.5"


# What is found in a line, or the group named "this" of it, and what takes its place.
PATTERNS = {
    "sign": [
        (r"(?<= )\+(?= )", "-"),
        (r"(?<= )-(?= )", "+"),
        (r"\+=", "-="),
        (r"-=", "+="),
        (r"(?<=[=(,?:\[] )-(?=[\w(])|(?<=[(\[])-(?=[\w(])|(?<=return )-", ""),
    ],
    "index": [
        (r"(?<=\[)[^\[\]:]*[a-z][^\[\]:]*(?=\])", r"\g<0> + 1"),
        (r"(?<=\[)[^\[\]:]*[a-z][^\[\]:]*(?=\])", r"\g<0> - 1"),
    ],
    "bound": [
        (r" < ", " <= "),
        (r" <= ", " < "),
        (r" > ", " >= "),
        (r" >= ", " > "),
        (r" == ", " != "),
        (r" != ", " == "),
        (r"range\((.+)\):$", r"range(\1 - 1):"),
        (r"range\(([^,()]+), ", r"range(\1 + 1, "),
        (r"range\((?=[^,]+\):$)", "range(1, "),
    ],
    "stride": [
        (r"(?<=[\w)\]]) \* [\w.]+(?![\w.(\[])", ""),
        (r"(?<![\w.])[\w.]+ \* (?=[\w(])", ""),
        (r" // ", " * "),
        (r" % ", " // "),
    ],
    "gate": [
        (r" \+ s\.H", " + 2 * s.H"),
        (r" \+ 2 \* s\.H", " + s.H"),
        (r" \+ 2 \* s\.H", " + 3 * s.H"),
        (r" \+ 3 \* s\.H", " + 2 * s.H"),
    ],
    "statement": [
        (r"^\s*(?P<this>(?!cdef |\s)[\w.\[\], +*/%&()-]+ [-+*/]?= .+)$", "pass"),
        (r"^\s*(?P<this>[a-z_][\w.]*\(.*\))$", "pass"),
        (r"^\s*(?P<this>break|continue)$", "pass"),
        (r"^\s*(?P<this>[\w.\[\] +*]+ [-+*/]?= .+;)$", ";"),
    ],
    "constant": [(r"(?<![\w.])\d+(?:\.\d*)?(?:e[-+]?\d+)?(?![\w.])", larger)],
    "extreme": [(r"\bmin\(", "max("), (r"\bmax\(", "min("), (r"\bat_least\(", "at_most("), (r"\bat_most\(", "at_least(")],
    "logic": [
        (r" and ", " or "),
        (r" or ", " and "),
        (r"(?<!\w)not ", ""),
        (r"\bTrue\b", "False"),
        (r"\bFalse\b", "True"),
        (r"(?<=if )(.+)(?= else )", r"not (\1)"),
        (r"(?<=if )(.+)(?=:$)", r"not (\1)"),
        (r"(?<=while )(.+)(?=:$)", r"not (\1)"),
    ],
}

# Words that take each other's places, where both are known.
PAIRS = {
    "variable": (
        "H/N B/T H/I M/N N/K k/N t0/t1 b0/b1 u0/u1 n0/n1 p0/p1 i0/i1 dh/dc da/da_h h/c h/h_prev c/c_prev a/m w_ih/w_hh db_ih/db_hh "
        "x_panels/h_panels i/j v/w i/end beta1/beta2 alpha/momentum exp_avg/exp_avg_sq first/second high/low start/end panel/other "
        "outer/inner row/panel"
    ),
    "gate": "vector_tanh/vector_sigmoid through_tanh/through_sigmoid reset/z z/n da_r/da_z da_z/da_n i/f f/g g/o i/o TANH/SIGMOID RELU/IDENTITY",
}

SPEED_FUNCTION = re.compile(
    "prefetch.*|is_stream|(recurrent|patch|projection|known)_work|patches_of_steps|parts_down|step_time|is_mostly_reading|share|share_rows|share_gradients|row_groups|rows_in_block|"
    "kind_of_tokens|tasks_for"
)
SPEED_LINE = re.compile(
    r"prefetch|fetch_others|step_cost|how_far|is_stream|interrupted\(&|interrupted\(watch|give_way|spin_pause|spins|patience|tasks_for\(|(step_work|projection) =|"
    r"chunks\.(work|elements) [+]?=|"
    "(BACKWARD_ROWS|CELL_WORK|CHUNK|COPY_WORK|EXP_WORK|FEW_ROWS|FORWARD_BLOCK|GRADIENT_COLUMNS|GRADIENT_K|GRADIENT_PANELS|GRADIENT_ROWS|"
    "GROUPED_WEIGHTS|GROUP_PANELS|GROUP_ROWS|GROUP_STEPS|JVP_BLOCK|JVP_ROWS|KEPT_BLOCKS|KEPT_BYTES|LEAST_ROWS|LONG_STEP|LONG_SUM|LOOK_AROUND|MANY_ROWS|MAX_GROUPS|"
    "PATIENCE|POW_WORK|PROJECTED_ROWS|RECOMPUTED_BLOCKS|ROOT_WORK|SECOND_LEVEL_CACHE|SHARED_NET|SHARES|SMALL|SMALL_BLOCK|SMALL_BLOCK_DA|SPINS|STEP_GAIN|STEP_RATE|READING|LINES_AT_ONCE|IDLE_SPINS|FEW_PANELS|FEW_PARTS|WORK_PER_LOOK|WORK_PER_TASK|YIELDS|"
    "LEAST_STEP|FETCHED|EMPTY_STEPS|NEIGHBOURS|LOOK_AGAIN|FORGOTTEN|TRY_AGAIN|NEAR_COST|OWN_COST|FAR_TASKS|USUAL_COST|NOBODY_CAME|GRADIENT_STRIDE) ="
)


def only_speed(function, line):
    """Whether changes to a line can make the kernels slower and nothing else: no test can tell, and none should.

    That is what fetches memory before it is used; what is told to `interrupted` of the work that was done; how long a thread spins before
    it sleeps; and into how many pieces work is cut: results are promised to be the same whatever their number, and tested for it.
    """
    return bool(SPEED_FUNCTION.fullmatch(function) or SPEED_LINE.search(line))


# --- Mutations --------------------------------------------------------------------------------------------------------


class Mutation(NamedTuple):
    file: str
    number: int  # of the line, from 0
    before: str
    after: str
    repeat: int  # how many lines before it have the same text

    def __str__(self):
        return f"{self.file}: {self.before.strip()}  =>  {self.after.strip()}" + (f"  (place {self.repeat + 1})" if self.repeat else "")


def source_files():
    folder = ROOT / KERNELS
    return [*folder.glob("*.pxi"), *folder.glob("*.h"), *(folder / name for name in ("chunks.pyx", "memory.pyx", "pieces.pyx", "pool.pyx"))]


def code_of(text, is_c):
    """The text with spaces in place of comments and strings."""
    noise = r'/\*[\s\S]*?\*/|"[^"\n]*"' if is_c else r'"""[\s\S]*?"""|"[^"\n]*"|#[^\n]*'
    return re.sub(noise, lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def mutable_lines(code, is_c):
    """(number, line, whether it is a whole statement) of what is neither a declaration, nor a matter of speed alone."""
    function, in_signature, depth = "", False, 0
    for number, line in enumerate(code):
        before, depth = depth, depth + sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        signature = re.match(r"\s*(?:def|cdef|static) [^=(]*?(\w+)\(", line)
        if signature:
            function = signature.group(1)
        if (signature or in_signature) and not (is_c and line.endswith("}")):
            in_signature = not is_c and not line.endswith(":")
            continue
        if re.match(r"\s*(c?import|from|include|ctypedef|cdef (extern|class|struct|enum)|#(?!define))\b", line):
            continue
        if not only_speed(function, line):
            yield number, line, is_c or before == depth == 0


def changes(line, pattern):
    """(start, end, what takes the place of this piece of the line)"""
    for expression, replacement in PATTERNS.get(pattern, []):
        for match in re.finditer(expression, line):
            new = replacement(match) if callable(replacement) else match.expand(replacement)
            yield *match.span("this" if "this" in match.re.groupindex else 0), new


def exchanges(line, pattern, around):
    """The same, of a word by the other of its pair: one that is a name in the lines around, or an attribute somewhere."""
    for pair in PAIRS.get(pattern, "").split():
        for old, new in itertools.permutations(pair.split("/")):
            for match in re.finditer(rf"(\.?)\b{old}\b", line):
                if re.search(rf"\.{new}\b" if match.group(1) else rf"(?<![\w.]){new}\b", around):
                    yield match.end() - len(old), match.end(), new


def mutations_of(path, pattern):
    text, is_c = path.read_text(), path.suffix == ".h"
    lines, code = text.split("\n"), [line.rstrip() for line in code_of(text, is_c).split("\n")]
    starts = [number for number, line in enumerate(code) if re.match(r"\s*(def|cdef|static) [^=(]*\(", line)] + [len(code)]
    seen = Counter()
    for number, line, whole in mutable_lines(code, is_c):
        repeat = seen[line.strip()]
        seen[line.strip()] += 1
        around = "\n".join(code[max((s for s in starts if s <= number), default=0) : min(s for s in starts if s > number)])
        if (pattern == "statement" and not whole) or (pattern == "gate" and path.name != "cells.pxi"):
            continue
        for start, end, new in itertools.chain(changes(line, pattern), exchanges(line, pattern, around)):
            yield Mutation(path.name, number, lines[number], lines[number][:start] + new + lines[number][end:], repeat)


def draw(seed):
    """All mutations, in the order of their turns."""

    def place(mutation):
        return hashlib.sha256(f"{seed} {mutation}".encode()).digest()

    queues = [sorted({m for path in source_files() for m in mutations_of(path, pattern)}, key=place) for pattern in (*PATTERNS, "variable")]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return (mutation for mutation in turns if mutation is not None)


# --- A copy of the tree -----------------------------------------------------------------------------------------------


class Copy:
    """The package and its tests in a folder of its own, with kernels of one level."""

    def __init__(self, folder, level):
        self.folder, self.level = Path(folder), level
        for name in ("fastbptt", "tests"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("*.so", "*.c", "_*_float*.pyx", "__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        self.kernels = [f"_{level}_float64", f"_{level}_float32"]
        for name in self.kernels:
            (self.folder / KERNELS / f"{name}.pyx").write_text('include "kernels.pxi"\n')
        plain = [source.stem for source in sorted((self.folder / KERNELS).glob("[!_]*.pyx"))]
        self.modules = {name: self.compile(name) for name in (*plain, *self.kernels)}  # name: object code
        for name in self.modules:
            self.link(name)

    def run(self, *command):
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout

    def compile(self, name):
        source = KERNELS / name
        directives = itertools.chain.from_iterable(("-X", directive) for directive in DIRECTIVES)
        self.run(sys.executable, "-m", "cython", "-3", *directives, f"{source}.pyx", "-o", f"{source}.c")
        level = LEVELS[self.level] if name in self.kernels else []
        macros = ["-DFASTBPTT_FLOAT32"] if name.endswith("float32") else []
        include = ["-I", sysconfig.get_paths()["include"]]
        self.run("gcc", "-c", *FLAGS, *level, *macros, *include, f"{source}.c", "-o", f"{source}.o")
        return (self.folder / f"{source}.o").read_bytes()

    def link(self, name):
        self.run("gcc", "-shared", str(KERNELS / f"{name}.o"), "-o", str(KERNELS / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"))

    def try_out(self, mutation):
        """What becomes of it, and the test that tells."""
        path = self.folder / KERNELS / mutation.file
        text = path.read_text()
        lines = text.split("\n")
        assert lines[mutation.number] == mutation.before
        lines[mutation.number] = mutation.after
        path.write_text("\n".join(lines))
        modules = [path.stem] if path.suffix == ".pyx" else self.kernels
        fate = "same code", ""
        try:
            for name in modules:
                if self.compile(name) != self.modules[name]:
                    self.link(name)
                    fate = self.test(TESTS.get(mutation.file, TESTS_OF_OTHERS), SINGLE if name.endswith("float32") else "")
                    if fate[0] != "survived":
                        break
            return fate
        except subprocess.CalledProcessError:
            return "does not compile", ""
        finally:
            path.write_text(text)
            for name in modules:
                (self.folder / KERNELS / f"{name}.o").write_bytes(self.modules[name])
                self.link(name)

    def test(self, names, chosen=""):
        """Whether the kernels as they are now are "caught", "hung" or "survived", and the test at which they were."""
        files = [f"tests/test_{name}.py" for name in names]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-v",
            "--no-header",
            "--tb=no",
            "-m",
            "not one_level",
            "-k",
            NOT_ABOUT_TIME,
            *files,
        ]
        variables = {"PYTHONPATH": str(self.folder), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "FASTBPTT_ISA": self.level}
        fewer = {"FASTBPTT_TEST_SHAPES": "40", "FASTBPTT_TEST_POINTS": "40000"}
        options = {"cwd": self.folder, "env": os.environ | variables | fewer, "start_new_session": True}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options) as tests:
            said, hung = "", False
            while select.select([tests.stdout], [], [], SILENCE)[0]:
                more = os.read(tests.stdout.fileno(), 1 << 16)
                if not more:
                    break
                said += more.decode(errors="replace")
            else:
                hung = tests.poll() is None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(tests.pid, signal.SIGKILL)
        if tests.returncode == 0:
            return "survived", ""
        begun = re.findall(r"^tests/(\S+::.*?)(?: (?:PASSED|FAILED|SKIPPED|ERROR)\b.*| *)$", said, re.MULTILINE)
        return "hung" if hung else "caught", begun[-1] if begun else "import"


# --- The command ------------------------------------------------------------------------------------------------------


def judge(mutations, copies, keep):
    """Try the mutations out on all copies side by side, and keep and print what became of each."""

    def one(mutation):
        copy = copies.get()
        try:
            return mutation, copy.try_out(mutation)
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(copies.qsize()) as pool:
        for done in as_completed([pool.submit(one, mutation) for mutation in mutations]):
            mutation, (outcome, test) = done.result()
            keep(mutation, outcome, test)
            print(f"{outcome:16} {mutation}" + (f"   {test}" if test else ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutations tried side by side (default: one for each core)")
    parser.add_argument("--level", choices=LEVELS, default="baseline")
    parser.add_argument("--json", type=Path, default=Path("mutants.json"), help="where results are kept (default: mutants.json)")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    kept = json.loads(options.json.read_text()) if options.json.exists() else {}
    results = kept.setdefault(options.level, {})
    argued = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())

    def keep(mutation, *result):
        results[str(mutation)] = result
        options.json.write_text(json.dumps(kept, indent=1))

    def settled(mutation):
        return results.get(str(mutation), ["survived"])[0] != "survived" or (str(mutation) in argued and str(mutation) in results)

    def is_one(mutation):
        return results[str(mutation)][0] in ("caught", "hung", "survived")

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        made = list(pool.map(lambda job: Copy(Path(folder, str(job)), options.level), range(options.jobs)))
        outcome, test = made[0].test(dict.fromkeys(itertools.chain(TESTS_OF_OTHERS, *TESTS.values())))
        if outcome != "survived":
            sys.exit(f"without any mutation the tests should pass, but {test} does not")
        copies = SimpleQueue()
        for copy in made:
            copies.put(copy)
        drawn, mutants = draw(options.seed), []
        while len(mutants) < options.count:
            batch = list(itertools.islice(drawn, options.count - len(mutants)))
            if not batch:
                break
            judge([mutation for mutation in batch if not settled(mutation)], copies, keep)
            mutants += filter(is_one, batch)

    tally = Counter(results[str(mutation)][0] for mutation in mutants)
    survivors = [mutation for mutation in mutants if results[str(mutation)][0] == "survived"]
    print(
        f"{len(mutants)} mutations, seed {options.seed}, {options.level}: {tally['caught']} caught, {tally['hung']} caught by hanging, "
        f"{sum(str(mutation) in argued for mutation in survivors)} argued to be no faults; and these survive:"
    )
    for mutation in survivors:
        if str(mutation) not in argued:
            print(mutation)


if __name__ == "__main__":
    main()
