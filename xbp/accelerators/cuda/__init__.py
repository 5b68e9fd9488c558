"""CUDA kernels for CuPy arrays, for small networks: few launches, all multiprocessors busy.

They are compiled by NVRTC when they are first used. What a launch does depends on shapes alone: it
waits for nothing, transfers nothing, allocates from CuPy's pool, and so can be captured into a CUDA
graph. Sums are taken in a fixed order, without atomics: the same numbers come out each time.

Without a GPU the tests compile them for several architectures, and run them in an emulation on the
CPU, against the references.
"""

from collections.abc import Callable
from typing import Any

from xbp.accelerators.chains import accelerated, convolution_block, rectified_affine
from xbp.accelerators.cuda import convolution, cross_entropy, passes, philox, pooling, product

chain = accelerated(
    {
        convolution_block: convolution.convolve,
        rectified_affine: product.affine,
    }
)


def implementations() -> tuple[Callable[..., Any], ...]:
    """The functions that stand in for primitives, by their names."""
    return (
        *convolution.ACCELERATORS,
        *pooling.ACCELERATORS,
        *passes.ACCELERATORS,
        *cross_entropy.ACCELERATORS,
        *philox.ACCELERATORS,
        *product.ACCELERATORS,
        chain,
    )
