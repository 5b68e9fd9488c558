"""Compiled recurrent layers of the known cells, all time steps in one call, for numpy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cells import GATES, GRU, LSTM, cell_of
from xbp.accelerators.cpu import native
from xbp.accelerators.cpu.affine import contiguous
from xbp.accelerators.cpu.calls import DTYPES, address, incoming, run
from xbp.primitives.product import matmul

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
        all_times[first] = state
    h, c = memory[0], memory[1] if cell == LSTM else None
    kept = in_lines((T, N, KEPT, hidden), dtype) if gated else None
    threads = native.threads() if N * T * width * (features + hidden) >= LEAST_FOR_THREADS else 1
    task = native.Recurrence(
        x=address(x), weight_ih=address(weight_ih), weight_hh=address(weight_hh),
        bias_ih=address(biases[0]), bias_hh=address(biases[1]), padding=address(mask),
        h=address(h), c=address(c), kept=address(kept), steps=T, n=N, features=features,
        hidden=hidden, chunk=chunk or T, cell=cell, reverse=reverse, threads=threads,
    )  # fmt: skip
    run("recurrence", dtype, task)
    last = tuple(all_times[T - first] for all_times in memory)

    def gradients(dh: Real, dstates: tuple[Real, ...], wants_dx: bool = True) -> Any:
        dh = incoming(dh, (T, N, hidden), dtype)
        if dh.strides[2] != dh.itemsize:
            dh = np.ascontiguousarray(dh)
        dlast = [np.array(incoming(d, (N, hidden), dtype), order="C") for d in dstates]
        around = np.zeros((N, hidden), dtype) if cell == GRU or mask is not None else None
        lanes = native.lanes(dtype.itemsize)
        weight = np.roll(weight_hh, hidden, axis=0) if cell == GRU else weight_hh
        if hidden < lanes:  # whole vectors are read
            weight = np.pad(weight, ((0, 0), (0, lanes - hidden)))
        task.weight_hh, task.hh_row = address(weight), weight.shape[1]
        task.dh, task.dh_step, task.dh_row = (
            address(dh),
            *(s // dh.itemsize for s in dh.strides[:2]),
        )
        task.around, task.dh_before = address(around), address(dlast[0])
        task.dc_before = address(dlast[1]) if cell == LSTM else None
        task.x, task.h, task.c, task.kept = map(address, (x, h, c, kept))
        task.padding, task.weight_ih = address(mask), address(weight_ih)
        columns = (KEPT if gated else 1) * hidden  # of delta
        weights = width * (hidden + features)
        groups = threads
        if native.reproducible():
            groups = max(1, min(N // ROWS_OF_GROUP, MOST_GROUPS))
        if groups * weights <= T * N * columns and min(hidden, features) >= lanes:
            sums = np.zeros((groups, weights + columns), dtype)
            dx = np.empty((T, N, features), dtype) if wants_dx else None
            task.delta, task.sums, task.dx = None, address(sums), address(dx)
            task.groups = groups
            run("recurrence_backward", dtype, task)
            total = sums[0] if groups == 1 else sums.sum(axis=0)
            dweight_hh = total[: width * hidden].reshape(width, hidden)
            dweight_ih = total[width * hidden : weights].reshape(width, features)
            dbias = total[weights:]
        else:
            delta = np.empty((T * N, columns), dtype)
            task.delta, task.groups = address(delta), threads
            run("recurrence_backward", dtype, task)
            dP, dQ = delta[:, columns - width :], delta[:, :width]
            dweight_ih = matmul(dP.T, x.reshape(T * N, features))
            dweight_hh = matmul(dQ.T, h[before].reshape(T * N, hidden))
            dbias = delta.sum(axis=0)
            dx = matmul(dP, weight_ih).reshape(T, N, features) if wants_dx else None
        if around is not None:
            dlast[0] += around
        dbias_ih, dbias_hh = dbias[columns - width :], dbias[:width]
        if cell == GRU:
            dweight_hh, dbias_hh = (np.roll(d, -hidden, axis=0) for d in (dweight_hh, dbias_hh))
        if bias_ih is None:
            return dx, tuple(dlast), dweight_ih, dweight_hh, None, None
        return dx, tuple(dlast), dweight_ih, dweight_hh, dbias_ih, dbias_hh

    return (h[after], last), gradients


def in_lines(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Real:
    """Memory that begins with a cache line, so that no vector of it lies in two."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size].view(dtype).reshape(shape)


ACCELERATORS = (recurrence,)
