"""The cells that have compiled recurrent layers, and the arguments that these accept."""

from __future__ import annotations

from typing import Any

from xbp.accelerators.shared import Array
from xbp.primitives import cells

CELLS = {cells.elman: 0, cells.rectified: 1, cells.lstm: 2, cells.gru: 3}
"""Their numbers in kernels.h and recurrence.h."""
LSTM, GRU = CELLS[cells.lstm], CELLS[cells.gru]
GATES = (1, 1, 4, 3)


def cell_of(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    *states: Array,
    step: Any,
) -> int | None:
    """The number of a cell; None for an unknown one, or arrays of other shapes or dtypes."""
    cell = next((number for known, number in CELLS.items() if known is step), None)
    if cell is None or x.ndim != 3 or x.size == 0 or (bias_ih is None) != (bias_hh is None):
        return None
    (_, N, features), hidden = x.shape, weight_hh.shape[-1]
    width = GATES[cell] * hidden
    shapes = [(width, features), (width, hidden), (width,), (width,)]
    shapes += [(N, hidden)] * (1 + (cell == LSTM))
    arrays = (weight_ih, weight_hh, bias_ih, bias_hh, *states)
    if len(arrays) != len(shapes):
        return None
    for array, shape in zip(arrays, shapes, strict=True):
        if array is not None and (array.dtype != x.dtype or array.shape != shape):
            return None
    return cell
