"""The accelerators of numpy in a step that is recorded on the host (`xbp.backend.host_graph`).

They decide and compute as in eager steps. Each notes its calls of kernels, with all memory that
these read and write; the arrays of one that does not are unknown to the tape, which refuses them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from xbp.accelerators import cpu
from xbp.accelerators.chains import accelerated
from xbp.accelerators.cpu import elementwise, native, replay, updates
from xbp.accelerators.cpu.affine import contiguous
from xbp.accelerators.cpu.arrays import LAYOUT, is_known
from xbp.accelerators.cpu.calls import address
from xbp.backend.recorded import NAMESPACE, RecordedArray
from xbp.errors import InputError

Function = Callable[..., Any]


def seen(accelerator: Function) -> Function:
    """An accelerator for recorded arrays, and the gradients that it returns."""

    @wraps(accelerator)
    def run(*args: Any, **options: Any) -> Any:
        options = {name: _values(option) for name, option in options.items()}
        return _wrapped(accelerator(*map(_values, args), **options))

    return run


def _values(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        msg = "an array outside of parameters and buffers cannot be recorded"
        raise InputError(msg)
    if isinstance(argument, tuple | list):
        return type(argument)(map(_values, argument))
    return argument.values if isinstance(argument, RecordedArray) else argument


def _wrapped(result: Any) -> Any:
    if isinstance(result, tuple):
        make: Any = getattr(result, "_make", tuple)  # of a named tuple
        return make(map(_wrapped, result))
    if isinstance(result, np.ndarray):
        return RecordedArray(result)
    return seen(result) if callable(result) else result


# --- numbers that differ between steps, read from memory -----------------------------------------


def _in_place(
    name: str,
    arrays: tuple[Any, ...],
    numbers: tuple[Any, ...],
    betas: tuple[float, ...] = (),
    changed: int = 1,
) -> Any:
    """`updates._in_place`, with numbers that may be arrays."""
    lists = arrays if isinstance(arrays[0], list) else [[array] for array in arrays]
    to = [_values(array) for some in lists[:changed] for array in some]
    dtype = to[0].dtype
    plain = all(a.flags.carray for a in to)  # in row-major order, aligned, writable
    if dtype not in updates.KINDS or not plain or not is_known():
        return NotImplemented
    partners = [contiguous(_values(array)) for some in lists[changed:] for array in some]
    everything = [*to, *partners]
    own = [replay.number(number, dtype) for number in (*numbers, 0.0, 0.0)[:3]]
    places = [address(number) for number in own]
    known, threads = (ctypes.pointer(LAYOUT), id(everything)), native.threads()
    task: Any
    if betas:
        kind = updates.KINDS[dtype]
        make_task, run = replay.adaptive_task(kind), "adaptive_task_run"
        task = make_task(*known, *places, (kind * 4)(*betas), dtype.num, threads)
    else:
        function = native.function(f"{name}_{dtype.name}")
        function, run = ctypes.cast(function, ctypes.c_void_p), "update_task_run"
        task = replay.UpdateTask(function, *known, *places, dtype.num, threads)
    given = [n.values for n in numbers if isinstance(n, RecordedArray)]
    make = replay.note(f"{run}_{dtype.name}", task, [*everything, *given], to, everything, own)
    if not make():
        msg = "an update of arrays of different shapes or in shared memory cannot be recorded"
        raise InputError(msg)
    return None


def add_scaled(p: Any, factor: Any, g: Any) -> Any:
    """See `xbp.primitives.add_scaled`."""
    return _in_place("add_scaled", (p, g), (factor,))


def average(mean: Any, beta: float, *factors: Any) -> Any:
    """See `xbp.primitives.average`."""
    if len(factors) not in (1, 2):
        return NotImplemented
    name = "average" if len(factors) == 1 else "average_product"
    return _in_place(name, (mean, *factors), (beta, 1 - beta))


def accumulate(total: Any, beta: float, g: Any, share: Any = 1.0) -> Any:
    """See `xbp.primitives.accumulate`."""
    return _in_place("average", (total, g), (beta, share))


def rescale(p: Any, factor: Any) -> Any:
    """See `xbp.primitives.rescale`."""
    return _in_place("rescale", (p,), (factor,))


def normalized_step(p: Any, rate: Any, m: Any, scale: Any, v: Any, eps: Any) -> Any:
    """See `xbp.primitives.normalized_step`."""
    return _in_place("normalized_step", (p, m, v), (rate, scale, eps))


def adaptive_step(p: Any, m: Any, v: Any, g: Any, beta1: float, beta2: float, *rates: Any) -> Any:
    """See `xbp.primitives.adaptive_step`."""
    betas = updates.betas(beta1, beta2)
    return _in_place("adaptive_step", (p, m, v, g), rates, betas, changed=3)


def cross_entropy(logits: Any, target: Any, scale: float) -> Any:
    """See `xbp.primitives.cross_entropy`; the loss is a number in memory."""
    if not elementwise.fits(logits, target):
        return NotImplemented
    (n, classes), dtype = logits.shape, logits.dtype
    labels = _values(NAMESPACE.astype(target, np.int64, copy=False))
    z = _values(logits)
    gradient, loss = np.empty((n, classes), dtype), np.empty((), dtype)
    if not (z.flags.c_contiguous and labels.flags.c_contiguous):
        msg = "cross-entropy of logits in another memory order cannot be recorded"
        raise InputError(msg)
    places, threads = map(address, (z, labels, gradient, loss)), native.threads()
    task = replay.CrossEntropyTask(*places, scale, n, classes, threads)
    make = replay.note(f"cross_entropy_task_run_{dtype.name}", task, (z, labels), (gradient, loss))
    make()
    return RecordedArray(loss), RecordedArray(gradient)


def end_unless_finite(value: Any) -> Any:
    """The call that ends a replay, for the tape."""
    values = value.values
    if values.dtype not in updates.KINDS:
        return NotImplemented
    task = (ctypes.c_char * values.nbytes).from_address(address(values) or 0)  # the value itself
    return replay.KernelCall(f"end_unless_finite_run_{values.dtype.name}", task, values)


# --- rows of tables ------------------------------------------------------------------------------


def take_row(index: Any, *tables: Any) -> Any:
    """See `xbp.primitives.take_row`."""
    found = _take(index, None, range(1), tables)
    return found if found is NotImplemented else tuple(rows[0, ...] for rows in found)


def gather(order: Any, start: Any, span: tuple[int, int, int], *arrays: Any) -> Any:
    """See `xbp.primitives.gather`."""
    return _take(start, order, range(*span), arrays)


def _take(at: Any, order: Any, span: range, tables: tuple[Any, ...]) -> Any:
    at, order, *sources = map(_values, (at, order, *tables))
    if not all(source.flags.c_contiguous for source in (at, *sources)) or not len(span):
        return NotImplemented
    made = [np.empty((len(span), *source.shape[1:]), source.dtype) for source in sources]
    task = _rows_task(made, sources, sources, at, order, span)
    make = replay.note("xbp_take_rows_run", task, [at, order, *sources], made, task.tables)
    if not make():
        msg = "a row of the data is out of range"
        raise InputError(msg)
    return tuple(map(RecordedArray, made))


def append_row(index: Any, *tables_and_values: Any) -> Any:
    """See `xbp.primitives.append_row`."""
    half = len(tables_and_values) // 2
    at, *arrays = map(_values, (index, *tables_and_values))
    tables, values = arrays[:half], arrays[half:]
    fit = all(
        value.dtype == table.dtype and value.shape == table.shape[1:]
        for table, value in zip(tables, values, strict=True)
    )
    if not fit or not all(array.flags.c_contiguous for array in (at, *arrays)):
        return NotImplemented
    task = _rows_task(tables, values, tables, at, None, range(1))
    replay.note("xbp_append_row_run", task, [at, *values], [at, *tables], task.tables)()
    return None


def _rows_task(to: Any, sources: Any, tables: Any, at: Any, order: Any, span: range) -> Any:
    """The task of a copy; `tables` are those arrays whose rows are counted."""
    several = (replay.Table * len(to))(
        *(
            replay.Table(address(a), address(b), t.nbytes // len(t), len(t))
            for a, b, t in zip(to, sources, tables, strict=True)
        )
    )
    length = 0 if order is None else len(order)
    return replay.RowsTask(
        several, address(at), address(order), length, span.start, span.step, len(span), len(to)
    )


# --- the table -----------------------------------------------------------------------------------


chain = accelerated({match: seen(function) for match, function in cpu.FUSIONS.items()})

OWN = (
    *(add_scaled, average, accumulate, rescale, normalized_step, adaptive_step),
    *(cross_entropy, end_unless_finite, take_row, gather, append_row, chain),
)


def implementations() -> tuple[Function, ...]:
    """The accelerators by the names of their primitives."""
    theirs = cpu.implementations()
    return (*map(seen, theirs), *OWN) if theirs else ()
