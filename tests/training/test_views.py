"""The mean of a model's outputs over views of each image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.errors import InputError
from xbp.testing import assert_no_host_sync
from xbp.training.views import moved, over_views

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 4, 5))


@pytest.mark.parametrize("shift", [1, -1, 2, -2, 3, -3])
def test_a_moved_image_is_a_window_of_the_padded_one(shift: int) -> None:
    size = abs(shift)
    padded = np.pad(IMAGES, [(0, 0), (0, 0), (size, size), (size, size)], mode="reflect")
    first = size + shift
    window = padded[:, :, first : first + 4, first : first + 5]
    np.testing.assert_array_equal(moved(IMAGES, shift), window)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_mean_has_its_weights(mirror: bool, shift: int) -> None:
    """A model that is not linear, so that no other weights give the same."""
    weights = np.random.default_rng(1).normal(size=(60, 2))

    def model(x: Any) -> Any:
        return np.tanh(x.reshape(2, 60) @ weights) ** 2

    views = [(1.0, IMAGES)]
    if shift:
        views = [(0.5, IMAGES), (0.25, moved(IMAGES, shift)), (0.25, moved(IMAGES, -shift))]
    if mirror:
        views = [(w / 2, a) for w, view in views for a in (view, view[..., ::-1])]
    assert sum(w for w, _ in views) == 1
    expected = sum(w * model(a) for w, a in views)
    found = over_views(model, mirror=mirror, shift=shift)(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_without_views_it_is_the_model() -> None:
    model = nn.Linear(3, 2, rng=0)
    assert over_views(model) is model


def test_each_output_is_the_mean_of_its_own() -> None:
    x = np.arange(8.0).reshape(1, 1, 2, 4)
    one, other = over_views(lambda x: (x, x**2), mirror=True)(x)
    np.testing.assert_allclose(one, (x + x[..., ::-1]) / 2, rtol=1e-15)
    np.testing.assert_allclose(other, (x**2 + x[..., ::-1] ** 2) / 2, rtol=1e-15)


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_there_is_no_wait_for_the_device(backend: str) -> None:
    pytest.importorskip(backend)
    with xbp.use_backend(backend):
        x = xbp.asarray(IMAGES)
        run = over_views(nn.Flatten(), mirror=True, shift=1)
        with assert_no_host_sync():
            found = run(x)
    expected = over_views(nn.Flatten(), mirror=True, shift=1)(IMAGES)
    np.testing.assert_allclose(xbp.to_numpy(found), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("views", [{"mirror": True}, {"shift": 1}])
@pytest.mark.parametrize("x", [np.ones((2, 3)), (IMAGES, IMAGES)])
def test_views_need_images(x: Any, views: Any) -> None:
    with pytest.raises(InputError, match=r"mirror and shift need images \(N, C, H, W\), got "):
        over_views(lambda x: x, **views)(x)


def test_a_shift_is_less_than_the_image() -> None:
    with pytest.raises(InputError, match="shift must be less than height and width, got 4 for "):
        over_views(lambda x: x, shift=4)(IMAGES)
    with pytest.raises(InputError, match="shift must be an integer of at least 0, got -1"):
        over_views(lambda x: x, shift=-1)
