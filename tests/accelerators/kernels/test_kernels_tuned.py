"""Kernels divided by measured choices: the same results, and only by choices that they can use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler

from xbp.accelerators.cuda import product, tuned, wide
from xbp.accelerators.cuda.product import Factors
from xbp.primitives import convolve

pytestmark = needs_a_compiler


@pytest.fixture
def macros(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The macros of each launch."""
    found: list[dict[str, Any]] = []
    whole = machine.launch

    def launch_(kernel: Any, macros: dict[str, Any], *rest: Any) -> None:
        found.append(macros)
        whole(kernel, macros, *rest)

    monkeypatch.setattr(machine, "launch", launch_)
    return found


def test_wide_convolutions(macros: list[dict[str, Any]], tuned_by: Any) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(8, 16, 5, 4)), rng.normal(size=(16, 16, 3, 3))
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    y, gradients = convolve.reference(x, weight, **options)
    truth = y, *gradients(y)[:2]
    key = "float32 3x3/1x1"
    tuned_by({
        "wide": {key: [[[16, 160, 144, 1], [64, 128, 8, 8, 8, 8]]]},
        "wide_to_input": {key: [[[16, 160, 144, 1], [32, 128, 8, 4, 8, 0]]]},
        "wide_to_weight": {key: [[[16, 144, 160, 1], [32, 128, 8, 4, 8, 0]]]},
    })  # fmt: skip
    given = x.astype("f4"), weight.astype("f4"), None, *options.values()
    result, backward = wide.convolve(*given, groups=1, relu=False)
    found = result, *backward(y.astype("f4"))[:2]
    for array, true in zip(found, truth, strict=True):
        np.testing.assert_allclose(array, true, atol=2e-5 * abs(true).max())
    sides = [(it["TILE_M"], it["IMAGES"]) for it in macros if "TILE_M" in it]
    assert sides == [(64, 8), (32, 0), (32, 0)]


def test_products(macros: list[dict[str, Any]], tuned_by: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 40)).astype("f4"), rng.normal(size=(40, 30)).astype("f4")
    tuned_by({"products": {"float32 1": [[[20, 30, 44], [16, 16, 4, 2, 32, 3]]]}})
    ((c, _),) = product.multiply(Factors(a, b))
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)
    tile = ("TILE_ROWS", "TILE_COLUMNS", "TALL", "WIDE", "DEPTH")
    assert tuple(macros[0][name] for name in tile) == (16, 16, 4, 2, 32)
    assert len(macros) == 2  # the second adds the parts up


@pytest.mark.parametrize(
    "numbers",
    [
        (16, 16, 4, 2, 0, 1),  # no terms at a time
        (16, 16, 4, 2, 36, 1),  # no whole number of steps
        (16, 16, 4, 2, 512, 1),  # more than the shared memory
        (16, 16, 4, 8, 32, 1),  # no such tile
        (16, 16, 4, 2, 32, 0),
        (16, 16, 4, 2, 32, 11),  # more parts than loads
        (16, 16, 4, 2, 32),
        (16, 16, 4, 2, 32, 1, 1),
    ],
)
def test_products_are_not_divided_by_what_does_not_fit(numbers: tuple[int, ...]) -> None:
    assert product.divides((16, 16, 4, 2, 32, 1), [(20, 30, 40)], 4)
    assert not product.divides(numbers, [(20, 30, 40)], 4)


def test_whatever_the_rule_chooses_may_be_measured() -> None:
    for itemsize in (4, 8):
        for size in ((1, 1, 1), (10, 84, 128), (120, 400, 2048), (2048, 2048, 2048)):
            for sizes in ([size], [size, size[::-1]]):
                tile, parts = product.tile_for(sizes, itemsize)
                assert product.divides((*tile[:5], *parts), sizes, itemsize)


def test_a_tile_that_cannot_be_loaded_is_not_used(machine: Emulation, tuned_by: Any) -> None:
    tuned_by({"wide": {"float32 3x3/1x1": [[[16, 160, 144, 1], [32, 256, 8, 8, 8, 0]]]}})
    decision = tuned.Decision("wide", "float32 3x3/1x1", (16, 160, 144, 1))
    found = [
        wide.tile_by(machine, decision, wide.tiles_of(np.dtype("float32"), vector)).n
        for vector in (4, 1)
    ]
    assert found[0] == 256 > found[1]


def test_a_choice_between_two_libraries(tuned_by: Any) -> None:
    a, b = np.ones((64, 64), "f4"), np.ones((64, 64), "f4")
    assert not product.is_large(a, b)
    tuned_by({"large": {"float32": [[[64, 64, 64], [1]], [[8, 8, 8], [2]]]}})
    assert product.is_large(a, b) and product.is_large(a[:60], b)
    assert not product.is_large(a[:8, :8], b[:8, :8]) and not product.is_large(a[:32], b)
