"""The examples that go across machines, docs/train_ddp.py, train_mpi.py and fit_dask.py, in real processes. Time limits are for hangs."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from processes import PATIENCE, current_level, environment

DOCS = Path(__file__).parent.parent / "docs"
if not (DOCS / "train_ddp.py").exists():
    pytest.skip("this is not a checkout", allow_module_level=True)
pytestmark = pytest.mark.one_level
LIMIT = 300 * PATIENCE
UPDATES = 3
SETTINGS = {"OMP_NUM_THREADS": 1, "FASTBPTT_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "lo"}
# Open MPI's, for root in a container, and for two ranks on one core
SETTINGS |= {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1, "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}


@pytest.fixture
def start():
    """A function that starts a program; what still runs after the test, with all that it has started, is killed."""
    with ExitStack() as running:

        def start(*command, **variables):
            process = running.enter_context(
                subprocess.Popen(
                    [*map(str, command)],
                    env=environment(**(current_level() | SETTINGS | variables)),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
            running.callback(kill_all, process)
            return process

        yield start


def kill_all(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def finish(process, fails=False):
    """What it wrote on its standard error."""
    _, messages = process.communicate(timeout=LIMIT)
    assert (process.returncode != 0) == fails, messages
    return messages


def example(name, monkeypatch):
    """The program as a module."""
    monkeypatch.syspath_prepend(str(DOCS))
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def beside_python(name):
    """A program that a package brings, or the system."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def two_ranks(start, *options):
    """Two processes of train_ddp.py, started by hand as a cluster's scheduler would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(sys.executable, DOCS / "train_ddp.py", *options, RANK=rank, **shared) for rank in (0, 1)]


def test_what_the_page_quotes():
    """Its blocks of Python stand in the programs."""
    programs = [path.read_text() for path in (DOCS / "train_ddp.py", DOCS / "train_mpi.py", DOCS / "fit_dask.py")]
    quoted = re.findall(r"^```python\n(.*?)^```$", (DOCS / "machines.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(quoted) == 3
    for block, program in zip(quoted, programs):
        assert block in program


def test_torch_ddp(torch, monkeypatch, start, tmp_path):
    """Two processes, twice, by torchrun and by hand: the same bits. They are the gradients of the joined batch, in one process without DDP."""
    options = "--updates", UPDATES, "--timeout", LIMIT, "--out"
    module = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    finish(start(*module, DOCS / "train_ddp.py", *options, tmp_path / "first.npz"))
    for process in two_ranks(start, *options, tmp_path / "second.npz"):
        finish(process)
    first, second = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("first", "second"))
    assert first["gradients"].any(axis=1).all() and len(first["gradients"]) == UPDATES
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])

    ddp = example("train_ddp", monkeypatch)
    model = ddp.new_model()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for update in range(UPDATES):
        optimiser.zero_grad()
        error, steps = ddp.squared_error(model, list(ddp.batch(update)))
        (error / steps).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        np.testing.assert_allclose(first["gradients"][update], gradient, rtol=0, atol=1e-12 * float(gradient.abs().max()))
        np.testing.assert_allclose(first["losses"][update], float(error.detach()) / steps, rtol=1e-12)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimiser.step()
    assert not model.gru.fallbacks


@pytest.mark.parametrize(
    ("lost", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)], ids=["first", "second", "silent"]
)
def test_torch_ddp_that_loses_a_process(torch, start, lost, how):
    """The other ends with an error: soon after one is killed, and after the time that the program grants to one that is silent."""
    granted = 20 * PATIENCE if how == signal.SIGSTOP else LIMIT  # also for both to start
    ranks = two_ranks(start, "--updates", 10**9, "--timeout", granted)
    assert ranks[0].stdout.readline().startswith("update ")
    os.kill(ranks[lost].pid, how)
    assert "RuntimeError" in finish(ranks[1 - lost], fails=True)


@pytest.fixture
def mpi():
    """The command that starts two ranks. This process is not to become one: MPI itself is not imported."""
    pytest.importorskip("mpi4py")
    mpiexec = beside_python("mpiexec")
    if mpiexec is None:
        pytest.skip("mpi4py is there, but no mpiexec")
    return [mpiexec, "-n", 2, sys.executable, "-m", "mpi4py"]


def test_mpi_allreduce(mpi, start, tmp_path):
    """Twice: the same bits, on both ranks. They are the gradients of the joined batch, in one rank."""
    for run in "first", "second":
        finish(start(*mpi, DOCS / "train_mpi.py", "--updates", UPDATES, "--out", tmp_path / f"{run} *.npz"))
    finish(start(sys.executable, DOCS / "train_mpi.py", "--updates", UPDATES, "--out", tmp_path / "alone *.npz"))
    first, *others = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("first 0", "first 1", "second 0", "second 1"))
    alone = dict(np.load(tmp_path / "alone 0.npz"))
    assert first["gradients"].any(axis=1).all() and len(first["gradients"]) == UPDATES
    for name, values in first.items():
        for other in others:
            np.testing.assert_array_equal(values, other[name])
        np.testing.assert_allclose(values, alone[name], rtol=0, atol=1e-12 * abs(alone[name]).max())


def test_mpi_rank_that_raises(mpi, start):
    """All end, instead of waiting for it: this is what ``-m mpi4py`` is for."""
    code = "import sys, train_mpi as t\nif t.MPI.COMM_WORLD.rank: t.clip_grad_norm_ = None\nsys.argv = ['', '--updates', '2']\nt.main()"
    process = start(*mpi, "-c", code, PYTHONPATH=os.pathsep.join([environment()["PYTHONPATH"], str(DOCS)]))
    assert "'NoneType' object is not callable" in finish(process, fails=True)


def test_dask_fleet(monkeypatch, start, tmp_path):
    """Two worker processes fit nets to the bits that one call in this process has, of all nets at once."""
    pytest.importorskip("distributed")
    finish(start(sys.executable, DOCS / "fit_dask.py", "--updates", UPDATES, "--out", tmp_path / "fit.npz"))
    found = dict(np.load(tmp_path / "fit.npz"))
    dask = example("fit_dask", monkeypatch)
    losses, net = dask.fit(*dask.problem(), UPDATES)
    assert found.keys() == {"losses", *net} and losses.shape == (495,)
    for name, values in (net | {"losses": losses}).items():
        np.testing.assert_array_equal(found[name], values)


def test_dask_worker_that_is_killed(monkeypatch, start, tmp_path):
    """Its parts are fitted by another one, to the same bits."""
    pytest.importorskip("distributed")
    code = f"""
import os, signal, sys
import fit_dask

def fit(*arguments, fitted=fit_dask.fit, marker={str(tmp_path / "killed")!r}, **options):
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return fitted(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    fit_dask.fit = fit
    sys.argv = ["", "--updates", "1", "--out", {str(tmp_path / "fit.npz")!r}]
    fit_dask.main()
"""
    (tmp_path / "program.py").write_text(code)
    path = os.pathsep.join([environment()["PYTHONPATH"], str(DOCS)])
    finish(start(sys.executable, tmp_path / "program.py", PYTHONPATH=path))
    assert (tmp_path / "killed").exists()
    dask = example("fit_dask", monkeypatch)
    losses, _ = dask.fit(*dask.problem(), 1)
    np.testing.assert_array_equal(np.load(tmp_path / "fit.npz")["losses"], losses)
