"""All that is to be shown on a GPU, by one command; each part goes on whatever became of the last.

    python -m benchmarks.gpu [PART …] [--output benchmarks/results] [--quick]

Parts, with about what they take, and what they write into the folder (DEVICE as in nvidia_h200):

    info     seconds      gpu_info.txt                what is installed, and what is wrong with it
    parity   5 minutes    parity_cupy.md, .json       that CuPy computes what numpy does
    tests    15 minutes   gpu_tests.txt               the whole suite, CuPy required
    seeds    2 minutes    gpu_DEVICE_seeds.*          final accuracies beside numpy's
    step     10 minutes   gpu_DEVICE_sgemm_….*        LeNet-5 and the MLP beside the peers
    tf32     10 minutes   gpu_DEVICE_tf32_….*         the same in TF32
    bench    30 minutes   gpu_DEVICE.md, .json, .png  every benchmark

Without parts it does info, parity, tests, tf32 and bench, of which seeds and step are parts. The
times are guesses: none of this has been run on a GPU yet. With --backend numpy --quick it can be
tried anywhere.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
XBP = [sys.executable, "-c", "from xbp.cli import main; main()"]
STEP = ["sgemm", "copy", "launch", "lenet5-train", "mlp", "mlp-products"]
USUAL = ("info", "parity", "tests", "tf32", "bench")


def commands(backend: str, output: Path, quick: bool) -> dict[str, list[str]]:
    """The command of each part."""
    bench = [*XBP, "bench", "--backend", backend, "--output", str(output)]
    bench += ["--quick"] * quick
    only = ["--only", "Linear("] if quick else []
    tests = ["tests/test_backend.py"] if quick else []
    require = [] if quick else ["--xbp-require", backend]
    return {
        "info": [*XBP, "info"],
        "parity": [*XBP, "parity", "--backend", backend, "--output", str(output), *only],
        "tests": [sys.executable, "-m", "pytest", "-q", *require, *tests],
        "seeds": [*bench, "seeds"],
        "step": [*bench, *STEP],
        "tf32": [*bench, "--tf32", *STEP],
        "bench": bench,
    }


def run(part: str, command: list[str], output: Path) -> int:
    """Its exit status; what `info` and `tests` print goes into a file, too."""
    print(f"\n=== {part}: {' '.join(command[3:])}", flush=True)
    if part not in ("info", "tests"):
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    done = subprocess.run(
        command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    (output / f"gpu_{part}.txt").write_text(done.stdout, encoding="utf-8")
    print(done.stdout, end="")
    return done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--quick", action="store_true", help="only try that all of it works")
    options = parser.parse_args()
    output: Path = options.output.absolute()
    known = commands(options.backend, output, options.quick)
    for part in options.parts:
        if part not in known:
            parser.error(f"there is no part {part!r}; choose from {', '.join(known)}")
    output.mkdir(parents=True, exist_ok=True)
    ended: dict[str, str] = {}
    for part in options.parts or USUAL:
        start = time.perf_counter()
        status = run(part, known[part], output)
        seconds = time.perf_counter() - start
        ended[part] = f"{'done' if status == 0 else f'status {status}'}, {seconds:.0f} s"
        print(f"\n=== so far: {ended}", flush=True)  # an end may come at any time
    sys.exit(any(not how.startswith("done") for how in ended.values()))


if __name__ == "__main__":
    main()
