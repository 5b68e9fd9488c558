"""Compiled recurrent layers of the known cells, all time steps in one call, for numpy arrays."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cells import GATES, GRU, LSTM, cell_of
from xbp.accelerators.cpu import native, product, replay
from xbp.accelerators.cpu.affine import contiguous
from xbp.accelerators.cpu.calls import DTYPES, address, incoming, run

Real = NDArray[Any]
KEPT = 4
"""Rows of units that LSTM and GRU keep of a step, and that they have in `delta`."""
LEAST_ROWS = 8
"""Below so many samples times steps, packing the weights takes longer than the products."""
LEAST_FOR_THREADS = 2**16
ROWS_OF_GROUP = 16
MOST_GROUPS = 16
"""Groups of samples whose gradients are summed apart, if results must not depend on threads."""
LINE = 64  # bytes


def recurrence(
    x: Real,
    weight_ih: Real,
    weight_hh: Real,
    bias_ih: Real | None,
    bias_hh: Real | None,
    *states: Real,
    step: Any,
    reverse: bool = False,
    padding: Real | None = None,
    chunk: int | None = None,
) -> Any:
    """See `xbp.primitives.recurrence`; for the cells of `xbp.primitives.cells`."""
    arrays = (x, weight_ih, weight_hh, bias_ih, bias_hh, *states)
    cell, dtype, hidden = cell_of(*arrays, step=step), x.dtype, weight_hh.shape[-1]
    if cell is None or dtype not in DTYPES:
        return NotImplemented
    (T, N, features), width, gated = x.shape, GATES[cell] * hidden, cell >= LSTM
    if N * T < LEAST_ROWS:
        return NotImplemented
    x, weight_ih, weight_hh = contiguous(x), contiguous(weight_ih), contiguous(weight_hh)
    biases = [None if bias is None else contiguous(bias) for bias in (bias_ih, bias_hh)]
    mask = None if padding is None else contiguous(padding.T)
    # States of all times, the first one included: h[after] are those after each step.
    first, after = (T, slice(None, -1)) if reverse else (0, slice(1, None))
    before = slice(1, None) if reverse else slice(None, -1)
    memory = [in_lines((T + 1, N, hidden), dtype) for _ in states]
    for all_times, state in zip(memory, states, strict=True):
        replay.call(partial(np.copyto, all_times[first], state), (state,), (all_times,))
    h, c = memory[0], memory[1] if cell == LSTM else None
    kept = in_lines((T, N, KEPT, hidden), dtype) if gated else None
    threads = native.threads() if N * T * width * (features + hidden) >= LEAST_FOR_THREADS else 1
    task = native.Recurrence(
        x=address(x), weight_ih=address(weight_ih), weight_hh=address(weight_hh),
        bias_ih=address(biases[0]), bias_hh=address(biases[1]), padding=address(mask),
        h=address(h), c=address(c), kept=address(kept), steps=T, n=N, features=features,
        hidden=hidden, chunk=chunk or T, cell=cell, reverse=reverse, threads=threads,
    )  # fmt: skip
    given = x, weight_ih, *biases, mask
    run("recurrence", dtype, task, (*given, weight_hh), (h, c, kept))
    last = tuple(all_times[T - first] for all_times in memory)

    def gradients(dh: Real, dstates: tuple[Real, ...], wants_dx: bool = True) -> Any:
        dh = incoming(dh, (T, N, hidden), dtype)
        if dh.strides[2] != dh.itemsize:
            dh = replay.copied(np.ascontiguousarray(dh), dh)
        dlast = [copy_of(incoming(d, (N, hidden), dtype)) for d in dstates]
        around = None
        if cell == GRU or mask is not None:
            around = zeros((N, hidden), dtype)
        lanes, weight = native.lanes(dtype.itemsize), weight_hh
        if cell == GRU:
            weight = rolled(weight_hh, hidden)
        if hidden < lanes:  # whole vectors are read
            narrow, weight = weight, np.zeros((width, lanes), dtype)
            part = weight[:, :hidden]
            replay.call(partial(np.copyto, part, narrow), (narrow,), (weight,))
        task.weight_hh, task.hh_row = address(weight), weight.shape[1]
        task.dh, task.dh_step, task.dh_row = (
            address(dh),
            *(s // dh.itemsize for s in dh.strides[:2]),
        )
        task.around, task.dh_before = address(around), address(dlast[0])
        task.dc_before = address(dlast[1]) if cell == LSTM else None
        task.x, task.h, task.c, task.kept = map(address, (x, h, c, kept))
        task.padding, task.weight_ih = address(mask), address(weight_ih)
        read, written = (*given, weight, h, c, kept, dh), (*dlast, around)
        columns = (KEPT if gated else 1) * hidden  # of delta
        weights = width * (hidden + features)
        groups = threads
        if native.reproducible():
            groups = max(1, min(N // ROWS_OF_GROUP, MOST_GROUPS))
        if groups * weights <= T * N * columns and min(hidden, features) >= lanes:
            sums = zeros((groups, weights + columns), dtype)
            dx = np.empty((T, N, features), dtype) if wants_dx else None
            task.delta, task.sums, task.dx = None, address(sums), address(dx)
            task.groups = groups
            run("recurrence_backward", dtype, task, read, (*written, sums, dx))
            total = sums[0] if groups == 1 else sum_of(sums)
            dweight_hh = total[: width * hidden].reshape(width, hidden)
            dweight_ih = total[width * hidden : weights].reshape(width, features)
            dbias = total[weights:]
        else:
            delta = np.empty((T * N, columns), dtype)
            task.delta, task.groups = address(delta), threads
            run("recurrence_backward", dtype, task, read, (*written, delta))
            dP, dQ = delta[:, columns - width :], delta[:, :width]
            dweight_ih = matmul(dP.T, x.reshape(T * N, features))
            dweight_hh = matmul(dQ.T, h[before].reshape(T * N, hidden))
            dbias = sum_of(delta)
            dx = matmul(dP, weight_ih).reshape(T, N, features) if wants_dx else None
        if around is not None:
            both = dlast[0], around
            replay.call(partial(np.add, *both, out=dlast[0]), both, dlast[:1])
        dbias_ih, dbias_hh = dbias[columns - width :], dbias[:width]
        if cell == GRU:
            dweight_hh, dbias_hh = (rolled(d, -hidden) for d in (dweight_hh, dbias_hh))
        if bias_ih is None:
            return dx, tuple(dlast), dweight_ih, dweight_hh, None, None
        return dx, tuple(dlast), dweight_ih, dweight_hh, dbias_ih, dbias_hh

    return (h[after], last), gradients


# --- functions of numpy that a recorded step calls again ---


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Real:
    found = np.empty(shape, dtype)
    replay.call(partial(found.fill, 0), (), (found,))
    return found


def copy_of(array: Real) -> Real:
    found = np.empty(array.shape, array.dtype)
    replay.call(partial(np.copyto, found, array), (array,), (found,))
    return found


def sum_of(rows: Real) -> Real:
    found = np.empty(rows.shape[1:], rows.dtype)
    replay.call(partial(np.sum, rows, axis=0, out=found), (rows,), (found,))
    return found


def rolled(array: Real, shift: int) -> Real:
    """`np.roll` along the first axis."""
    found = np.empty(array.shape, array.dtype)
    for part, source in ((found[shift:], array[:-shift]), (found[:shift], array[-shift:])):
        replay.call(partial(np.copyto, part, source), (array,), (found,))
    return found


def matmul(a: Real, b: Real) -> Real:
    found = product.matmul(a, b)
    if found is NotImplemented:
        found = np.empty((len(a), b.shape[1]), a.dtype)
        replay.call(partial(np.matmul, a, b, out=found), (a, b), (found,))
    return found  # type: ignore[no-any-return]


def in_lines(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Real:
    """Memory that begins with a cache line, so that no vector of it lies in two."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size].view(dtype).reshape(shape)


ACCELERATORS = (recurrence,)
