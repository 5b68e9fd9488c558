"""CUDA kernels for CuPy arrays: few launches for small networks, and for wide convolutions tiles.

They are compiled by NVRTC at first use. A launch depends on shapes alone, waits for nothing,
transfers nothing and allocates from CuPy's memory pool, so that it can be captured into a CUDA
graph. Sums are taken in a fixed order, so that results are reproducible. No number is added by an
atomic: where the parts of a sum come from several blocks, these count themselves by one, and the
block that comes last adds all parts in the order of their numbers (`last.h`).

Without a GPU the tests compile the kernels for several architectures, and compare them, emulated on
the CPU, with the references.
"""

from collections.abc import Callable
from typing import Any

from xbp.accelerators.chains import (
    Fusions,
    accelerated,
    activated_batch_norm,
    convolution_block,
    rectified_affine,
)
from xbp.accelerators.cuda import (
    activations,
    attention,
    batch_norm,
    convolution,
    cross_entropy,
    embedding,
    layer_norm,
    passes,
    philox,
    pooling,
    product,
    recurrence,
    rows,
    short,
    softmax,
    whole,
)

BY_OPERATION: Fusions = {
    convolution_block: convolution.convolve,
    rectified_affine: product.affine,
    activated_batch_norm: batch_norm.batch_normalize,
}
chain = accelerated(BY_OPERATION)
chain_in_one = accelerated({whole.whole_chain: whole.network, **BY_OPERATION})


def implementations() -> tuple[Callable[..., Any], ...]:
    """The accelerators by the names of their primitives."""
    return (
        *convolution.ACCELERATORS,
        *pooling.ACCELERATORS,
        *passes.ACCELERATORS,
        *activations.ACCELERATORS,
        *batch_norm.ACCELERATORS,
        *layer_norm.ACCELERATORS,
        *softmax.ACCELERATORS,
        *attention.ACCELERATORS,
        *embedding.ACCELERATORS,
        *cross_entropy.ACCELERATORS,
        *philox.ACCELERATORS,
        *product.ACCELERATORS,
        *recurrence.ACCELERATORS,
        *rows.ACCELERATORS,
        *short.ACCELERATORS,
        *((whole.chain_to_loss, chain_in_one) if whole.wanted() else (chain,)),
    )
