"""Which bits of a training depend on threads and processor: measured, for docs/stability.md.

    python tests/bits.py

trains small networks for some steps in processes of their own, with 1, 2 and 3 threads (of the
kernels and of the BLAS), and with the kernels of each level that this processor has, and without.
Prints for each network whether all bits of the parameters are those of one thread, or the largest
difference relative to the largest parameter; and the difference of each level from the first. Exit
status 1 if one run, repeated, gives other bits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
STEPS, BATCH = 8, 48
Arrays = dict[str, NDArray[Any]]


def networks() -> Arrays:
    """The parameters of each network after its training, one after the other."""
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
        is_gpt = name == "GPT"
        loss = xbp.models.gpt.NextTokenLoss() if is_gpt else nn.CrossEntropyLoss()
        optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(STEPS):
            y, backward = model.forward(x, training=True, rng=None)
            _, gradient = loss(y, texts if is_gpt else labels)
            backward(gradient)
            optimizer.step()
            optimizer.zero_grad()
        found[name] = np.concatenate([np.ravel(p.data) for p in model.parameters()])
    return found


def trained(threads: int, level: str) -> Arrays:
    """The same from a process with so many threads, and the kernels of a level."""
    variables = ("XBP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(variables, str(threads)) | {"XBP_ACCELERATE": level}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "found.npz")
        subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True)
        with np.load(path) as file:
            return dict(file)


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
    first = trained(1, levels[0])
    again = trained(1, levels[0])
    repeats = all(np.array_equal(first[name], again[name]) for name in first)
    columns = [(f"{count} threads", trained(count, levels[0])) for count in (2, 3)]
    columns += [(level, trained(1, level)) for level in levels[1:]]
    columns.append(("references", trained(1, "0")))
    sys.stdout.write(f"{levels[0]}, 1 thread, against\n{'':12}")
    sys.stdout.write("".join(f"{title:>16}" for title, _ in columns) + "\n")
    for name in first:
        cells = "".join(f"{difference(first[name], other[name]):>16}" for _, other in columns)
        sys.stdout.write(f"{name:12}{cells}\n")
    sys.stdout.write(f"repeated: {'the same bits' if repeats else 'OTHER BITS'}\n")
    return int(not repeats)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        np.savez(sys.argv[1], **networks())
        sys.exit(0)
    sys.exit(main())
