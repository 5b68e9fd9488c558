"""Which bits of a training depend on threads and processor: measured, for docs/stability.md.

    python tests/bits.py

trains small networks for some steps in processes of their own, with 1, 2 and 3 threads (of the
kernels and of the BLAS), with the kernels of each level that this processor has, and without.
Prints for each network whether all bits of the parameters are those of one thread, or the largest
difference relative to the largest parameter; the difference of each level from the first; and for
comparison the largest difference of five trainings whose initial weights were moved by one unit in
the last place, up or down at random: what is not much more is rounding that the training made grow.

Then the same with XBP_REPRODUCIBLE=1: 2 and 3 threads, and a processor without AVX-512, where this
one has it (numpy and OpenBLAS are told to use the code that they have for such); and how much
longer a step takes with it, in processor time. Exit status 1 if one run, repeated, gives other
bits, or if any bit differs here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
STEPS, BATCH, DRAWS = 8, 48, 5
TIME = "time of "
WITHOUT_AVX512 = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Haswell",
}
Arrays = dict[str, NDArray[Any]]


def networks(moved: int) -> Arrays:
    """The parameters of each network after its training, one after the other.

    Initial weights are moved by a unit in the last place with `moved` as the seed, or 0 for none.
    """
    import xbp
    from xbp import nn, optim

    draw = np.random.default_rng(0)
    images = draw.normal(size=(BATCH, 1, 28, 28)).astype(np.float32)
    rows, texts = images.reshape(BATCH, 28, 28), draw.integers(0, 16, size=(BATCH, 12))
    labels = draw.integers(0, 10, size=BATCH)
    found = {}
    for name, model, x in (
        ("LeNet-5", xbp.models.LeNet5(rng=0), images),
        ("MLP of 32", xbp.models.MLP(784, 32, 10, rng=0), images.reshape(BATCH, 784)),
        ("MLP of 600", xbp.models.MLP(784, 600, 10, rng=0), images.reshape(BATCH, 784)),
        ("LSTM", nn.Sequential(nn.LSTM(28, 40, rng=0), nn.LastTimeStep(), nn.Linear(40, 10, rng=1)),
         rows),
        ("GPT", xbp.models.GPT(16, context=12, width=32, heads=2, layers=2, rng=0), texts),
    ):  # fmt: skip
        is_gpt, up = name == "GPT", np.random.default_rng(moved)
        for p in model.parameters() if moved else ():
            p.data[...] = np.nextafter(p.data, up.choice([-9, 9], p.data.shape), dtype=np.float32)
        loss = xbp.models.gpt.NextTokenLoss() if is_gpt else nn.CrossEntropyLoss()
        optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
        times = []
        for _ in range(STEPS):
            times.append(time.thread_time())
            y, backward = model.forward(x, training=True, rng=None)
            _, gradient = loss(y, texts if is_gpt else labels)
            backward(gradient)
            optimizer.step()
            optimizer.zero_grad()
        found[f"{TIME}{name}"] = np.min(np.diff(times))
        found[name] = np.concatenate([np.ravel(p.data) for p in model.parameters()])
    return found


def trained(threads: int = 1, level: str = "", moved: int = 0, **variables: str) -> Arrays:
    """The same from a process with so many threads, and the kernels of a level."""
    counts = ("XBP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(counts, str(threads)) | variables
    if level:
        environment["XBP_ACCELERATE"] = level
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "found.npz")
        command = [sys.executable, __file__, str(path), str(moved)]
        subprocess.run(command, env=environment, check=True)
        with np.load(path) as file:
            return {name: file[name] for name in file}


def difference(a: NDArray[Any], b: NDArray[Any]) -> str:
    """The largest difference, relative to the largest number."""
    if np.array_equal(a, b):
        return "the same bits"
    return f"{np.max(np.abs(a - b)) / np.max(np.abs(a)):.1e}"


def main() -> int:
    from xbp.accelerators.cpu import build, native

    features = native._features()
    levels = [
        level
        for level in native.LEVELS
        if level in build.levels() and all(features.get(name) for name in native.LEVELS[level])
    ]
    first = trained(level=levels[0])
    again = trained(level=levels[0])
    names = [name for name in first if not name.startswith(TIME)]
    repeats = all(np.array_equal(first[name], again[name]) for name in names)
    columns = [(f"{count} threads", trained(count, levels[0])) for count in (2, 3)]
    columns += [(level, trained(level=level)) for level in levels[1:]]
    columns.append(("references", trained(level="0")))
    moved = [trained(level=levels[0], moved=seed) for seed in range(1, 1 + DRAWS)]
    most = {
        name: max((run[name] for run in moved), key=lambda run: np.max(np.abs(run - first[name])))
        for name in names
    }
    table(f"{levels[0]}, 1 thread, against", first, [*columns, ("1 ulp", most)])
    sys.stdout.write(f"repeated: {'the same bits' if repeats else 'OTHER BITS'}\n\n")

    usual, first = first, trained(XBP_REPRODUCIBLE="1")
    columns = [(f"{count} threads", trained(count, XBP_REPRODUCIBLE="1")) for count in (2, 3)]
    if levels[0] == "avx512":
        columns.append(("no AVX-512", trained(XBP_REPRODUCIBLE="1", **WITHOUT_AVX512)))
    table("XBP_REPRODUCIBLE=1, 1 thread, against", first, columns)
    for name in names:
        ratio = first[TIME + name] / usual[TIME + name]
        sys.stdout.write(f"a step of {name}: {ratio:.2f} times as long as without\n")
    fits = all(np.array_equal(first[name], other[name]) for _, other in columns for name in names)
    return int(not (repeats and fits))


def table(title: str, first: Arrays, columns: list[tuple[str, Arrays]]) -> None:
    """Print how each column differs from the first run."""
    sys.stdout.write(f"{title}\n{'':12}{''.join(f'{name:>16}' for name, _ in columns)}\n")
    for name in (name for name in first if not name.startswith(TIME)):
        cells = "".join(f"{difference(first[name], other[name]):>16}" for _, other in columns)
        sys.stdout.write(f"{name:12}{cells}\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        np.savez(sys.argv[1], **networks(int(sys.argv[2])))
        sys.exit(0)
    sys.exit(main())
