"""Convolutions and what follows them: arguments that are drawn, the kernels, and the operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import LAYOUTS
from layouts import Real

from xbp import primitives
from xbp.accelerators.cuda import convolution

Case = tuple[Any, ...]
"""n, c, h, w, o, (kh, kw), stride, padding, dilation, groups, relu, pool"""


def draw(
    case: Case, dtype: str, seed: int = 0
) -> tuple[list[Real], dict[str, Any], dict[str, Any]]:
    """x, W, b; the window; and what follows the convolution."""
    n, c, h, w, o, kernel, stride, padding, dilation, groups, relu, pool = case
    rng = np.random.default_rng(seed)
    shapes = [(n, c, h, w), (o, c // groups, *kernel), (o,)]
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    return arrays, window, {"relu": relu, "pool": pool}


def reference(given: list[Real], window: dict[str, Any], then: dict[str, Any]) -> Any:
    """y and gradients of the operations, one after the other."""
    y, back = primitives.convolve.reference(*given, **window)  # type: ignore[attr-defined]
    backs = [back]
    if then["relu"]:
        y, back = primitives.rectify.reference(y)  # type: ignore[attr-defined]
        backs.append(back)
    if then["pool"] != (1, 1):
        pool = primitives.max_pool.reference  # type: ignore[attr-defined]
        y, back = pool(y, kernel_size=then["pool"], stride=then["pool"])
        backs.append(back)

    def gradients(dy: Real) -> Any:
        for of_operation in backs[:0:-1]:
            (dy,) = of_operation(dy)
        return backs[0](dy)

    return y, gradients


def computed(machine: Emulation, case: Case, dtype: str, layout: str = "contiguous") -> list[Real]:
    """y, ∂L/∂x, ∂L/∂W and ∂L/∂b of the kernels, for a ∂L/∂y that is drawn."""
    given, window, then = draw(case, dtype)
    given[0] = LAYOUTS[layout](given[0])
    y, back = convolution.convolve(*map(machine.guarded, given), **window, **then)
    dy = LAYOUTS[layout](np.random.default_rng(1).normal(size=y.shape).astype(dtype))
    found = [y, *back(machine.guarded(dy))]
    without, *others = back(machine.guarded(dy), False)
    assert without is None
    assert all(np.array_equal(a, b) for a, b in zip(others, found[2:], strict=True))
    return found


def truth(case: Case, dtype: str) -> tuple[list[Real], list[int]]:
    """What `computed` approximates, in double precision, and the terms of each sum."""
    given, window, then = draw(case, "float64")
    given = [array.astype(dtype).astype("float64") for array in given]
    y, back = reference(given, window, then)
    dy = np.random.default_rng(1).normal(size=y.shape).astype(dtype).astype("float64")
    n, c, _, _, o, kernel, *_ = case
    taps, positions = math.prod(kernel), n * math.prod(y.shape[2:]) * math.prod(then["pool"])
    return [y, *back(dy)], [c * taps, o * taps, positions, positions]
