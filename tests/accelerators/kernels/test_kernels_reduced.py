"""Products in reduced precision by the kernels, emulated on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler

import xbp
from xbp import nn, primitives
from xbp.primitives.rounding import FORMATS, round_to

pytestmark = [needs_a_compiler, pytest.mark.usefixtures("_in_use")]

EPS = 2.0**-24
OPERATIONS: dict[str, tuple[Any, ...]] = {
    # operation, x, weight, bias, options, kernels beside those that round and add up
    "affine": (primitives.affine, (9, 20), (7, 20), 7, {}, {"multiply"}),
    "a few channels": (
        *(primitives.convolve, (5, 2, 7, 6), (3, 2, 3, 3), 3, {"padding": (1, 1)}),
        {"convolve", "convolve_to_weight", "convolve_to_input"},
    ),
    "many channels": (  # unfolded, so that tensor cores compute large ones
        *(primitives.convolve, (2, 16, 4, 5), (16, 16, 3, 3), 16, {"padding": (1, 1)}),
        {"multiply"},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("case", OPERATIONS)
def test_kernels_are_given_rounded_factors(case: str, name: str, machine: Emulation) -> None:
    """The sums alone err, by n ε Σ|a||b|."""
    operation, x, weight, bias, options, kernels = OPERATIONS[case]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("f4") for shape in (x, weight, bias)]

    def run(given: Any, dy: Any, dtype: str) -> list[Any]:
        y, gradients = operation(*(array.astype(dtype) for array in given), **options)
        return [y, *gradients(dy[: y.size].reshape(y.shape).astype(dtype))]

    dy = rng.normal(size=2000).astype("f4")
    with xbp.precision(name):
        found = run(arrays, dy, "f4")
    assert set(machine.launches) - {"activate", "add_up"} == kernels
    assert machine.launches.count("activate") >= 3
    near = [round_to(arrays[0], name), round_to(arrays[1], name), arrays[2]]
    truth = run(near, round_to(dy, name), "f8")
    truth[3] = run(near, dy, "f8")[3]
    sizes = run([abs(array) for array in near], abs(dy), "f8")
    for one, exact, size in zip(found, truth, sizes, strict=True):
        assert np.all(abs(one - exact) <= 400 * EPS * size)


@pytest.mark.parametrize("name", FORMATS)
def test_fused_kernels_do_not_take_a_chain(name: str, machine: Emulation) -> None:
    """Layers that would be one pass are several, each with rounded factors."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(8, 4, rng=1), nn.ReLU())
    x = np.random.default_rng(0).normal(size=(3, 1, 6, 6)).astype("f4")
    with xbp.precision(name):
        y, backward = model.forward(x, training=True)
    backward(np.ones_like(y))
    assert machine.launches.count("activate") == 6 + 2  # the factors of two layers, and ReLU
    assert "pool" in machine.launches
