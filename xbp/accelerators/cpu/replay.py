"""Kernels as a recorded step calls them: with tasks, in C, one after the other."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native
from xbp.accelerators.cpu.arrays import Layout
from xbp.backend import RECORDING, NotMadeError

Real = NDArray[Any]
Pointer = ctypes.c_void_p


class DenseTask(ctypes.Structure):
    """`dense_task` in replay.h."""

    _fields_ = (
        ("layout", ctypes.POINTER(Layout)),
        ("list", Pointer),
        ("activations", ctypes.c_char_p),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("number", "threads", "backward")),
    )


class UpdateTask(ctypes.Structure):
    """`update_task` in replay.h."""

    _fields_ = (
        ("update", Pointer),
        ("layout", ctypes.POINTER(Layout)),
        *((name, Pointer) for name in ("list", "s", "t", "u")),
        *((name, ctypes.c_int) for name in ("number", "threads")),
    )


def adaptive_task(kind: Any) -> type[ctypes.Structure]:
    """`adaptive_task` in replay.h, for numbers of a ctypes type."""

    class AdaptiveTask(ctypes.Structure):
        _fields_ = (
            ("layout", ctypes.POINTER(Layout)),
            *((name, Pointer) for name in ("list", "rate", "scale", "eps")),
            ("betas", kind * 4),
            *((name, ctypes.c_int) for name in ("number", "threads")),
        )

    return AdaptiveTask


class PassTask(ctypes.Structure):
    """`pass_task` in replay.h."""

    _fields_ = (
        *((name, Pointer) for name in ("function", "to", "a", "b")),
        ("n", ctypes.c_int64),
        ("threads", ctypes.c_int),
    )


class ProductTask(ctypes.Structure):
    """`product_task` in replay.c."""

    _fields_ = (("function", Pointer), ("of", native.Product))


class CrossEntropyTask(ctypes.Structure):
    """`cross_entropy_task` in replay.h."""

    _fields_ = (
        *((name, Pointer) for name in ("logits", "labels", "gradient", "loss")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("n", "c")),
        ("threads", ctypes.c_int),
    )


class Table(ctypes.Structure):
    """`table` in replay.c."""

    _fields_ = (
        *((name, Pointer) for name in ("to", "source")),
        *((name, ctypes.c_int64) for name in ("bytes", "rows")),
    )


class RowsTask(ctypes.Structure):
    """`rows_task` in replay.c."""

    _fields_ = (
        ("tables", ctypes.POINTER(Table)),
        *((name, Pointer) for name in ("at", "order")),
        *((name, ctypes.c_int64) for name in ("length", "first", "step", "count", "of_tables")),
    )


class KernelCall:
    """A call of a kernel with a task, as one of the calls of a tape.

    Parameters
    ----------
    name : str
        Of the C function, which takes the task's address and returns 0 when done.
    task : ctypes object
    kept : object
        What the task points to.
    """

    def __init__(self, name: str, task: Any, kept: Any) -> None:
        self.name, self.task, self.kept = name, task, kept
        self.function = native.function(name)

    def __call__(self) -> bool:
        """Make the call; whether it was done."""
        return not self.function(ctypes.byref(self.task))

    def failure(self) -> Exception:
        """The reason why a replay ended here."""
        if self.name.startswith("end_unless_finite"):
            return NotMadeError()
        return MemoryError(f"{self.name} has failed, probably for want of memory")

    @staticmethod
    def together(calls: Sequence[KernelCall]) -> Callable[[], None]:
        """Several calls as one."""
        several = (_Call * len(calls))(
            *(
                _Call(ctypes.cast(call.function, Pointer), ctypes.addressof(call.task))
                for call in calls
            )
        )
        replay = native.function("xbp_replay", (Pointer, ctypes.c_int64), ctypes.c_int64)
        address, count = ctypes.addressof(several), len(calls)

        def run(kept: Any = (several, calls)) -> None:
            done = replay(address, count)
            if done != count:
                raise calls[done].failure()

        return run


class _Call(ctypes.Structure):
    """`recorded_call` in replay.c."""

    _fields_ = (("run", Pointer), ("task", Pointer))


def note(
    name: str,
    task: ctypes.Structure,
    read: Iterable[Real | None],
    written: Iterable[Real | None],
    *kept: Any,
) -> KernelCall:
    """A call on the tape, if this thread records.

    Parameters
    ----------
    name, task
        As for `KernelCall`.
    read, written : arrays, or None
        All memory that the kernel reads and writes.
    *kept
        What else the task points to.
    """
    read, written = ([a for a in some if a is not None] for some in (read, written))
    call = KernelCall(name, task, (read, written, kept))
    if RECORDING.tape is not None:
        RECORDING.tape.add(call, read, written)
    return call


def call(function: Callable[[], object], read: Iterable[Real], written: Iterable[Real]) -> None:
    """Call a function of numpy, and note the call if this thread records.

    Parameters
    ----------
    function : callable
        Such as a `functools.partial` of a function with its result's memory, ``out``.
    read, written : arrays
        All memory that it reads and writes; nothing from before the recording may be written.
    """
    function()
    if RECORDING.tape is not None:
        RECORDING.tape.add(function, read, written)


def copied(found: Real, array: Real) -> Real:
    """`found`, a copy of `array` or the array itself; a copy is made anew in each replay."""
    tape = RECORDING.tape
    if tape is not None and found is not array and not np.may_share_memory(found, array):
        tape.add(partial(np.copyto, found, array), (array,), (found,))
    return found


def number(value: Any, dtype: np.dtype[Any]) -> Real:
    """A number of Python, or the recorded array of one, in memory."""
    values: Any = getattr(value, "values", None)
    return np.array(value, dtype) if values is None else values
