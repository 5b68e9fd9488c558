"""Convolutions 3 × 3 with a quarter of the products, emulated on the CPU, against the reference."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.convolutions import Case, computed, draw, reference, truth
from accelerators.kernels.reference import LAYOUTS, ends_with, needs_a_compiler
from layouts import Real, assert_close
from nightly import NIGHTLY

from xbp import accelerators, nn, optim
from xbp.accelerators.cuda import convolution, launch, wide, winograd

pytestmark = needs_a_compiler


def case(n: int, c: int, size: Any, o: int, padding: Any, groups: int = 1, **more: Any) -> Case:
    then = more.get("relu", False), more.get("pool", (1, 1))
    return (n, c, *size, o, (3, 3), (1, 1), padding, (1, 1), groups, *then)


CASES = [
    case(8, 16, (8, 8), 16, (1, 1), relu=True, pool=(2, 2)),
    case(3, 17, (5, 7), 33, (1, 1), relu=True),
    case(5, 16, (1, 1), 40, (2, 2)),
    case(2, 32, (9, 6), 40, ((2, 0), (0, 2)), 2, pool=(2, 2)),
    case(1, 24, (6, 6), 24, (0, 0)),
    case(9, 40, (3, 10), 20, ((0, 1), (2, 1)), pool=(1, 2)),
]
KERNELS = [
    *("winograd_terms", "convolve_wide", "winograd_output"),
    *("winograd_terms", "convolve_wide_to_weight", "winograd_to_weight"),
    *("convolve_wide", "winograd_output"),
]


@pytest.fixture(autouse=True)
def _wherever_it_can(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XBP_WINOGRAD", "all")
    yield
    for choice in (wide.loadable, wide.tile_of, wide.split):
        choice.cache_clear()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_direction(
    case: Case, dtype: str, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bounds of direct sums, whose errors are half as large."""
    index = CASES.index(case)
    if index % 2:  # several parts of ∂L/∂W
        monkeypatch.setattr(wide, "LEAST_LENGTH", 8)
    found = computed(machine, case, dtype, list(LAYOUTS)[index % len(LAYOUTS)])
    kernels = [name for name in machine.launches if "pool" not in name]
    assert kernels[:8] == KERNELS  # and so no pass for ReLU's gradient
    assert ("pool" in machine.launches) == (case[-1] == (1, 2))
    true, terms = truth(case, dtype)
    for result, it, count in zip(found, true, terms, strict=True):
        assert result.dtype == dtype
        assert_close(result, it, count)


def test_errors_are_about_twice_those_of_direct_sums(machine: Emulation) -> None:
    """Root mean squares of errors, relative to those of results, in units of 2⁻²⁴: 11.5, 11.2,
    11.1 and 1.9, where `wide` has 5.4, 5.1, 4.6 and 3.8; the points 0, ±1, ±2 would have 25."""
    it = case(8, 40, (8, 8), 36, (1, 1))
    for result, value in zip(
        computed(machine, it, "float32"), truth(it, "float32")[0], strict=True
    ):
        error, size = (np.sqrt(np.mean(array**2)) for array in (result - value, value))
        assert error < 16 * 2**-24 * size


def test_no_race(dtype: str, machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "LEAST_LENGTH", 8)  # several parts of a sum
    results = []
    for order in (0, 1, *range(5, 12 if NIGHTLY else 6)):
        machine.order = order
        results.append([array.tobytes() for array in computed(machine, CASES[3], dtype)])
        results[-1] += [array.tobytes() for array in spoiled(CASES[1], dtype, "x", np.nan)[0]]
    assert all(bits == results[0] for bits in results[1:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_nothing_is_read_beyond_the_end(dtype: str) -> None:
    def run() -> None:
        for case in CASES if NIGHTLY else CASES[3:]:
            launch.machines["numpy"] = Emulation(fenced=True)
            given, window, then = draw(case, dtype)
            y, back = convolution.convolve(*given, **window, **then)
            found = [y, *back(np.ones(y.shape, dtype))]
            assert all(np.isfinite(array).all() for array in found)

    assert ends_with(run) == 0


def spoiled(case: Case, dtype: str, whose: str, value: float) -> tuple[list[Real], list[Real]]:
    """Results with one number that is `value`, and another if it is not finite; the reference's."""
    given, window, then = draw(case, dtype)
    own = dict(zip(("x", "weight"), given, strict=False))
    with np.errstate(all="ignore"):
        own["dy"] = np.cos(reference(given, window, then)[0])
        own[whose][1, 2, 1, 1] = value
        if not np.isfinite(value):
            own[whose][-1, -1, -1, -1] = value
        y, back = convolution.convolve(*given, **window, **then)
        true, true_back = reference(given, window, then)
        return [y, *back(own["dy"])], [true, *true_back(own["dy"])]


@pytest.mark.parametrize("whose", ["x", "weight", "dy"])
@pytest.mark.parametrize(
    ("case", "value"),
    [
        *product(CASES[0:4:3], (np.nan, np.inf, -np.inf) if NIGHTLY else (np.inf,)),
        (CASES[1], np.nan),
        *product(CASES[:2] if NIGHTLY else CASES[:1], ("huge",)),
    ],
    ids=str,
)
def test_what_is_not_moderate_is_multiplied_directly(
    case: Case, whose: str, value: Any, dtype: str
) -> None:
    """As in the reference, where differences would make nan of an infinity, and overflow. Of an
    infinite weight ∂L/∂x has nan, for the zeros around ∂L/∂y."""
    value = 0.75 * float(np.finfo(dtype).max) if value == "huge" else value
    found, true = spoiled(case, dtype, whose, value)
    if whose == "weight":
        del found[1], true[1]
    for a, b in zip(found, true, strict=True):
        # Sums of a few hundred numbers of order 1, in float32 or better.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_without_bias(machine: Emulation) -> None:
    (x, weight, _), window, then = draw(CASES[1], "float64")
    y, back = convolution.convolve(x, weight, None, **window, **then)
    true, true_back = reference([x, weight, None], window, then)  # type: ignore[list-item]
    *found, none = back(y)
    assert none is None
    for a, b in zip([y, *found], [true, *true_back(true)[:2]], strict=True):
        assert_close(a, b, 9 * 33)


# --- where it is used ----------------------------------------------------------------------------


def test_which_convolutions_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(**given: Any) -> bool:
        options: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        options |= {"weight": (64, 64, 3, 3), "groups": 1} | given
        return winograd.takes(x, **options)

    x = np.empty((64, 64, 16, 16), "f4")
    for padding in ((0, 0), (2, 2), ((2, 0), (0, 2))):
        assert takes(padding=padding)
    assert takes(groups=2, weight=(64, 32, 3, 3))
    assert not takes(padding=(3, 1)) and not takes(padding=((0, 3), (1, 1)))
    assert not takes(stride=(2, 1)) and not takes(dilation=(1, 2))
    assert not takes(weight=(64, 64, 3, 5))
    monkeypatch.setattr(winograd, "MOST_ENTRIES", 36 * 64 * 64 * 16)
    assert not takes()
    monkeypatch.undo()
    for said in ("", "0", "yes"):
        monkeypatch.setenv("XBP_WINOGRAD", said)
        assert not takes()


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch, tuned_by: Any) -> None:
    def pays(n: int, c: int, o: int, size: int, groups: int = 1) -> bool:
        shape = (o, c // groups, 3, 3)
        return winograd.pays((n, c, size, size), shape, (size, size), groups)

    assert pays(64, 64, 128, 16) and pays(128, 128, 256, 8) and pays(128, 256, 256, 8)
    assert not pays(64, 3, 64, 32) and not pays(128, 16, 16, 32)  # the terms take too long
    assert not pays(64, 32, 32, 16)  # launches do
    assert not pays(64, 512, 512, 1)  # of 16 outputs of a tile one is wanted
    monkeypatch.setenv("XBP_WINOGRAD", "1")

    def takes(dtype: str, channels: int) -> bool:
        x, weight = np.empty((64, channels, 8, 8), dtype), (channels, channels, 3, 3)
        return winograd.takes(x, weight, (1, 1), (1, 1), (1, 1), 1)

    assert takes("float32", 256) and not takes("float32", 16) and not takes("float64", 256)
    measured = [[[64, 256, 256, 8, 8, 1], [0]], [[64, 16, 16, 8, 8, 1], [1]]]
    tuned_by({"winograd": {"float32": measured}})
    assert takes("float32", 16) and not takes("float32", 256)


# --- a network -----------------------------------------------------------------------------------


def losses_of_a_network(steps: int) -> list[float]:
    channels = (3, 16, 16, 32, 20)
    layers: list[nn.Layer] = []
    for i, (c, o) in enumerate(pairwise(channels)):
        layers += [nn.Conv2d(c, o, 3, padding=1, rng=i), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (i % 2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(80, 5, rng=9)).astype("float64")
    optimizer, losses = optim.SGD(model.parameters(), 0.1), []
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8))
    for _ in range(steps):
        logits, backward = model.forward(x, training=True)
        value, gradient = nn.CrossEntropyLoss()(logits, np.array([3, 4, 0]))
        nn.for_parameters(backward)(gradient)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value))
    return losses


@pytest.mark.usefixtures("_in_use")
def test_a_training_of_a_network_as_the_vgg(machine: Emulation) -> None:
    losses = losses_of_a_network(3)
    assert machine.launches.count("winograd_to_weight") == 3 * 3  # all but the first layer
    assert machine.launches.count("winograd_output") == 3 * 6
    with accelerators.disabled():
        # Three steps, each of sums of at most a few thousand numbers of order 1.
        np.testing.assert_allclose(losses, losses_of_a_network(3), rtol=1e-11)
