"""Does `fastbptt train` lose anything when it is killed? Runs are killed at random moments, under disturbances, and resumed to their end.

    python benchmarks/kill_training.py                      # 100 kills, in five to fifteen minutes
    python benchmarks/kill_training.py --kills 10 --seed 3

A run saves after every update, and is killed (or told to end by a signal) until one attempt comes to its end. Those kills count that came
when the attempt had saved something, so that it was training; the others came while it started, ended or was refused. Each attempt is disturbed in
one way: its standard output is closed, full or not read; the disk is full; the same command is started twice at once; or it is told to
write where another run has been. After each, the checkpoint must load and have no fewer updates than before, and the other run's files must
be what they were. In the end the checkpoint must be that of a run that nobody disturbed, to the last byte, with nothing beside it that a
kill has left. The exit status is 1 if anything is otherwise.

The disk that fills up is a small tmpfs, which takes root; without it, files may not grow beyond a size that the checkpoint exceeds.
"""

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

from fastbptt.app.train.checkpoint import load_checkpoint

TEXT = "Whatever happens, either the old content or the new one is found there. " * 40
NET = ["--hidden", "24", "--batch", "4", "--seq-len", "20", "--no-plot", "--sample", "50", "--save-every", "0", "--threads", "1"]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
STATUSES = {0, 1, 2, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS[3:])}
DISK = 1 << 20  # bytes
SMALL_FILE = 8192  # bytes: less than any checkpoint
LONGEST = 120  # seconds for an attempt that is not killed
HASTE = 0.02  # seconds until a run that has met a full disk is killed, unless it ends before
DISTURBANCES = ("none", "output closed", "output full", "output unread", "disk full", "two at once", "another run's directory")


def train(*arguments, **how):
    """A process of its own."""
    command = [sys.executable, "-m", "fastbptt", "train", *map(str, arguments)]
    return subprocess.Popen(command, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | how)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@contextmanager
def small_disk(path):
    """Whether a file system of `DISK` bytes could be mounted there."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", path], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", path], check=True)  # a child that was left may be at work there


class Trial:
    """Runs that are killed and resumed, and what became of them.

    Parameters
    ----------
    scratch : path
    updates : int
        The length of a run.
    rng : random.Random
    """

    def __init__(self, scratch, updates, rng):
        self.disk, self.other, self.text = scratch / "disk", scratch / "other", scratch / "text.txt"
        self.updates, self.rng = updates, rng
        self.tally, self.faults = Counter(), []
        self.text.write_text(TEXT)
        self.start, self.others = self.undisturbed(self.other, 1, "--seed", 7)
        self.seconds, self.whole = self.undisturbed(self.disk / "whole", updates)
        self.remove(self.disk / "whole")

    def undisturbed(self, folder, updates, *options):
        """How long a run takes, and its files."""
        start = time.monotonic()
        assert train(self.text, *NET, *options, "--updates", updates, "--out", folder).wait() == 0
        return time.monotonic() - start, contents(folder)

    def remove(self, folder):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def story(self, kills, mounted):
        """One run, from its beginning to its end; how often it was killed while it trained, at most so many times."""
        folder, reached, killed = self.disk / "run", 0, 0
        while True:
            disturbance = self.rng.choice(DISTURBANCES)
            statuses, signalled = self.attempt(folder, disturbance, mounted, deadly=killed < kills)
            self.require(set(statuses) <= STATUSES, f"{disturbance}: ended with {statuses}")
            before, reached = reached, self.progress(folder, reached, disturbance)
            trained = signalled and reached > before
            killed += trained
            end = "ended by itself" if not signalled else "killed" if trained else "killed before it trained"
            self.tally[f"{end}: {disturbance}"] += 1
            self.require(contents(self.other) == self.others, f"{disturbance}: the other run's files have changed")
            if 0 in statuses or (1 in statuses and disturbance.startswith("output")) or len(self.faults) > 20:
                break
        same = contents(folder) == self.whole
        self.require(same, f"in the end there are {sorted(contents(folder))}, or other numbers")
        self.tally["runs to the same bytes"] += same
        self.remove(folder)
        return killed

    def attempt(self, folder, disturbance, mounted, deadly):
        """Start or resume it, disturb it, kill it if ``deadly``: the exit statuses, and whether a signal came before they were there."""
        goes_on = (folder / "checkpoint.safetensors").exists()
        arguments = ["--resume", folder, "--no-plot", "--sample", 50, "--save-every", 0] if goes_on else [self.text, *NET]
        arguments += ["--updates", self.updates, "--out", self.other if disturbance.startswith("another") else folder]
        how = {}
        if disturbance == "output closed":
            how = {"preexec_fn": lambda: os.close(1)}
        elif disturbance == "output full" and os.path.exists("/dev/full"):
            how = {"preexec_fn": lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1)}
        elif disturbance == "output unread":
            how = {"stdout": subprocess.PIPE}
        elif disturbance == "disk full" and not mounted:
            how = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, SMALL_FILE))}
        begin = time.monotonic()
        processes = [train(*arguments, **how) for _ in range(2 if disturbance == "two at once" else 1)]
        if disturbance == "output unread":
            processes[0].stdout.close()
        moment, number = self.rng.uniform(0.5 * self.start, 1.1 * self.seconds), self.rng.choice(SIGNALS)
        if disturbance == "disk full" and mounted:
            self.wait(processes, self.rng.uniform(0.5 * self.start, moment))
            self.fill()
            moment = time.monotonic() - begin + self.rng.uniform(0, HASTE)
        self.wait(processes, moment - (time.monotonic() - begin) if deadly else LONGEST)
        alive = [process for process in processes if process.poll() is None]
        for process in alive:
            process.send_signal(number)
        statuses = [process.wait(LONGEST) for process in processes]
        self.require(deadly or not alive, f"{disturbance}: not at its end after {LONGEST} s")
        (self.disk / "ballast").unlink(missing_ok=True)
        return statuses, bool(alive)

    def wait(self, processes, seconds):
        """Until they have all ended, but not longer than this."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(0.005)

    def fill(self):
        with suppress(OSError), open(self.disk / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(512))

    def progress(self, folder, reached, disturbance):
        """How many updates the checkpoint has; never fewer than before."""
        path = folder / "checkpoint.safetensors"
        if not path.exists():
            self.require(reached == 0, f"{disturbance}: the checkpoint is gone")
            return 0
        try:
            updates = load_checkpoint(path)[0]["training.losses"].size
        except ValueError as error:
            self.require(False, f"{disturbance}: {error}")
            return reached
        self.require(updates >= reached, f"{disturbance}: back from update {reached} to {updates}")
        self.tally["checkpoints loaded"] += 1
        return updates

    def require(self, true, otherwise):
        if not true:
            self.faults.append(otherwise)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--updates", type=int, default=2000, help="length of a run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the disk is unmounted
    with tempfile.TemporaryDirectory() as scratch, small_disk(Path(scratch) / "disk") as mounted:
        trial = Trial(Path(scratch), options.updates, random.Random(options.seed))
        print(
            f"an undisturbed run takes {trial.seconds:.1f} s, {trial.start:.1f} s of it to start; the disk that fills up is {'a tmpfs' if mounted else 'a limit on files'}"
        )
        killed = 0
        while killed < options.kills and not trial.faults:
            killed += trial.story(options.kills - killed, mounted)
            print(f"{killed} kills", flush=True)
    for what, count in sorted(trial.tally.items()):
        print(f"{what:50} {count:4}")
    print("\n".join(trial.faults) or "nothing was lost")
    return 1 if trial.faults else 0


if __name__ == "__main__":
    sys.exit(main())
