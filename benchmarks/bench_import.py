"""Time of ``import fastbptt`` on top of NumPy's: fresh interpreters in turn, medians of CPU time, which a busy machine hardly lengthens."""

import argparse
import subprocess
import sys

from timing import medians

PACKAGES = ("numpy", "fastbptt", "torch", "jax")
CHILD = """
import importlib.util, time
start = time.process_time()
if importlib.util.find_spec({package!r}):
    import {package}
    print(time.process_time() - start)
"""


def import_seconds(package):
    """What a fresh interpreter takes to import a package; None if it is not there."""
    done = subprocess.run([sys.executable, "-c", CHILD.format(package=package)], capture_output=True, text=True, check=True)
    return float(done.stdout) if done.stdout else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--packages", nargs="+", choices=PACKAGES[1:], default=PACKAGES[1:2], help="beside NumPy (default: fastbptt)")
    options = parser.parse_args()
    packages = [package for package in ("numpy", *options.packages) if import_seconds(package) is not None]
    samples = {package: [] for package in packages}
    for _ in range(options.rounds):
        for package in packages:
            samples[package].append(import_seconds(package))
    milliseconds = {package: s * 1e3 for package, s in medians(samples).items()}
    for package, ms in milliseconds.items():
        print(f"import {package:9} {ms:8.1f} ms" + (f", adds {ms - milliseconds['numpy']:.1f} to NumPy's" if package != "numpy" else ""))


if __name__ == "__main__":
    main()
