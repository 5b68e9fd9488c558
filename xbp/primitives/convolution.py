"""Convolution (as everywhere in this field, a cross-correlation)."""

from __future__ import annotations

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import Gradients, check_gradient, primitive
from xbp.primitives.images import (
    Padding,
    Pair,
    as_nchw,
    fold_rows,
    output_size,
    rows_first,
    sides,
    unfold_rows,
)
from xbp.primitives.product import matmul


@primitive
def convolve(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> tuple[Array, Gradients]:
    """y[n, o, r, s] = b[o] + Σ_cij W[o, c, i, j] · x[n, c, r·stride + i, s·stride + j].

    Each row of y is a linear layer. `unfold_rows` returns a matrix U with one column for each
    window position along a row of x and each image. The windows of row r of y are the slice Uᵣ of
    its rows; successive slices overlap. With W as a matrix (out, kh·in·kw) and δ = ∂L/∂y,

        yᵣ = W Uᵣ + b,   ∂L/∂W = Σᵣ δᵣ Uᵣᵀ,   ∂L/∂b = Σ δ,   ∂L/∂Uᵣ = Wᵀ δᵣ,

    and overlapping slices add up in ∂L/∂U (Chellapilla et al. 2006; Cho & Brand 2017; Goodfellow
    et al. 2016, section 9.5).

    A dilation replaces i and j by i·dilation and j·dilation. With groups, W and U are stacks of
    matrices, one for each group of channels: the k-th group of y depends on the k-th group of x.

    An x that is not finite makes ∂L/∂W nan even where δ is 0 (0 · ∞), as in PyTorch.

    Parameters
    ----------
    x : array (N, in, H, W)
    weight : array (out, in/groups, kh, kw)
    bias : array (out,) or None
    stride, dilation : (int, int)
    padding : (int, int) or ((top, bottom), (left, right))
    groups : int
        The number of groups; it divides `in` and `out`.

    Returns
    -------
    y : array (N, out, OH, OW)
    gradients : callable
        From ∂L/∂y to (∂L/∂x, ∂L/∂W, ∂L/∂b).
    """
    xp = array_namespace(x)
    out, channels, kh, kw = weight.shape
    window = ((kh, kw), stride, padding, dilation)
    unfolded = unfold_rows(x, *window)  # (H + 2p, in, kw, OW, N)
    height, columns = channels * kw, unfolded.shape[3] * unfolded.shape[4]
    U = by_group(xp.reshape(unfolded, (unfolded.shape[0], groups * height, columns)), 1, groups)
    W = kernel_matrix(weight, groups)
    oh, ow = output_size(x.shape[2:], *window)
    seen = rows_seen(oh, kh, stride[0], dilation[0])
    stack = U.shape[:-3]  # (groups,), or ()
    y = xp.empty((oh, *stack, out // groups, columns), dtype=x.dtype, device=x.device)

    def slice_of(rows: slice) -> Array:
        return xp.reshape(U[..., rows, :, :], (*stack, kh * height, columns))

    for r, rows in enumerate(seen):
        y[r, ...] = matmul(W, slice_of(rows))
    y = xp.reshape(y, (oh, out, columns))
    if bias is not None:
        y += xp.reshape(bias, (-1, 1))

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        delta = xp.reshape(rows_first(dy), (oh, *stack, out // groups, columns))
        # U δᵀ in place of δ Uᵀ: the same product, twice as fast with few output channels.
        dW = sum(
            matmul(slice_of(rows), xp.matrix_transpose(delta[r, ...]))
            for r, rows in enumerate(seen)
        )
        dW = xp.reshape(xp.matrix_transpose(dW), (out, kh, channels, kw))
        dx = to_input(dy, weight, x.shape, stride, padding, dilation, groups) if wants_dx else None
        db = None if bias is None else xp.sum(xp.reshape(delta, y.shape), axis=(0, 2))
        return dx, xp.permute_dims(dW, (0, 2, 1, 3)), db

    return as_nchw(xp.reshape(y, (oh, out, ow, -1))), gradients


@primitive
def convolve_transposed(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    output_padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> tuple[Array, Gradients]:
    """The transpose of `convolve` with the same weight and window, plus b.

    Its y is ∂L/∂x of `convolve` for the output gradient x: each entry of x adds a multiple of a
    kernel to y. So, with δ = ∂L/∂y, ∂L/∂x is the convolution of δ, and ∂L/∂W is the weight gradient
    of that convolution for the output gradient x (Dumoulin & Visin 2016, chapter 4).

    Parameters
    ----------
    x : array (N, in, H, W)
    weight : array (in, out/groups, kh, kw)
    bias : array (out,) or None
    stride, padding, dilation : (int, int)
        Those of `convolve`.
    output_padding : (int, int)
        Rows and columns added at the end of y. They choose among the input sizes for which
        `convolve` has the same output size.
    groups : int

    Returns
    -------
    y : array (N, out, OH, OW)
        OH = (H - 1)·stride - 2·padding + dilation·(kh - 1) + output_padding + 1.
    gradients : callable
        From ∂L/∂y to (∂L/∂x, ∂L/∂W, ∂L/∂b).
    """
    xp = array_namespace(x)
    n, _, h, w = x.shape
    _, channels, *kernel = weight.shape
    window = ((kernel[0], kernel[1]), stride, padding, output_padding, dilation)
    shape = (n, groups * channels, *transposed_size((h, w), *window))
    (p, q), (more, wider) = padding, output_padding
    whole: Padding = padding
    if more >= stride[0] or wider >= stride[1]:  # another window would fit there
        whole = ((p, p - more), (q, q - wider))
    y = to_input(x, weight, shape, stride, whole, dilation, groups)
    if bias is not None:
        y += xp.reshape(bias, (-1, 1, 1))

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        check_gradient(dy, shape)
        dx, of_convolution = convolve(
            dy, weight, stride=stride, padding=whole, dilation=dilation, groups=groups
        )
        _, dW, _ = of_convolution(x, False)
        db = None if bias is None else xp.sum(dy, axis=(0, 2, 3))
        return dx if wants_dx else None, dW, db

    return y, gradients


def transposed_size(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, output_padding: Pair, dilation: Pair
) -> Pair:
    """(size - 1)·stride - 2·padding + dilation·(kernel - 1) + output_padding + 1, on each axis."""
    height, width = (
        (old - 1) * s - 2 * p + d * (k - 1) + more + 1
        for old, k, s, p, more, d in zip(
            size, kernel, stride, padding, output_padding, dilation, strict=True
        )
    )
    return height, width


def to_input(
    dy: Array,
    weight: Array,
    shape: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """∂L/∂x of a convolution: ∂L/∂Uᵣ = Wᵀ δᵣ, added up in an image of this shape.

    Parameters
    ----------
    dy : array (N, out, OH, OW)
    weight : array (out, in/groups, kh, kw)
    shape : (N, in, H, W)

    Returns
    -------
    array (N, in, H, W)
    """
    xp = array_namespace(dy)
    out, channels, kh, kw = weight.shape
    (top, bottom), _ = sides(padding)
    n, _, oh, ow = dy.shape
    height, columns = channels * kw, ow * n
    WT = xp.matrix_transpose(kernel_matrix(weight, groups))
    stack = WT.shape[:-2]
    delta = xp.reshape(rows_first(dy), (oh, *stack, out // groups, columns))
    rows = shape[2] + top + bottom
    dU = xp.zeros((*stack, rows, height, columns), dtype=dy.dtype, device=dy.device)
    for r, seen in enumerate(rows_seen(oh, kh, stride[0], dilation[0])):
        dUr = matmul(WT, delta[r, ...])
        dU[..., seen, :, :] += xp.reshape(dUr, (*stack, kh, height, columns))
    if stack:
        dU = xp.permute_dims(dU, (1, 0, 2, 3))
    unfolded = xp.reshape(dU, (rows, groups * channels, kw, ow, n))
    return fold_rows(unfolded, shape, (kh, kw), stride, padding, dilation)


def rows_seen(oh: int, kh: int, stride: int, dilation: int) -> list[slice]:
    """For each row of y, the rows of x in its windows."""
    reach = dilation * (kh - 1) + 1
    return [slice(top, top + reach, dilation) for top in range(0, oh * stride, stride)]


def kernel_matrix(weight: Array, groups: int) -> Array:
    """W: (out, in, kh, kw) → (out, kh·in·kw), or a stack of such matrices, one for each group."""
    xp = array_namespace(weight)
    W = xp.reshape(xp.permute_dims(weight, (0, 2, 1, 3)), (weight.shape[0], -1))
    return by_group(W, 0, groups)


def by_group(matrix: Array, axis: int, groups: int) -> Array:
    """A stack of matrices, one for each group of indices along `axis`; one group needs no stack."""
    if groups == 1:
        return matrix
    xp = array_namespace(matrix)
    before, after = matrix.shape[:axis], matrix.shape[axis + 1 :]
    each = matrix.shape[axis] // groups
    return xp.moveaxis(xp.reshape(matrix, (*before, groups, each, *after)), axis, 0)
