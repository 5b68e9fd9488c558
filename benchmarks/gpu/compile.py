"""Compilation, in threads, of the kernels of LeNet-5, the MLP and recurrent networks."""

from __future__ import annotations

import time

import numpy as np

from xbp import nn, optim
from xbp.accelerators.cuda.ahead import Program, compile_ahead, programs
from xbp.benchmarks.networks import input_shape, make_model
from xbp.benchmarks.workloads import NEXT, WORKLOADS

LEFT_OUT = NEXT.keys() - {"lstm", "gru"}
"""Training steps whose many programs would take too long."""


def wanted() -> list[Program]:
    """The kernels of their training steps at each batch size, with labels of 8 or 64 bits."""
    found: dict[Program, set[str]] = {}
    for name, workload in WORKLOADS.items():
        if workload.model and workload.kind == "train" and name not in LEFT_OUT:
            for size in {*workload.sizes, 128}:
                for labels in ("uint8", "int64"):
                    found |= programs(lambda: step(workload.model, size, labels))  # noqa: B023
    return list(found)


def step(description: list[object], batch: int, labels: str) -> None:
    """Forward, loss, backward and update with arrays of zeros."""
    model = make_model(*description, rng=0)  # type: ignore[arg-type]
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    x = np.zeros((batch, *input_shape(*description)), "float32")
    logits, backward = model.forward(x, training=True, rng=0)
    _, gradient = nn.CrossEntropyLoss()(logits, np.zeros(batch, labels))
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
