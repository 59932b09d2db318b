"""Every instruction-set level that this machine can run computes the right results and leaves the floating-point environment alone."""

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import PATIENCE, environment, run_python

import fastbptt
from fastbptt._kernels import PLAIN

CONFIG = fastbptt.show_config(mode="dicts")
USABLE = [name for name, state in CONFIG["isa_levels"].items() if state == "usable"]
OTHERS = [level for level in USABLE if level != CONFIG["isa"]]
SHORT = {"x86-64-v4": "v4", "x86-64-v3": "v3"}
SMOKE = """
import fastbptt, numpy as np
from problems import CELLS, random_problem
from test_gradients import assert_right
from tolerances import DTYPES
for cell in CELLS:
    for dtype in DTYPES:
        for shape in [(5, 3, 4, 7), (1, 1, 1, 1), (20, 17, 9, 33), (100, 7, 5, 6)]:
            problem = random_problem(cell, *shape, dtype=dtype, tokens=shape[0] == 20)
            assert_right(problem, problem.results(fastbptt))
print(fastbptt.show_config(mode="dicts")["isa"])
"""


KERNEL_TESTS = [
    "test_gradients.py",
    "test_bits.py",
    "test_bounds.py",
    "test_early_stop.py",
    "test_core.py",
    "test_ragged.py",
    "test_clip_step.py",
    "test_jvp.py",
    "test_projection.py",
    "test_fleet.py",
    "test_math.py",
    "test_chunks.py",
    "test_clipping.py",
    "test_losses.py",
    "test_optim.py",
    "test_layers.py",
]


@pytest.mark.skipif(
    not (Path("/proc/cpuinfo").exists() and platform.machine() == "x86_64"), reason="asks Linux what an x86-64 processor can do"
)
def test_what_the_processor_can_do():
    """An installed wheel once ran all there is at the baseline: the linker's library had no answer for the compiler's question."""
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE).group(1).split())
    v3 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"} <= flags
    v4 = v3 and {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags
    usable = {"scalar": True, "baseline": True, "x86-64-v3": v3, "x86-64-v4": v4}
    assert {level: state != "not supported here" for level, state in CONFIG["isa_levels"].items()} == usable


ANOTHER_PROCESSOR = """
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
static unsigned lacks[3]; /* of ecx of leaf 1, of ebx of leaf 7, and of ecx of leaf 0x80000001 */
static int answer(unsigned leaf, unsigned *a, unsigned *b, unsigned *c, unsigned *d)
{
    *a = *b = *c = *d = ~0u;
    if (leaf == 1) *c = ~lacks[0];
    if (leaf == 7) *b = ~lacks[1];
    if (leaf == 0x80000001) *c = ~lacks[2];
    return 1;
}
#define __get_cpuid answer
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) answer(leaf, a, b, c, d)
%s
int main(int argc, char **argv)
{
    int i;
    printf("%%d%%d", cpu_has_v3(), cpu_has_v4());
    for (i = 1; i + 1 < argc; i += 2) {
        lacks[atoi(argv[i])] = 1u << atoi(argv[i + 1]);
        printf(" %%d%%d", cpu_has_v3(), cpu_has_v4());
        lacks[atoi(argv[i])] = 0;
    }
    return 0;
}
"""
OF_V3 = {
    "fma": (0, 12),
    "movbe": (0, 22),
    "osxsave": (0, 27),
    "avx": (0, 28),
    "f16c": (0, 29),
    "bmi": (1, 3),
    "avx2": (1, 5),
    "bmi2": (1, 8),
    "lzcnt": (2, 5),
}
OF_V4 = {"f": (1, 16), "dq": (1, 17), "cd": (1, 28), "bw": (1, 30), "vl": (1, 31)}


@pytest.mark.skipif("x86-64-v4" not in USABLE, reason="the operating system's answer is this machine's")
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a compiler")
def test_a_processor_that_lacks_one_feature(tmp_path):
    """All that -march lets a compiler use must be there, whether or not ours has used it so far."""
    source = Path(fastbptt.__file__).parent / "_kernels" / "cpu.pyx"
    if not source.exists():
        pytest.skip("the source is not here")
    (tmp_path / "cpu.c").write_text(ANOTHER_PROCESSOR % source.read_text().split('"""')[3])
    subprocess.run(["cc", "-o", tmp_path / "cpu", tmp_path / "cpu.c"], check=True, timeout=60 * PATIENCE)
    bits = [str(n) for place in (*OF_V3.values(), *OF_V4.values()) for n in place]
    whole, *others = subprocess.run([tmp_path / "cpu", *bits], check=True, capture_output=True, text=True).stdout.split()
    assert whole == "11" and dict(zip((*OF_V3, *OF_V4), others)) == dict.fromkeys(OF_V3, "00") | dict.fromkeys(OF_V4, "10")


@pytest.mark.parametrize("asked", dict.fromkeys(name for level in USABLE for name in (level, SHORT.get(level, level))))
def test_each_level_is_right_under_each_of_its_names(asked):
    level = run_python(SMOKE, FASTBPTT_ISA=asked).strip()
    assert asked in (level, SHORT.get(level))


@pytest.fixture(scope="module")
def memory():
    """The folder in which a level's run keeps what the reference says, for the others."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("level", OTHERS)
def test_the_kernel_tests_pass_at_every_other_level(level, memory):
    """The rest of the suite runs at the level of this process."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not one_level", *KERNEL_TESTS],
        cwd=Path(__file__).parent,
        env=environment(FASTBPTT_ISA=level, FASTBPTT_TEST_SHAPES=40, FASTBPTT_TEST_POINTS=40_000, FASTBPTT_TEST_MEMORY=memory),
        capture_output=True,
        text=True,
        timeout=900 * PATIENCE,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert re.search(r"\d{4} passed", result.stdout), result.stdout[-500:]


@pytest.mark.parametrize("asked", ["avx9", "V3", "x86-64-v2", "v3,v4", "0"])
def test_a_level_that_there_is_not(asked):
    result = run_python("import fastbptt", FASTBPTT_ISA=asked, check=False)
    assert result.returncode == 1
    assert f"ImportError: FASTBPTT_ISA='{asked}' is no instruction-set level; here it can be one of: {', '.join(USABLE)}" in result.stderr


@pytest.mark.parametrize("level", [level for level in CONFIG["isa_levels"] if level not in USABLE])
def test_a_level_that_this_machine_has_not(level):
    result = run_python("import fastbptt", FASTBPTT_ISA=level, check=False)
    assert result.returncode == 1
    assert f"ImportError: FASTBPTT_ISA='{level}' is not supported" in result.stderr


def test_a_level_that_the_processor_lacks_is_refused():
    """As on an older processor: the dispatcher is told that the best level does not run, nor any but the last two."""
    usable = USABLE[1:][-2:]
    code = f"""
import sys, types
import numpy
sys.modules["fastbptt._kernels.cpu"] = cpu = types.ModuleType("cpu")
cpu.LEVELS = cpu.usable = {[SHORT.get(level, level) for level in usable]}
cpu.runs = lambda level: level in cpu.usable
import fastbptt
print(fastbptt.show_config(mode="dicts")["isa"], *[name for name in sys.modules if "_{SHORT.get(USABLE[0], USABLE[0])}_" in name])
"""
    assert run_python(code, FASTBPTT_ISA="").split() == usable[:1]
    refused = run_python(code, FASTBPTT_ISA=USABLE[0], check=False)
    assert refused.returncode == 1
    complaint = f"FASTBPTT_ISA='{USABLE[0]}' is not supported by this processor or not built; here it can be one of: {', '.join(usable)}"
    assert f"ImportError: {complaint}" in refused.stderr


def test_without_a_wish_the_best_level_is_chosen():
    assert run_python("import fastbptt; print(fastbptt.show_config(mode='dicts')['isa'])", FASTBPTT_ISA="").strip() == USABLE[0]


def test_the_levels_of_this_kind_of_processor():
    """Whatever is built: no processor is told of another's, and none is left with scalars alone."""
    of_machine = {"x86_64": ["x86-64-v4", "x86-64-v3", "baseline", "scalar"], "aarch64": ["neon", "scalar"]}
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    machine = platform.machine().lower()
    assert list(CONFIG["isa_levels"]) == of_machine.get(names.get(machine, machine), ["baseline", "scalar"])
    assert USABLE[-1] == "scalar" and len(USABLE) >= 2


def test_a_level_of_another_kind_of_processor():
    other = "neon" if "neon" not in CONFIG["isa_levels"] else "v3"
    result = run_python("import fastbptt", FASTBPTT_ISA=other, check=False)
    assert result.returncode == 1
    assert f"ImportError: FASTBPTT_ISA='{other}' is not supported by this processor or not built" in result.stderr


def test_only_the_chosen_level_is_imported():
    code = "import fastbptt, sys; print(*sorted(name for name in sys.modules if name.startswith('fastbptt._kernels._')))"
    level = USABLE[-2]
    expected = sorted(f"fastbptt._kernels._{SHORT.get(level, level)}_{dtype}" for dtype in CONFIG["dtypes"])
    assert run_python(code, FASTBPTT_ISA=level).split() == expected


@pytest.mark.parametrize(
    "name",
    [*PLAIN, *(f"_{level}_{dtype}" for level in ("baseline", "scalar") for dtype in CONFIG["dtypes"])],
)
def test_no_avx_where_an_old_processor_comes_by(name):
    if CONFIG["isa_levels"].get("x86-64-v3") != "usable":
        pytest.skip("not an x86-64 build")
    if not shutil.which("objdump"):
        pytest.skip("needs objdump")

    def avx_instructions(module):
        file = importlib.util.find_spec(f"fastbptt._kernels.{module}").origin
        listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", file], capture_output=True, text=True, check=True).stdout
        assert len(listing) > 10_000
        return re.findall(r"\t(v[a-z0-9]+ .*|.*%[yz]mm\d+.*)", listing)

    assert not avx_instructions(name)
    assert avx_instructions(f"_v3_{CONFIG['dtypes'][0]}")


@pytest.mark.parametrize("level", USABLE)
def test_the_floating_point_environment_is_left_alone(level):
    """Subnormal numbers are kept, and rounding goes to nearest: after import, after calls, and in threads born before and after."""
    code = """
import threading
tiny, one = float("5e-324"), float("1")
def look():
    halves = [one + 2.0**-53 == one, one + 3 * 2.0**-53 == one + 2.0**-51, -one - 2.0**-53 == -one]
    return all(halves) and tiny * one == tiny and float("1e-310") / 2 == float("5e-311") != 0
assert look()
go, seen = threading.Event(), []
old = threading.Thread(target=lambda: (go.wait(), seen.append(look())))
old.start()
import numpy as np
import fastbptt
from problems import random_problem
assert look()
fastbptt.set_num_threads(3)
for cell in ("rnn-tanh", "gru", "lstm"):
    for dtype in (np.float64, np.float32):
        random_problem(cell, 60, 20, 30, 65, dtype=dtype).results(fastbptt)
fastbptt.clip_grad_norm_(np.ones(300_000), 0.5)
assert look() and (np.full(9, 1e-310) / 2 > 0).all()
new = threading.Thread(target=lambda: seen.append(look()))
new.start()
go.set()
old.join(), new.join()
assert seen == [True, True]
"""
    run_python(code, FASTBPTT_ISA=level)
