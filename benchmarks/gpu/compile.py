"""Compilation, in threads, of the kernels of the benchmarks' training steps."""

from __future__ import annotations

import time

import numpy as np

from xbp import nn, optim
from xbp.accelerators.cuda.ahead import Program, compile_ahead, programs
from xbp.benchmarks.networks import NETWORKS, input_shape, make_model
from xbp.benchmarks.workloads import NEXT, WORKLOADS

LEFT_OUT = NEXT.keys() - {"lstm", "gru", "resnet20", "fastcifar", "gpt"}
"""Training steps whose many programs would take too long."""


def wanted() -> list[Program]:
    """The kernels of their training steps at each batch size, with labels of 8 or 64 bits."""
    found: dict[Program, set[str]] = {}
    for name, workload in WORKLOADS.items():
        if workload.model and workload.kind == "train" and name not in LEFT_OUT:
            for size in {*workload.sizes, *(() if name in NEXT else (128,))}:
                for labels in ("uint8", "int64"):
                    found |= programs(lambda: step(workload.model, size, labels))  # noqa: B023
    return list(found)


def step(description: list[object], batch: int, labels: str) -> None:
    """Forward, loss, backward and update with arrays of zeros."""
    model = make_model(*description, rng=0)  # type: ignore[arg-type]
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    kind, shape = NETWORKS[description[0]], (batch, *input_shape(*description))  # type: ignore[index]
    text = kind.data == "text"
    x = np.zeros(shape, "int64" if text else "float32")
    prediction, backward = model.forward(x, training=True, rng=0)
    _, gradient = kind.loss()(prediction, np.zeros(shape if text else batch, labels))
    nn.for_parameters(backward)(gradient)
    optimizer.step()


def main() -> None:
    start = time.perf_counter()
    needed = wanted()
    known = time.perf_counter()
    count = compile_ahead(needed)
    print(
        f"{count} programs compiled or found on disk in {time.perf_counter() - known:.1f} s, "
        f"after {known - start:.1f} s to know which"
    )


if __name__ == "__main__":
    main()
