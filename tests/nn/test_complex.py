"""Complex numbers: right gradients where a layer only moves, adds or averages, else a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.errors import InputError

BACKENDS = ["numpy", "array_api_strict", "torch"]
RIGHT: dict[str, tuple[Callable[[], nn.Layer], tuple[int, ...]]] = {
    "Flatten": (nn.Flatten, (2, 3, 4)),
    "LastTimeStep": (nn.LastTimeStep, (2, 3, 4)),
    "Identity": (nn.Identity, (2, 3)),
    "Reshape": (lambda: nn.Reshape(6), (2, 2, 3)),
    "Permute": (lambda: nn.Permute(0, 2, 1), (2, 2, 3)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1), (2, 2, 5, 6)),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), (2, 2, 5)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 2, 5, 6)),
    "Upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 2, 3, 4)),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, -1, 2, 0)), (2, 2, 3, 4)),
    "Concatenate": (lambda: nn.Sequential(nn.Parallel(nn.Identity(), nn.Permute(0, 2, 1)),
                                          nn.Concatenate()), (2, 3, 3)),
    "Dropout": (lambda: nn.Dropout(0.5), (4, 5)),
    "a chain": (lambda: nn.Sequential(nn.AvgPool2d(2), nn.ZeroPad2d(1), nn.Flatten()),
                (2, 1, 4, 4)),
    "Residual": (lambda: nn.Residual(nn.Permute(0, 2, 1)), (2, 3, 3)),
}  # fmt: skip
WRONG: dict[str, tuple[Callable[[], nn.Layer], tuple[int, ...]]] = {
    "Tanh": (nn.Tanh, (2, 3)),
    "Linear": (lambda: nn.Linear(3, 2, rng=0).astype("complex128"), (2, 3)),
    "Linear, Flatten": (
        lambda: nn.Sequential(nn.Linear(3, 2, rng=0), nn.Flatten()).astype("complex128"),
        (2, 3),
    ),
    "Tanh inside": (lambda: nn.Sequential(nn.Residual(nn.Tanh()), nn.Flatten()), (2, 3)),
}


def normal(*shape: int, seed: int = 0) -> Any:
    re, im = np.random.default_rng(seed).normal(size=(2, *shape))
    return re + 1j * im


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(RIGHT))
def test_gradients_are_those_of_real_and_imaginary_parts(name: str, backend: str) -> None:
    """For a real matrix A: y = A x and ∂L/∂x = Aᵀ ∂L/∂y, part by part."""
    pytest.importorskip(backend)
    make, shape = RIGHT[name]
    with xbp.use_backend(backend):
        layer, x = make(), normal(*shape)
        y, backward = layer.forward(xbp.asarray(x), training=True, rng=0)
        dy = normal(*y.shape, seed=1)
        got = [xbp.to_numpy(y), xbp.to_numpy(backward(xbp.asarray(dy)))]
        for part in (np.real, np.imag):
            own, own_backward = layer.forward(xbp.asarray(part(x).copy()), training=True, rng=0)
            expected = own, own_backward(xbp.asarray(part(dy).copy()))
            for found, wanted in zip(got, expected, strict=True):
                np.testing.assert_allclose(part(found), xbp.to_numpy(wanted), rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(WRONG))
def test_other_backwards_are_refused(name: str, backend: str) -> None:
    pytest.importorskip(backend)
    make, shape = WRONG[name]
    with xbp.use_backend(backend):
        y, backward = make().forward(xbp.asarray(normal(*shape)))
        said = r"^(Tanh|Linear)\(.*\) has no backward for complex numbers; only layers that"
        with pytest.raises(InputError, match=said):
            backward(y)
