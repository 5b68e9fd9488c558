"""Convolution (as everywhere in this field, a cross-correlation)."""

from __future__ import annotations

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import Gradients, primitive
from xbp.primitives.images import (
    Pair,
    fold_rows,
    images,
    output_size,
    rows_first,
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
    padding: Pair = (0, 0),
) -> tuple[Array, Gradients]:
    """y[n, o, r, s] = b[o] + Σ_cij W[o, c, i, j] · x[n, c, r·stride + i, s·stride + j].

    A linear layer for each row of y. `unfold_rows` gives a matrix U with a column for each window
    position along a row of x, image by image; what row r of y sees, of all rows of the kernel, is
    the slice Uᵣ of its rows, which the next one overlaps. With W as a matrix (out, kh·in·kw) and
    δ = ∂L/∂y,

        yᵣ = W Uᵣ + b,   ∂L/∂W = Σᵣ δᵣ Uᵣᵀ,   ∂L/∂b = Σ δ,   ∂L/∂Uᵣ = Wᵀ δᵣ,

    and ∂L/∂U adds up where slices overlap (Chellapilla et al. 2006; Cho & Brand 2017; Goodfellow
    et al. 2016, section 9.5).

    An x that is not finite makes ∂L/∂W nan even where δ is 0 (0 · ∞), as in PyTorch.

    Parameters
    ----------
    x : array (N, in, H, W)
    weight : array (out, in, kh, kw)
    bias : array (out,) or None
    stride, padding : (int, int)

    Returns
    -------
    y : array (N, out, OH, OW)
    gradients : callable
        From ∂L/∂y to (∂L/∂x, ∂L/∂W, ∂L/∂b).
    """
    xp = array_namespace(x)
    out, channels, kh, kw = weight.shape
    window = ((kh, kw), stride, padding)
    unfolded = unfold_rows(x, *window)  # (H + 2p, in, kw, OW, N)
    height, columns = channels * kw, unfolded.shape[3] * unfolded.shape[4]
    U = xp.reshape(unfolded, (unfolded.shape[0] * height, columns))
    W = xp.reshape(xp.permute_dims(weight, (0, 2, 1, 3)), (out, kh * height))
    oh, ow = output_size(x.shape[2:], *window)
    tops = range(0, oh * stride[0] * height, stride[0] * height)
    seen = [slice(top, top + kh * height) for top in tops]
    y = xp.empty((oh, out, columns), dtype=x.dtype, device=x.device)
    for r, rows in enumerate(seen):
        y[r, ...] = matmul(W, U[rows, :])
    if bias is not None:
        y += xp.reshape(bias, (-1, 1))

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        delta = xp.reshape(rows_first(dy), y.shape)
        # U δᵀ in place of δ Uᵀ: the same product, twice as fast with few output channels.
        dW = sum(matmul(U[rows, :], delta[r, ...].T) for r, rows in enumerate(seen)).T
        dW = xp.permute_dims(xp.reshape(dW, (out, kh, channels, kw)), (0, 2, 1, 3))
        dx = None
        if wants_dx:
            dU = xp.zeros_like(U)
            for r, rows in enumerate(seen):
                dU[rows, :] += matmul(W.T, delta[r, ...])
            dx = fold_rows(xp.reshape(dU, unfolded.shape), x.shape, *window)
        return dx, dW, None if bias is None else xp.sum(delta, axis=(0, 2))

    return images(xp.reshape(y, (oh, out, ow, -1))), gradients
