"""Softmax and cross-entropy, value and gradient."""

from __future__ import annotations

import ctypes
from typing import Any

from xbp.accelerators.cuda.last import parts_of_sum
from xbp.accelerators.cuda.launch import (
    REALS,
    blocks,
    dense,
    fits,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import Array

Task = structure(
    "Task",
    **dict.fromkeys(("logits", "weights", "labels", "gradient"), pointer),
    **dict.fromkeys(("partial", "total", "counters"), pointer),
    scale=ctypes.c_double,
    **dict.fromkeys(("n", "classes"), ctypes.c_int),
)
THREADS = 256  # as in cross_entropy.cu
FEW = 32
"""Up to this many classes, one thread does a whole sample."""
LABELS = {
    **{"int8": "signed char", "int16": "short", "int32": "int", "int64": "long long"},
    **{f"u{name}": f"unsigned {kind}" for name, kind in
       (("int8", "char"), ("int16", "short"), ("int32", "int"), ("int64", "long long"))},
}  # fmt: skip


def cross_entropy(logits: Array, target: Array, scale: float) -> Any:
    """See `xbp.primitives.cross_entropy`."""
    n, classes = logits.shape
    labelled = target.ndim == 1
    fitting = target.dtype.name in LABELS if labelled else fits(logits, target)
    if not fits(logits) or not fitting or target.shape != ((n,) if labelled else (n, classes)):
        return NotImplemented
    machine, dtype = machine_of(logits), logits.dtype
    logits, target = dense(logits), dense(target)
    lanes = 1 if classes <= FEW else 32 if classes <= 32 * FEW else THREADS
    count = blocks(n * lanes, THREADS)
    gradient = machine.empty((n, classes), dtype)
    loss = parts_of_sum(machine, (count, 1), dtype, 1, blocks(count, THREADS))
    task = Task(
        logits=machine.address(logits), gradient=machine.address(gradient),
        partial=machine.address(loss.partial), counters=loss.counters,
        total=None if loss.total is None else machine.address(loss.total),
        scale=scale, n=n, classes=classes,
        **{"labels" if labelled else "weights": machine.address(target)},
    )  # fmt: skip
    macros = {
        "real": REALS[dtype.name],
        "LABEL": LABELS.get(target.dtype.name, "int"),
        "LANES": lanes,
    }
    machine.launch(("cross_entropy.cu", "cross_entropy"), macros, (count, 1), THREADS, task)
    return loss.sum().reshape(()), gradient


ACCELERATORS = (cross_entropy,)
