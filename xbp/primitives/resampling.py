"""Resizing of images: rows and columns of the result are weighted sums of rows and columns of x.

With one sparse matrix for the rows and one for the columns, y = A x Bᵀ for each channel, and
∂L/∂x = Aᵀ (∂L/∂y) B is the same function of the transposed matrices. Entries of weight 0 are left
out of the sums, as 0 · ∞ would be nan.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import TypeAlias

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import Gradients, of_input, primitive
from xbp.primitives.images import Pair, as_nchw, rows_first

Matrix: TypeAlias = "list[list[tuple[int, float]]]"
"""A sparse matrix: for each row, the (column, entry) of its nonzero entries."""
Sizes: TypeAlias = "tuple[int | None, int | None]"


@primitive
def adaptive_average_pool(x: Array, *, output_size: Sizes) -> tuple[Array, Gradients]:
    """y[n, c, r, s] = mean of x[n, c, i, j] over ⌊rH/OH⌋ ≤ i < ⌈(r+1)H/OH⌉, and j likewise.

    If OH does not divide H, neighbouring windows may overlap by one row. (As in PyTorch.)

    Parameters
    ----------
    x : array (N, C, H, W)
    output_size : (int or None, int or None)
        None keeps the size of that axis.

    Returns
    -------
    y : array (N, C, OH, OW)
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    return _resampled(x, averaging(x.shape[2:], output_size))


@primitive
def upsample(
    x: Array,
    *,
    size: Pair | None = None,
    scale_factor: tuple[float, float] | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
) -> tuple[Array, Gradients]:
    """Resizes images: nearest entry, or linear interpolation between two entries on each axis.

    Row r of y lies at position u of x. With ρ = H/OH, or 1/scale_factor if that is given,

        nearest:   u = ⌊ρ r⌋,
        bilinear:  u = max(ρ (r + ½) - ½, 0), or (H - 1)/(OH - 1) r with aligned corners,

    and y[r] = (1 - λ) x[⌊u⌋] + λ x[⌊u⌋ + 1] with λ = u - ⌊u⌋, or λ = 0 at the last row of x. (As in
    PyTorch.)

    Parameters
    ----------
    x : array (N, C, H, W)
    size : (int, int) or None
    scale_factor : (float, float) or None
        In place of `size`: ⌊H·scale_factor⌋ and ⌊W·scale_factor⌋.
    mode : "nearest" or "bilinear"
    align_corners : bool
        Whether the centres of the corner pixels of x and y coincide, in place of their outer edges.

    Returns
    -------
    y : array (N, C, OH, OW)
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    return _resampled(x, interpolating(x.shape[2:], size, scale_factor, mode, align_corners))


def averaging(old: Pair, output_size: Sizes) -> tuple[Matrix, Matrix]:
    """The matrices A and B of `adaptive_average_pool`."""
    height, width = output_size
    return (
        means(old[0], old[0] if height is None else height),
        means(old[1], old[1] if width is None else width),
    )


def interpolating(
    old: Pair,
    size: Pair | None,
    scale_factor: tuple[float, float] | None,
    mode: str,
    align_corners: bool,
) -> tuple[Matrix, Matrix]:
    """The matrices A and B of `upsample`."""
    if scale_factor is not None:
        new, ratios = scaled(old, scale_factor), [1 / factor for factor in scale_factor]
    else:
        assert size is not None
        new, ratios = size, [a / b for a, b in zip(old, size, strict=True)]
    places = list(zip(old, new, ratios, strict=True))
    if mode == "nearest":
        A, B = (nearest(rows, ratio) for _, rows, ratio in places)
    else:
        A, B = (between(*each, align_corners) for each in places)
    return A, B


def scaled(size: Pair, factors: tuple[float, float]) -> Pair:
    """⌊size·factor⌋ of height and width."""
    return math.floor(size[0] * factors[0]), math.floor(size[1] * factors[1])


# --- matrices -------------------------------------------------------------------------------------


def means(old: int, new: int) -> Matrix:
    """The matrix of means over the windows of `adaptive_average_pool`."""
    windows = [range(r * old // new, -(-(r + 1) * old // new)) for r in range(new)]
    return [[(i, 1 / len(window)) for i in window] for window in windows]


def nearest(new: int, ratio: float) -> Matrix:
    """The matrix of nearest entries; a position within rounding of an integer is that integer."""
    return [[(math.floor(round(ratio * r, 9)), 1.0)] for r in range(new)]


def between(old: int, new: int, ratio: float, align_corners: bool) -> Matrix:
    """The matrix of linear interpolation between the two entries around each position."""
    matrix: Matrix = []
    for r in range(new):
        if align_corners:
            place = r * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            place = max(ratio * (r + 0.5) - 0.5, 0.0)
        i = math.floor(place)
        share = place - i if i + 1 < old else 0.0
        matrix.append([(i, 1 - share), (i + 1, share)] if share else [(i, 1.0)])
    return matrix


def transposed(matrix: Matrix, rows: int) -> Matrix:
    """The transposed matrix, with this number of rows."""
    result: Matrix = [[] for _ in range(rows)]
    for r, entries in enumerate(matrix):
        for i, entry in entries:
            result[i].append((r, entry))
    return result


def product(matrix: Matrix, x: Array, axis: int) -> Array:
    """The product of a sparse matrix with the rows (axis 2) or columns (axis 3) of images."""
    xp, rows = array_namespace(x), rows_first(x)  # (H, C, W, N)
    height, c, width, n = rows.shape
    before = (slice(None),) * (0 if axis == 2 else 2)
    shape = (len(matrix), c, width, n) if axis == 2 else (height, c, len(matrix), n)
    y = xp.empty(shape, dtype=x.dtype, device=x.device)
    for r, entries in enumerate(matrix):
        terms = (
            rows[(*before, i, ...)] if entry == 1 else entry * rows[(*before, i, ...)]
            for i, entry in entries
        )
        y[(*before, r, ...)] = reduce(add, terms) if entries else 0.0
    return as_nchw(y)


def _resampled(x: Array, matrices: tuple[Matrix, Matrix]) -> tuple[Array, Gradients]:
    """A x Bᵀ, with its gradient."""
    (A, B), (height, width) = matrices, x.shape[2:]

    def input_gradient(dy: Array) -> Array:
        return product(transposed(A, height), product(transposed(B, width), dy, 3), 2)

    return product(B, product(A, x, 2), 3), of_input(input_gradient)
