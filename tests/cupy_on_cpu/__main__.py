"""CuPy itself, and xbp on it, on a CPU that refuses what a GPU would refuse.

    python tests/cupy_on_cpu                     build in a temporary folder, check, delete it
    python tests/cupy_on_cpu --folder ~/on_cpu   keep the folder: the second time is much shorter
    python tests/cupy_on_cpu --only checks       one of: checks, parity, recorded, tests
    python tests/cupy_on_cpu --only tests -- -k "cupy and losses"       options for pytest

It needs Linux on x86-64, a C++ compiler, `nm`, and a package index that has CuPy's wheel and sdist.
Building takes one or two minutes. CuPy's compiled code runs unchanged, except for one module, over
stand-ins for CUDA's libraries (listed in `build.py`). CuPy's kernels and xbp's are compiled from
their source for the CPU, when they are first used, and run by the kernels' emulation.

It shows what CuPy's host code accepts, refuses, waits for and copies; the results of kernels;
recorded training against eager training; two devices, and threads.

It cannot show:

- time: a kernel takes a thousand times as long, and nothing runs concurrently;
- races between streams: work is done at once, in the order of the host's calls (but in a capture,
  work of a second stream is done as late as the capture allows);
- NVRTC's verdict on the kernels, and registers, occupancy, alignment;
- a GPU's rounding: no FMA, no flushed subnormals, the host's exp and log, products in one order.
  Undefined behaviour of C (a float beyond an integer's range, an index beyond an array) is that of
  the host;
- CUB, cuSOLVER, cuFFT, cuRAND and NCCL, which return "not supported"; Thrust's sorts are numpy's.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path = [path for path in sys.path if Path(path) != Path(__file__).parent]
sys.path[:0] = [str(TESTS)]

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
STEPS = {
    "checks": (*PYTEST, "tests/cupy_on_cpu/checks.py"),
    "recorded": (*PYTEST, "tests/training/capture", "-k", "cupy"),
    "parity": ("-m", "xbp", "parity", "--backend", "cupy"),
    "tests": (*PYTEST, "-k", "cupy and not test_capture", "--xbp-require", "cupy"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to build, and what to use again")
    parser.add_argument("--only", choices=STEPS, action="append", help="this step; all by default")
    parser.add_argument("more", nargs="*", metavar="-- OPTION", help="more options for each step")
    options = parser.parse_args()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        parser.error("CuPy's wheels for Linux on x86-64 are needed; this is another machine")
    with tempfile.TemporaryDirectory(prefix="cupy-on-cpu-") as temporary:
        folder = (options.folder or Path(temporary)).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return check(folder, options.only or list(STEPS), options.more)


def check(folder: Path, steps: list[str], more: list[str]) -> int:
    """Build, and run these steps; returns the number of failures."""
    from cupy_on_cpu.build import build

    begun = time.monotonic()
    python = build(folder)
    told = [f"built in {time.monotonic() - begun:.0f} s in {folder}"]
    environment = {**os.environ, "CUDA_ON_CPU_DEVICES": "2"}
    failed = 0
    for step in steps:
        begun = time.monotonic()
        command = [str(python), *STEPS[step], *more]
        done = subprocess.run(command, cwd=TESTS.parent, env=environment, check=False)
        failed += done.returncode != 0
        verdict = "failed" if done.returncode else "passed"
        told.append(f"{step}: {verdict} in {time.monotonic() - begun:.0f} s")
    print("", *told, sep="\n")  # noqa: T201
    return failed


if __name__ == "__main__":
    sys.exit(main())
