"""Sums whose parts the last block of a stripe adds up, in place of a second launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from layouts import Real, assert_close

from xbp.accelerators.cuda import convolution, cross_entropy, last, launch, layer_norm, product

pytestmark = needs_a_compiler


def of_convolution(dtype: str, machine: Emulation) -> list[Real]:
    """∂L/∂W and ∂L/∂b from ten parts, in stripes of a channel, of two outputs of three."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(40, 2, 10, 10)), rng.normal(size=(3, 2, 5, 5))
    given = [machine.guarded(array.astype(dtype)) for array in (x, weight, weight[:, 0, 0, 0])]
    y, backward = convolution.convolve(*given, padding=(1, 1), relu=True)
    return list(backward(y, False)[1:])


def of_product(dtype: str, machine: Emulation) -> list[Real]:
    """Both gradients of a linear layer, from four parts each."""
    rng = np.random.default_rng(0)
    x, w, dy = (
        rng.normal(size=size).astype(dtype) for size in ((1100, 9), (1030, 9), (1100, 1030))
    )
    first, second = product.Factors(dy[:, :10].T, x, sums=True), product.Factors(dy[:21], w)
    (dw, sums), (dx, _) = product.multiply(first, second)
    assert sums is not None
    return [dw, sums, dx]


def of_cross_entropy(dtype: str, machine: Emulation) -> list[Real]:
    logits = np.random.default_rng(0).normal(size=(1300, 5)).astype(dtype)
    return list(cross_entropy.cross_entropy(logits, np.arange(1300) % 5, 0.5))


def of_norms(dtype: str, machine: Emulation) -> list[Real]:
    """Of parameters for each column, and for each channel of groups."""
    x, dy = np.random.default_rng(0).normal(size=(2, 400, 40)).astype(dtype)
    _, backward = layer_norm.normalize(x, dy[0], x[0], axes=(1,), eps=1e-3)
    found = list(backward(dy, False)[1:])
    images, own = (it.reshape(100, 2, 1, -1) for it in (x, dy))
    _, backward = layer_norm.normalize(
        images, own[0, :, :, :1], own[1, :, :, :1], axes=(2, 3), eps=1e-3
    )
    return [*found, *backward(own, False)[1:]]


SUMS = [
    (of_norms, "normalize_to_channel"),
    (of_convolution, "convolve_to_weight"),
    (of_product, "multiply"),
    (of_cross_entropy, "cross_entropy"),
]


@pytest.mark.parametrize(("compute", "kernel"), SUMS, ids=[kernel for _, kernel in SUMS])
def test_whichever_block_is_last_the_sum_is_the_same(
    compute: Callable[..., list[Real]],
    kernel: str,
    dtype: str,
    machine: Emulation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for machine.order in (0, 1, 2, 3):
        machine.launches.clear()
        found.append(compute(dtype, machine))
        assert machine.launches[-1] == kernel and "add_up" not in machine.launches
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(other, found[0], strict=True))
    monkeypatch.setattr(last, "MOST_READS", 0)  # a second launch adds the same parts
    for a, b in zip(compute(dtype, machine), found[0], strict=True):
        assert_close(a, b.astype("f8"), 3000)
    assert machine.launches[-1] == "add_up"


def test_a_sum_of_too_many_stripes_or_parts_takes_a_second_launch(machine: Emulation) -> None:
    def parts(count: int, stripes: int, reads: int, before: int = 0) -> Any:
        return last.parts_of_sum(machine, (count, 7), "f4", stripes, reads, before)

    at = machine.counted.ctypes.data
    assert [parts(3, 5, last.MOST_READS, before).counters for before in (0, 4)] == [at, at + 16]
    for few in (
        parts(1, 5, 1),
        parts(3, 5, last.MOST_READS + 1),
        parts(3, launch.MOST_COUNTERS, 1, before=1),
    ):
        assert few.counters == 0 and few.total is None
