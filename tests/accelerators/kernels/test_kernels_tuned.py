"""Kernels divided by measured choices: the same results, and only by choices that they can use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from nightly import NIGHTLY

from xbp import primitives
from xbp.accelerators.cuda import (
    batch_norm,
    convolution,
    embedding,
    layer_norm,
    product,
    short,
    softmax,
    tuned,
    wide,
)
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


def test_products(machine: Emulation, macros: list[dict[str, Any]], tuned_by: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 40)).astype("f4"), rng.normal(size=(40, 30)).astype("f4")
    tuned_by({"products": {"float32 1": [[[20, 30, 44], [16, 16, 4, 2, 32, 3]]]}})
    ((c, _),) = product.multiply(Factors(a, b))
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)
    tile = ("TILE_ROWS", "TILE_COLUMNS", "TALL", "WIDE", "DEPTH")
    assert tuple(macros[0][name] for name in tile) == (16, 16, 4, 2, 32)
    assert machine.grids[0] == (2 * 2 * 3, 1)  # tiles and parts


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


def test_convolutions_of_few_channels(
    machine: Emulation, macros: list[dict[str, Any]], tuned_by: Any
) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(150, 3, 6, 5)), rng.normal(size=(5, 3, 3, 3))
    y, backward = convolve.reference(x, weight, stride=(1, 1), padding=(0, 0))
    truth = y, *backward(y)[:2]
    key = "float32 3x3/(1, 1) max (1, 1)"
    tuned_by({
        "convolve": {key: [[[5, 1800, 3], [3, 2]]]},
        "convolve_to_input": {key: [[[3, 4500, 5], [2, 4]]]},
        "convolve_to_weight": {key: [[[3, 1800], [5]]]},
    })  # fmt: skip
    result, gradients = convolution.convolve(x.astype("f4"), weight.astype("f4"))
    found = result, *gradients(y.astype("f4"))[:2]
    for array, true in zip(found, truth, strict=True):
        np.testing.assert_allclose(array, true, atol=2e-5 * abs(true).max())
    tiles = [(it["TILE"], it["TEAMS"]) for it in macros if "TEAMS" in it]
    assert tiles[0] == (3, 2) and (2, 4) in tiles and (3, 5) in machine.grids


def test_teams_have_room(machine: Emulation, tuned_by: Any) -> None:
    decision = tuned.Decision("convolve", "float32", (16, 1000, 6))
    rule = convolution.division(machine, decision, 4)
    for numbers in ([8, 4], [9, 1], [0, 1], [4, 0], [4], [4, 5]):
        tuned_by({"convolve": {"float32": [[[16, 1000, 6], numbers]]}})
        assert convolution.division(machine, decision, 4) == rule
    tuned_by({"convolve": {"float32": [[[16, 1000, 6], [8, 2]]]}})
    assert convolution.division(machine, decision, 4) == ((8, 2), 8, 2)


@pytest.mark.parametrize("lanes", [64] + [128] * NIGHTLY)
def test_threads_that_share_a_row(lanes: int, macros: list[dict[str, Any]], tuned_by: Any) -> None:
    rng = np.random.default_rng(0)
    size, row = (5, 100), [[[5, 100], [lanes]]]
    x, dy = (rng.normal(size=size).astype("f4") for _ in range(2))
    names = ("softmax", "softmax_to_input")
    tuned_by({
        "softmax": {f"float32 {name}": row for name in names},
        "rows of layer_norm": {"float32": row},
    })  # fmt: skip
    for fast, reference, options in (
        (softmax.softmax, primitives.softmax.reference, {"axis": 1}),
        (layer_norm.normalize, primitives.normalize.reference, {"axes": (1,), "eps": 1e-5}),
    ):
        own = (x[0], dy[0]) if "eps" in options else ()
        y, backward = fast(x, *own, **options)
        true, true_backward = reference(*(it.astype("f8") for it in (x, *own)), **options)
        found, truth = (y, *backward(dy)), (true, *true_backward(dy.astype("f8")))
        for array, right in zip(found, truth, strict=True):
            np.testing.assert_allclose(array, right, rtol=1e-4, atol=1e-5)
    assert [it["LANES"] for it in macros if "CAUSAL" in it] == [lanes] * 2
    assert [it["LANES"] for it in macros if "CENTRE" in it] == [lanes] * 3


def test_parts_of_sums(machine: Emulation, tuned_by: Any) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3000, 3)).astype("f4"), np.ones(3, "f4")
    tokens = rng.integers(0, 5, 300)
    table, dy = np.ones((5, 4), "f4"), rng.normal(size=(300, 4)).astype("f4")
    sums = np.stack([dy[tokens == i].sum(axis=0) for i in range(5)])
    tuned_by({
        "batch_norm": {"float32, side 32": [[[1, 3000], [2]]]},
        "parts of layer_norm": {"float32": [[[1, 96000], [3]]]},
        "embedding": {"float32": [[[300, 4, 5], [0]]]},
    })  # fmt: skip
    y, backward = batch_norm.batch_normalize(x, weight, None, None, None, eps=1e-5)
    np.testing.assert_allclose(y, (x - x.mean(axis=0)) / x.std(axis=0), rtol=1e-3, atol=1e-5)
    assert machine.grids[-1] == (2, 1)
    _, backward = layer_norm.normalize(x, weight, weight, axes=(1,), eps=1e-5)
    np.testing.assert_allclose(backward(x)[2], x.sum(axis=0), rtol=1e-4, atol=1e-4)
    assert (1, 3) in machine.grids
    found = embedding.embedding(tokens, table)[1](dy)[1]
    np.testing.assert_allclose(found, sums, rtol=1e-4, atol=1e-5)
    assert "scatter_few" in machine.launches and "scatter_add" not in machine.launches
    machine.device = ""
    assert embedding.embedding(tokens, table)[1](dy)[1].tobytes() != b""
    assert machine.launches.count("scatter_add") == 1


def test_what_tensor_cores_multiply(tuned_by: Any) -> None:
    a, b = np.ones((2, 8, 16), "f4"), np.ones((16, 24), "f4")
    assert short.rounded_matmul(a, b, name="bfloat16") is NotImplemented
    tuned_by({"short": {"bfloat16": [[[16, 24, 16], [1]]]}})
    assert (short.rounded_matmul(a, b, name="bfloat16") == 16).all()
    assert short.rounded_matmul(a, b, name="float16") is NotImplemented
