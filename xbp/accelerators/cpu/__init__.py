"""Compiled C for numpy arrays, where it was compiled and the processor can run it.

`build.py` compiles the sources when xbp is installed; `native` loads a library for this processor.
"""

from collections.abc import Callable
from typing import Any

from xbp.accelerators.chains import (
    Fusions,
    accelerated,
    convolution_block,
    dense_layers,
    rectified_affine,
    rectified_batch_norm,
)
from xbp.accelerators.cpu import (
    affine,
    attention,
    convolution,
    dense,
    elementwise,
    embedding,
    native,
    normalization,
    product,
    recurrence,
    rows,
    special,
    updates,
)

FUSIONS: Fusions = {
    convolution_block: convolution.convolve,
    dense_layers: dense.dense,
    rectified_affine: affine.affine,
    rectified_batch_norm: normalization.batch_normalize,
}
chain = accelerated(FUSIONS)


def implementations() -> tuple[Callable[..., Any], ...]:
    """The accelerators by the names of their primitives."""
    if native.library() is None:
        return ()
    return (
        *affine.ACCELERATORS,
        *attention.ACCELERATORS,
        *convolution.ACCELERATORS,
        *elementwise.ACCELERATORS,
        *embedding.ACCELERATORS,
        *normalization.ACCELERATORS,
        *product.ACCELERATORS,
        *recurrence.ACCELERATORS,
        *rows.ACCELERATORS,
        *special.ACCELERATORS,
        *updates.ACCELERATORS,
        chain,
    )
