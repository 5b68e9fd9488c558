"""The LeNet-5 training step, xbp beside PyTorch, in one process, round by round.

    python -m benchmarks.lenet5 [--batch 64 --batch 128] [--rounds 7] [--markdown FILE]

Both sides train the same network from the same weights with SGD on the same batches of MNIST, in
float32, on the same number of threads. In each round each side makes the same number of steps,
in turn; printed are the medians over the rounds and the median, least and largest ratio of
neighbouring rounds. PyTorch is eager; without it (``pip install torch==2.13.0``) xbp runs alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import xbp
from xbp import nn, optim

Step = Callable[[int], None]


def xbp_step(x: Any, y: Any, batch: int) -> Step:
    model, loss = xbp.models.LeNet5(rng=0), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01)

    def step(i: int) -> None:
        rows = slice(i * batch, (i + 1) * batch)
        logits, backward = model.forward(x[rows], training=True)
        _, gradient = loss(logits, y[rows])
        backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    return step


def torch_step(x: Any, y: Any, batch: int) -> Step:
    import torch
    from torch import nn as tnn

    model = tnn.Sequential(
        *(tnn.Conv2d(1, 6, 5, padding=2), tnn.ReLU(), tnn.MaxPool2d(2)),
        *(tnn.Conv2d(6, 16, 5), tnn.ReLU(), tnn.MaxPool2d(2), tnn.Flatten()),
        *(tnn.Linear(400, 120), tnn.ReLU(), tnn.Linear(120, 84), tnn.ReLU(), tnn.Linear(84, 10)),
    )
    state = xbp.models.LeNet5(rng=0).state_dict()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    loss = tnn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, labels = torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))

    def step(i: int) -> None:
        rows = slice(i * batch, (i + 1) * batch)
        optimizer.zero_grad()
        loss(model(images[rows]), labels[rows]).backward()
        optimizer.step()

    return step


def seconds(step: Step, steps: int) -> float:
    start = time.perf_counter()
    for i in range(steps):
        step(i)
    return time.perf_counter() - start


def measure(batch: int, rounds: int, sides: dict[str, Any], x: Any, y: Any) -> dict[str, Any]:
    steps = max(4, 4096 // batch)
    x, y = x[: steps * batch], y[: steps * batch]
    run = {name: make(x, y, batch) for name, make in sides.items()}
    for step in run.values():
        seconds(step, 2)  # warm up
    times = {name: [0.0] * rounds for name in run}
    for r in range(rounds):
        for name, step in run.items():
            times[name][r] = seconds(step, steps)
    images = steps * batch
    row: dict[str, Any] = {"batch": batch}
    row |= {name: images / statistics.median(values) for name, values in times.items()}
    if "PyTorch" in times:
        row["ratios"] = [t / own for t, own in zip(times["PyTorch"], times["xbp"], strict=True)]
    return row


def environment(sides: dict[str, Any]) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = [f"xbp {xbp.__version__} ({commit or 'no commit'})", f"numpy {np.__version__}"]
    if "PyTorch" in sides:
        import torch

        versions.append(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    machine = f"{os.cpu_count()} cores, {processor()}, Python {platform.python_version()}"
    return f"{', '.join(versions)}; {machine}; {datetime.date.today()}"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    options = parser.parse_args()

    sides: dict[str, Any] = {"xbp": xbp_step}
    try:
        import torch  # noqa: F401

        sides["PyTorch"] = torch_step
    except ImportError:
        print("PyTorch is not installed: xbp runs alone")
    (images, labels), _ = xbp.datasets.load_mnist()
    x = xbp.datasets.standardize_images(images[:10_000])

    lines = [
        "| batch | xbp, images/s | PyTorch eager, images/s | xbp / PyTorch (least, largest) |",
        "| --- | --- | --- | --- |",
    ]
    for batch in options.batch or [32, 64, 128, 512, 2048]:
        row = measure(batch, options.rounds, sides, x, labels)
        peer, ratio = "", ""
        if "ratios" in row:
            r = row["ratios"]
            peer = f"{row['PyTorch']:,.0f}"
            ratio = f"{statistics.median(r):.2f} ({min(r):.2f}, {max(r):.2f})"
        lines.append(f"| {batch} | {row['xbp']:,.0f} | {peer} | {ratio} |")
    table = "\n".join(lines)
    note = f"`python -m benchmarks.lenet5 --rounds {options.rounds}`: {environment(sides)}"
    print(f"{table}\n\n{note}")
    if options.markdown:
        text = f"# LeNet-5 training step on numpy\n\n{table}\n\n{note}\n"
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
