"""Operations that may have a second implementation; here are the references, in the Array API.

Convolution and pooling, windows of an image, attention, rows of a table, counter-based bits,
special functions, counting.

The first argument of a primitive decides the library, device and dtype. The references are plain,
and the oracles of the accelerators.
"""

from xbp.primitives.attention import attention
from xbp.primitives.chain import chain
from xbp.primitives.chain_to_loss import chain_to_loss
from xbp.primitives.convolution import convolve, convolve_transposed
from xbp.primitives.counting import bincount
from xbp.primitives.cross_entropy import cross_entropy
from xbp.primitives.elementwise import add, gelu, logistic, rectify, silu, tanh
from xbp.primitives.embedding import embedding, scatter_add
from xbp.primitives.images import (
    flatten,
    fold_rows,
    output_size,
    pad2d,
    unfold_rows,
    unpad2d,
    windows,
    zero_pad,
)
from xbp.primitives.normalization import batch_normalize, normalize, track
from xbp.primitives.philox import philox4x32, random_bits
from xbp.primitives.pooling import average_pool, max_pool
from xbp.primitives.product import affine, matmul
from xbp.primitives.recurrence import recurrence
from xbp.primitives.resampling import adaptive_average_pool, upsample
from xbp.primitives.rounded import (
    rounded_affine,
    rounded_convolve,
    rounded_convolve_transposed,
    rounded_matmul,
)
from xbp.primitives.rounding import round_to
from xbp.primitives.rows import append_row, appending, gather, take_row, take_step
from xbp.primitives.signals import average_pool1d, convolve1d, max_pool1d
from xbp.primitives.softmax import softmax
from xbp.primitives.special import erf, erfc, sigmoid
from xbp.primitives.updates import (
    accumulate,
    adaptive_step,
    add_scaled,
    average,
    normalized_step,
    plus_scaled,
    rescale,
)

__all__ = [
    "accumulate",
    "adaptive_average_pool",
    "adaptive_step",
    "add",
    "add_scaled",
    "affine",
    "append_row",
    "appending",
    "attention",
    "average",
    "average_pool",
    "average_pool1d",
    "batch_normalize",
    "bincount",
    "chain",
    "chain_to_loss",
    "convolve",
    "convolve1d",
    "convolve_transposed",
    "cross_entropy",
    "embedding",
    "erf",
    "erfc",
    "flatten",
    "fold_rows",
    "gather",
    "gelu",
    "logistic",
    "matmul",
    "max_pool",
    "max_pool1d",
    "normalize",
    "normalized_step",
    "output_size",
    "pad2d",
    "philox4x32",
    "plus_scaled",
    "random_bits",
    "rectify",
    "recurrence",
    "rescale",
    "round_to",
    "rounded_affine",
    "rounded_convolve",
    "rounded_convolve_transposed",
    "rounded_matmul",
    "scatter_add",
    "sigmoid",
    "silu",
    "softmax",
    "take_row",
    "take_step",
    "tanh",
    "track",
    "unfold_rows",
    "unpad2d",
    "upsample",
    "windows",
    "zero_pad",
]
