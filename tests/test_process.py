"""The library in a process with other work: forks, threads, signals, limits. Time limits are for hangs, but for Ctrl-C's half a second."""

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from problems import random_problem
from processes import PATH, current_level, environment, run_python
from tolerances import assert_same_bits

import fastbptt

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")
linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")

CALL = """
import fastbptt, numpy as np, os, signal, sys, threading, time
from problems import random_problem
problem = random_problem("rnn-tanh", 100, 20, 30, 65)
def call(threads=2):
    fastbptt.set_num_threads(threads)
    return problem.results(fastbptt)
def same(got):
    return all(got[name].tobytes() == expected[name].tobytes() for name in expected)
expected = call()

def in_child(work, limit=20):
    "Exit status of a forked child that does this; killed if it hangs."
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 3)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(4)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"
"""


# --- Fork -------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_forked_child_can_call(threads):
    run_python(
        CALL
        + f"""
for _ in range(5):
    assert in_child(lambda: same(call({threads}))) == 0
    assert same(call({threads}))
"""
    )


@posix
def test_a_grandchild_can_call():
    run_python(CALL + "assert in_child(lambda: same(call()) and in_child(lambda: same(call(3))) == 0) == 0")


@posix
@pytest.mark.parametrize("shape", [(1500, 64, 128, 256), (20_000, 1, 16, 512)], ids=["threads by rows", "threads by units"])
def test_a_signal_handler_that_forks(shape):
    """The call completes in the parent; in the child, where the helper threads are gone, it raises."""
    run_python(
        CALL
        + f"""
fastbptt._kernels.pool.assume_step_cost(20)  # threads share the call, also where others keep the cores busy
fastbptt.set_num_threads(2)
problem = random_problem("rnn-tanh", *{shape})
expected, children = problem.forward(fastbptt)[0], []
signal.signal(signal.SIGPROF, lambda *_: children.append(os.fork()))
signal.setitimer(signal.ITIMER_PROF, 0.02)  # of processor time
try:
    out = problem.forward(fastbptt)[0]
except RuntimeError as error:
    os._exit(0 if children == [0] and "a signal handler has forked" in str(error) else 3)
if children == [0]:
    os._exit(2)
assert len(children) == 1, "the call was over before the signal came"
assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
np.testing.assert_array_equal(out, expected)
"""
    )


@posix
def test_fork_while_another_thread_is_in_a_kernel():
    run_python(
        CALL
        + """
stop = False
def work():
    while not stop:
        problem.results(fastbptt)
workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers: worker.start()
results = [in_child(lambda: same(call())) for _ in range(20)]
stop = True
for worker in workers: worker.join()
assert results == [0] * 20, results
assert same(call())
""",
        timeout=120,
    )


SCRIPT = """
import multiprocessing, sys
import fastbptt
from problems import random_problem

def norms(seed):
    fastbptt.set_num_threads(2)
    return [float(abs(value).sum()) for value in random_problem("rnn-tanh", 60, 20, 30, 65, seed=seed).results(fastbptt).values()]

if __name__ == "__main__":
    expected = [norms(seed) for seed in range(4)]
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.map_async(norms, range(4)).get(timeout=50) == expected
"""


@posix
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), method],
        env=environment(**current_level()),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert result.returncode == 0, result.stderr[-3000:]


# --- Ctrl-C and the GIL -----------------------------------------------------------------------------------------------

# Calls that last for seconds: the only way out of them within half a second is to notice the signal inside.
LONG_CALLS = {
    "forward, few rows": """
x, w_ih, w_hh = np.zeros((30_000, 1, 1)), rng.standard_normal((1024, 1)), rng.standard_normal((1024, 1024)) / 40
def long_call(): fastbptt.rnn_forward(x, None, w_ih, w_hh)
""",
    "forward, many rows": """
x, w_ih, w_hh = np.zeros((900, 64, 1)), rng.standard_normal((768, 1)), rng.standard_normal((768, 768)) / 40
def long_call(): fastbptt.rnn_forward(x, None, w_ih, w_hh)
""",
    "projection": """
x, w_ih, w_hh = np.broadcast_to(1.0, (16_000, 1, 2048)).copy(), rng.standard_normal((1024, 2048)) / 50, np.zeros((1024, 1024))
def long_call(): fastbptt.rnn_forward(x, None, w_ih, w_hh)
""",
    "backward": """
x, w_ih, w_hh = np.zeros((1200, 32, 1)), rng.standard_normal((768, 1)), rng.standard_normal((768, 768)) / 40
out, _, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh)
d_out = np.ones_like(out)
def long_call(): fastbptt.rnn_backward(tape, d_out)
""",
    "backward, few rows": """
x, w_ih, w_hh = np.zeros((10_000, 1, 1)), rng.standard_normal((1024, 1)), rng.standard_normal((1024, 1024)) / 40
out, _, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh)
d_out = np.ones_like(out)
def long_call(): fastbptt.rnn_backward(tape, d_out)
""",
    "gru forward, float32": """
x, w_ih, w_hh = (np.full(shape, 1e-3, np.float32) for shape in ((500, 16, 1), (3 * 2048, 1), (3 * 2048, 2048)))
def long_call(): fastbptt.gru_forward(x, None, w_ih, w_hh)
""",
    "lstm backward, float32": """
x, w_ih, w_hh = (np.full(shape, 1e-3, np.float32) for shape in ((120, 16, 1), (4 * 2048, 1), (4 * 2048, 2048)))
out, _, tape = fastbptt.lstm_forward(x, None, w_ih, w_hh)
d_out = np.ones_like(out)
def long_call(): fastbptt.lstm_backward(tape, d_out)
""",
    "forward mode": """
x, w_ih, w_hh = np.zeros((900, 64, 1)), rng.standard_normal((768, 1)), rng.standard_normal((768, 768)) / 40
out, _, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh)
def long_call(): fastbptt.rnn_jvp(tape, w_hh=w_hh)
""",
    "forward mode, few rows": """
x, w_ih, w_hh = np.zeros((10_000, 1, 1)), rng.standard_normal((1024, 1)), rng.standard_normal((1024, 1024)) / 40
out, _, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh)
def long_call(): fastbptt.rnn_jvp(tape, w_hh=w_hh)
""",
    "forward mode, a wide input": """
x, w_ih, w_hh = np.broadcast_to(1.0, (6000, 1, 2048)).copy(), rng.standard_normal((1024, 2048)) / 50, np.zeros((1024, 1024))
out, _, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh)
def long_call(): fastbptt.rnn_jvp(tape, x=x, w_ih=w_ih)
""",
    "a fleet, a net for each thread": """
x, w_ih, w_hh = np.zeros((900, 64, 1)), rng.standard_normal((2, 768, 1)), rng.standard_normal((2, 768, 768)) / 40
def long_call(): fastbptt.fleet.rnn_forward(x, None, w_ih, w_hh)
""",
    "a fleet of small nets": """
x, w_ih, w_hh = np.zeros((2000, 32, 1)), rng.standard_normal((1000, 6, 1)), rng.standard_normal((1000, 6, 2))
def long_call(): fastbptt.fleet.gru_forward(x, None, w_ih, w_hh, tape=False, last_only=True)
""",
    "linear, forward": """
layer, x = fastbptt.Linear(2048, 2048, rng=0), np.ones((20_000, 2048))
def long_call(): layer(x)
""",
    "linear, backward": """
layer, x = fastbptt.Linear(2048, 2048, rng=0), np.ones((6000, 2048))
y = layer(x)
def long_call(): layer.backward(y)
""",
    "losses, one after the other": """
logits, targets = np.zeros((1000, 20_000), np.float32), np.zeros(1000, int)
def long_call(): fastbptt.softmax_cross_entropy(logits, targets)
""",
    "norm of any order": """
g = np.ones(60_000_000, np.float32)
def long_call(): fastbptt.total_norm(g, 3)
""",
    "optimiser steps, one after the other": """
params, grads = np.zeros(10_000_000, np.float32), np.ones(10_000_000, np.float32)
optimiser = fastbptt.Adam(params)
def long_call(): optimiser.step(grads)
""",
}
INTERRUPTED = """
import fastbptt, numpy as np, signal, time
from problems import random_problem
signal.alarm(120)  # the end of a process that hangs
problem = random_problem("rnn-tanh", 20, 5, 6, 7)
expected = problem.results(fastbptt)
rng = np.random.default_rng(0)
%s
for threads in (1, 2):
    fastbptt.set_num_threads(threads)
    print("ready", flush=True)
    try:
        long_call()  # Python 3.11 looks for the handler of what comes at a loop's jump one instruction before the loop
        while True: long_call()
    except KeyboardInterrupt:
        print(time.process_time(), flush=True)
    again = problem.results(fastbptt)
    assert all(again[name].tobytes() == expected[name].tobytes() for name in expected)
big = random_problem("rnn-tanh", 100, 20, 30, 65)
assert np.isfinite(big.results(fastbptt)["d_w_hh"]).all()
print("and on")
"""


def processor_time(pid):
    """Seconds that a process has computed for; behind what is now by a tick at most."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@linux
@pytest.mark.parametrize("name", LONG_CALLS)
def test_ctrl_c_within_half_a_second(name):
    """Half a second of processor time for each thread, whatever else the machine does. The process is stopped to send the signal."""
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED % LONG_CALLS[name]],
        env=environment(**current_level()),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        try:
            for threads in (1, 2):
                assert child.stdout.readline() == "ready\n", child.stderr.read()[-3000:]
                time.sleep(0.15)
                child.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                sent = processor_time(child.pid)
                child.send_signal(signal.SIGINT)
                child.send_signal(signal.SIGCONT)
                interrupted = child.stdout.readline()
                assert interrupted, child.stderr.read()[-3000:]
                assert float(interrupted) - sent <= 0.5 * threads, f"{threads} threads"
            out = child.stdout.read()  # `communicate` would miss what has come with an earlier line
            assert child.wait(timeout=60) == 0, out + child.stderr.read()[-3000:]
        finally:
            child.kill()
    assert out == "and on\n"


CLIPS_AND_SIGNALS = """
import signal, sys
import fastbptt, numpy as np
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
fastbptt.set_num_threads(2)
every = np.full(1_040_001, {value})
grads = [every[:1_000_000], every[1_000_000:1_000_001], every[1_000_001:]]
cut = 0
for n in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-3 + 1e-4 * n, 10)  # once more, if the first is raised where Python ignores it
        while True:
            every.fill({value})
            {clip}
    except Alarm:
        cut += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert (every == every[0]).all()
assert cut == 60
"""


@posix
@pytest.mark.parametrize(
    ("value", "clip"),
    [
        (1.0, "fastbptt.clip_grad_norm_(grads, 1.0)"),
        (1e300, "fastbptt.clip_grad_norm_(grads, 1e-10)"),
        (1.0, "fastbptt.clip_grad_value_(grads, 0.5)"),
    ],
)
def test_gradients_are_clipped_all_or_none(value, clip):
    run_python(CLIPS_AND_SIGNALS.format(value=value, clip=clip))


@posix
def test_an_exception_in_a_signal_handler_comes_through():
    run_python(
        CALL
        + """
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
x, w = np.zeros((20_000, 1, 1)), np.zeros((1024, 1024))
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    fastbptt.rnn_forward(x, None, w[:, :1], w)
except Alarm:
    assert same(call())
    sys.exit(0)
sys.exit("no exception")
"""
    )


@posix
def test_a_harmless_signal_changes_nothing():
    run_python(
        CALL
        + """
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
for _ in range(100): assert same(call())
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(seen) >= 3
"""
    )


@linux
def test_python_shuts_down_while_a_daemon_thread_is_in_a_kernel():
    """Python then ends the thread where it asks for the GIL: that must not be where helpers still use what is on its stack."""
    run_python("""
import sys, threading, time, numpy as np, fastbptt
fastbptt.set_num_threads(2)
x, w_ih, w_hh = np.zeros((1500, 256, 8), "f"), np.ones((768, 8), "f"), np.full((768, 768), 1e-4, "f")
inside = threading.Event()

def deep(n):
    "A call far down the stack of C functions, whose pages are given back once the thread has ended."
    return list(map(deep, [n - 1])) if n else fastbptt.rnn_forward(x, None, w_ih, w_hh)

def work():
    inside.set()
    while True:
        deep(60)

class Slow:
    "What makes a shutdown last."
    def __del__(self, sleep=time.sleep):
        sleep(0.5)

threading.Thread(target=work, daemon=True).start()
inside.wait()
sys.slow = Slow()
time.sleep(0.5)
""")


@pytest.fixture
def polite():
    """With a long switch interval, a thread gets the GIL only where another releases it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("n", [1, 2])
def test_the_gil_is_released(n, threads, polite):
    """Another Python thread counts on while a call is under way; on a busy machine, perhaps not during each."""
    threads(n)
    x, w_hh = np.zeros((2500, 1, 1)), np.zeros((1024, 1024))
    w_ih, stop, count, inside = np.zeros((1024, 1)), threading.Event(), 0, 0

    def work():
        nonlocal count
        while not stop.wait(0.002):
            count += 1

    counter = threading.Thread(target=work, daemon=True)
    counter.start()
    for _ in range(20):
        before = count
        fastbptt.rnn_forward(x, None, w_ih, w_hh)
        inside += count - before
        if inside >= 5:
            break
    stop.set()
    counter.join()
    assert inside >= 5


# --- Threads ----------------------------------------------------------------------------------------------------------


@linux
def test_import_starts_no_thread():
    code = """
import os, numpy
before = len(os.listdir("/proc/self/task"))
import fastbptt
assert len(os.listdir("/proc/self/task")) == before
fastbptt.set_num_threads(3)
assert len(os.listdir("/proc/self/task")) == before
from problems import random_problem
random_problem("rnn-tanh", 2, 2, 2, 2).results(fastbptt)
assert len(os.listdir("/proc/self/task")) == before, "a small call started a thread"
for _ in range(20): random_problem("rnn-tanh", 100, 20, 30, 65).results(fastbptt)
assert before < len(os.listdir("/proc/self/task")) <= before + 2
"""
    run_python(code)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_affinity_is_respected():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import fastbptt; print(fastbptt.get_num_threads())"
    assert run_python(code).strip() == "1"


@pytest.mark.parametrize(("asked", "expected"), [("1", 1), ("3", 3), (" 2 ", 2), ("256", 256)])
def test_threads_from_the_environment(asked, expected):
    code = "import fastbptt; print(fastbptt.get_num_threads(), fastbptt.show_config(mode='dicts')['num_threads_reason'])"
    assert run_python(code, FASTBPTT_NUM_THREADS=asked).split() == [str(expected), f"FASTBPTT_NUM_THREADS={asked.strip()}"]


@pytest.mark.parametrize("asked", ["0", "-3", "1.5", "two", "257", "1099511627776"])
def test_bad_threads_in_the_environment(asked):
    result = run_python("import fastbptt", FASTBPTT_NUM_THREADS=asked, check=False)
    assert result.returncode == 1
    assert f"ImportError: FASTBPTT_NUM_THREADS: expected a number of threads from 1 to 256, got '{asked}'" in result.stderr


class AsIndex:
    """An index that as a number is another, and too large."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value

    def __int__(self):
        return 100_000


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n: expected 1 to 256 threads, got 0"),
        (-3, ValueError, "n: expected 1 to 256"),
        (2**40, ValueError, "n: expected 1 to 256"),
        (2**70, ValueError, "n: expected 1 to 256"),
        (1.5, TypeError, "n: expected an int, got float"),
        ("2", TypeError, "n: expected an int, got str"),
        (None, TypeError, "n: expected an int, got NoneType"),
        (True, TypeError, "n: expected an int, got bool"),
        (2.0, TypeError, "n: expected an int"),
        (np.array([2, 3]), TypeError, "n: expected an int, got ndarray"),
        (np.float64(2), TypeError, "n: expected an int, got float64"),
        (AsIndex(300), ValueError, "n: expected 1 to 256 threads, got 300"),
        (AsIndex("2"), TypeError, "n: expected an int, got AsIndex"),
    ],
)
def test_bad_thread_counts(n, error, message):
    before = fastbptt.get_num_threads()
    with pytest.raises(error, match=message):
        fastbptt.set_num_threads(n)
    assert fastbptt.get_num_threads() == before


@pytest.mark.parametrize("n", [np.int64(3), np.array(3), AsIndex(3)], ids=["int64", "0-d array", "index"])
def test_thread_count_may_be_anything_that_is_an_index(n, threads):
    threads(n)
    assert fastbptt.get_num_threads() == 3


def test_more_threads_than_rows(threads):
    problem = random_problem("rnn-tanh", 200, 2, 20, 40)
    threads(1)
    expected = problem.results(fastbptt)
    threads(256)
    for name, value in problem.results(fastbptt).items():
        assert_same_bits(name, value, expected[name])


@contextmanager
def flushing():
    """Subnormal numbers are 0 in this thread, as `torch.set_flush_denormal` has it."""
    libm, environment = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 16)()
    assert libm.fegetenv(environment) == 0
    usual = environment[7]
    try:
        environment[7] |= 0x8040  # glibc keeps MXCSR there: flush results, and take arguments as 0
        assert libm.fesetenv(environment) == 0
        yield
    finally:
        environment[7] = usual
        libm.fesetenv(environment)


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="knows where glibc keeps MXCSR")
def test_helpers_round_and_flush_as_their_caller(threads):
    x, w_ih, w_hh = np.zeros((160, 64, 4), np.float32), np.zeros((64, 4), np.float32), np.eye(64, dtype=np.float32) / 2

    def decay(n):
        threads(n)
        return fastbptt.rnn_forward(x, np.ones((64, 64), np.float32), w_ih, w_hh, nonlinearity="identity")[0]

    expected = decay(1)
    assert (expected[135] > 0).all()
    for _ in range(5):
        assert_same_bits("out", decay(2), expected)
        with flushing():
            flushed, together = decay(1), decay(2)
        assert not flushed[135].any()
        assert_same_bits("out", together, flushed)


@linux
def test_threads_that_cannot_be_started_are_done_without():
    """Room for arrays, none for the stack of a thread: 256 MB, as long as the process starts with that limit."""
    code = (
        """
import os, resource, sys
if "again" not in sys.argv:
    resource.setrlimit(resource.RLIMIT_STACK, (256 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    os.execv(sys.executable, [*sys.orig_argv, "again"])
"""
        + CALL.replace("expected = call()", "expected = call(1)")
        + """
with open("/proc/self/statm") as file: pages = int(file.read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
before = len(os.listdir("/proc/self/task"))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for _ in range(3): assert same(call(4))
assert len(os.listdir("/proc/self/task")) == before, "the limit left room for a thread: the test shows nothing"
"""
    )
    run_python(code)


@linux
def test_helpers_have_stack_enough_where_threads_usually_have_little():
    """As with musl and on macOS: here threads get 256 KB, since the process starts with that limit."""
    code = (
        """
import os, resource, sys
if "again" not in sys.argv:
    resource.setrlimit(resource.RLIMIT_STACK, (256 << 10, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    os.execv(sys.executable, [*sys.orig_argv, "again"])
"""
        + CALL.replace("expected = call()", "expected = call(1)")
        + """
from collections import Counter
def stacks():
    "The sizes, in KB, of what is mapped in pieces of a thread's size: of at most 4 MB, and right behind a page that is a guard."
    found, before = [], None
    with open("/proc/self/maps") as file:
        for line in file:
            where, rights = line.split()[:2]
            start, end = (int(address, 16) for address in where.split("-"))
            if rights == "rw-p" and before == ("---p", start) and end - start <= 4 << 20:
                found.append((end - start) >> 10)
            before = rights, end
    return found
before = stacks()
call(4)
made = Counter(stacks()) - Counter(before)
assert sum(made.values()) >= 3 and all(size >= 1000 for size in made), made
"""
    )
    run_python(code)


def test_the_thread_count_may_change_while_a_call_runs():
    """In a process of its own: scratch memory made for one number of threads and used by another would end it."""
    run_python(
        CALL
        + """
stop = False
sys.setswitchinterval(1e-5)
def change():
    n = 0
    while not stop:
        fastbptt.set_num_threads(1 + n % 2 * 63)
        n += 1
thread = threading.Thread(target=change)
thread.start()
end = time.monotonic() + 3
layer = fastbptt.Linear(300, 100, rng=0)
x = np.ones((200, 300))
try:
    while time.monotonic() < end:
        assert same(problem.results(fastbptt))
        layer.backward(layer(x))
finally:
    stop = True
    thread.join()
"""
    )


# --- Memory -----------------------------------------------------------------------------------------------------------


@linux
def test_memory_does_not_grow():
    code = """
import fastbptt, gc, numpy as np, resource
from problems import random_problem
problem = random_problem("rnn-tanh", 6, 3, 8, 16)
tokens = random_problem("rnn-tanh", 6, 3, 8, 16, tokens=True)
layer, readout = fastbptt.RNN(8, 16, rng=0), fastbptt.Linear(16, 9, rng=0)
optimiser = fastbptt.Adam([layer, readout])
reader = fastbptt.TruncatedBPTT(layer, 12, 6)
targets = np.zeros((6, 3), int)
def everything():
    problem.results(fastbptt)
    tokens.results(fastbptt)
    out = reader.forward(problem.x)
    loss, d_logits = fastbptt.softmax_cross_entropy(readout(out), targets)
    reader.backward(readout.backward(d_logits))
    fastbptt.clip_grad_norm_([layer, readout], 0.1)
    fastbptt.clip_grad_value_([layer, readout], 0.1)
    optimiser.step()
    for bad in (lambda: fastbptt.rnn_forward(problem.x[0], *([problem.w_hh] * 3)), lambda: fastbptt.clip_grad_norm_([np.ones(3), None], 1),
                lambda: fastbptt.clip_grad_norm_(np.array([np.nan]), 1), lambda: readout(problem.x)):
        try: bad()
        except (TypeError, ValueError, FloatingPointError): pass
        else: raise AssertionError
def resident():
    gc.collect()
    with open("/proc/self/statm") as file: return int(file.read().split()[1]) * resource.getpagesize()
for _ in range(500): everything()
before = resident()
for _ in range(3000): everything()
grown = resident() - before
assert grown < 2 << 20, grown
"""
    run_python(code)


@linux
def test_a_large_result_is_given_back():
    code = """
import fastbptt, numpy as np, resource
x, w = np.zeros((400, 50, 8)), np.zeros((64, 64))
def resident():
    with open("/proc/self/statm") as file: return int(file.read().split()[1]) * resource.getpagesize()
for n in range(30):
    out, _, tape = fastbptt.rnn_forward(x, None, w[:, :8].copy(), w)
    fastbptt.rnn_backward(tape, out)
    if n == 4: before = resident()
assert resident() - before < 30 << 20
"""
    run_python(code)


# Workspaces of two sizes fail: one larger, one smaller than what the library keeps between calls.
NO_ROOM = (
    CALL
    + """
import resource
def leave(room):
    with open("/proc/self/statm") as file: pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, resource.RLIM_INFINITY))
def expect_memory_error(work):
    try: work()
    except MemoryError: return
    raise SystemExit("no MemoryError")
"""
)


@linux
@pytest.mark.parametrize("H", [1200, 2500])
def test_no_memory_for_a_workspace(H):
    run_python(
        NO_ROOM
        + f"""
w = np.zeros(({H}, {H}))
x = np.zeros((1, 1, 1))
small = random_problem("rnn-tanh")
right = small.results(fastbptt)
leave(4 << 20)
for _ in range(3): expect_memory_error(lambda: fastbptt.rnn_forward(x, None, w[:, :1], w))
for _ in range(3):
    again = small.results(fastbptt)
    assert all(again[name].tobytes() == right[name].tobytes() for name in right), "the next call"
leave(1 << 30)
fastbptt.rnn_forward(x, None, w[:, :1], w)
assert same(call())
"""
    )


@linux
def test_no_memory_for_the_results():
    run_python(
        NO_ROOM
        + """
x, w, h0 = np.zeros((100_000, 8, 1)), np.zeros((64, 64)), np.ones((8, 64))
out, _, tape = fastbptt.rnn_forward(x[:9], h0, w[:, :1], w)
layer = fastbptt.RNN(1, 64, rng=0)
leave(32 << 20)
expect_memory_error(lambda: fastbptt.rnn_forward(x, h0, w[:, :1], w))
expect_memory_error(lambda: layer(x))
assert not layer.flat_grads.any() and (h0 == 1).all()
fastbptt.rnn_backward(tape, np.ones_like(out))
layer(x[:9]); layer.backward(np.ones((9, 8, 64)))
assert layer.flat_grads.any() and same(call())
"""
    )


@pytest.mark.parametrize("order", ["numpy, torch, fastbptt", "fastbptt, torch"])
def test_next_to_torch(order):
    pytest.importorskip("torch")
    run_python(
        f"import {order}\n"
        + CALL
        + """
import torch
a = torch.ones(300, 300)
for _ in range(20):
    a @ a
    assert same(call())
"""
    )


def test_python_finds_the_helpers():
    """The other tests here depend on it."""
    assert PATH.split(os.pathsep)[0] == os.path.dirname(os.path.dirname(os.path.abspath(fastbptt.__file__)))
    assert run_python("import fastbptt; print(fastbptt.__file__)").strip() == fastbptt.__file__


SMALL_STACK = """
import threading
import fastbptt, numpy as np
from fastbptt._kernels import pool
fastbptt.set_num_threads(16)
rng = np.random.default_rng(0)
w, x = rng.standard_normal((512, 128)) / 10, rng.standard_normal((50, 16, 128))
got = []

def passes():
    out, _, tape = fastbptt.lstm_forward(x, None, w, w)
    got.append([out, fastbptt.lstm_backward(tape, out).w_hh, fastbptt.lstm_jvp(tape, x=x)[0]])

passes()
threading.stack_size(32768)  # the smallest that Python takes
for cost in (20, 0):  # 0: it is measured
    pool.assume_step_cost(cost)
    thread = threading.Thread(target=passes)
    thread.start()
    thread.join()
assert len(got) == 3 and all(a.tobytes() == b.tobytes() for other in got[1:] for a, b in zip(got[0], other))
"""


@pytest.mark.one_level
def test_threads_with_small_stacks():
    run_python(SMALL_STACK)


FORKS_AND_CALLS = """
import os, signal, sys
import fastbptt, numpy as np
from fastbptt._kernels import pool
fastbptt.set_num_threads(2)
pool.assume_step_cost(1)
rng = np.random.default_rng(0)
w = (rng.standard_normal((512, 128)) / 12).astype(np.float32)
long, short = (np.ones((T, 1, 128), np.float32) for T in (60_000, 1000))
children = []

def handler(*_):
    children.append(os.fork())
    if not children[0]:
        fastbptt.lstm_forward(short, None, w, w)

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.03)
try:
    while not children:
        fastbptt.lstm_forward(long, None, w, w)
except RuntimeError as error:
    assert not children[0] and "has forked" in str(error)
    fastbptt.lstm_forward(short, None, w, w)
    os._exit(0)
if not children[0]:
    os._exit(0)  # the signal came between two calls
assert os.waitpid(children[0], 0)[1] == 0
"""


@pytest.mark.one_level
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_signal_handler_that_forks_and_calls_in_the_child():
    """While threads share the steps of the call that it has interrupted."""
    run_python(FORKS_AND_CALLS)
