"""Compiled C for numpy arrays; nothing where it was not compiled, or this processor cannot run it.

`build.py` compiles the sources, when xbp is installed; `native` loads what this processor can run.
"""

from collections.abc import Callable
from typing import Any

from xbp.accelerators.chains import accelerated, convolution_block, rectified_affine
from xbp.accelerators.cpu import affine, convolution, elementwise, native, product

chain = accelerated(
    {
        convolution_block: convolution.convolve,
        rectified_affine: affine.affine,
    }
)


def implementations() -> tuple[Callable[..., Any], ...]:
    """The functions that stand in for primitives, by their names."""
    if native.library() is None:
        return ()
    return (
        *affine.ACCELERATORS,
        *convolution.ACCELERATORS,
        *elementwise.ACCELERATORS,
        *product.ACCELERATORS,
        chain,
    )
