"""Backends, devices and dtypes of a layer, and inputs on other ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nn.core.blocks import HERE, PAIRS, Block, assert_one_sentence, equal, mlp
from numpy.random import default_rng

import xbp
from xbp import nn
from xbp.backend import Backend, backend_of, dtype_name, find_backend
from xbp.errors import BackendError, InputError


def test_a_model_goes_round_all_backends_and_comes_back_bit_for_bit() -> None:
    model = Block()
    state, parameters = model.state_dict(), model.parameters()
    for index, parameter in enumerate(parameters):
        parameter.add_grad(np.full(parameter.shape, index, dtype=np.float32))
    for name in [*HERE, *reversed(HERE)]:
        place = find_backend(name)
        assert model.to(name) is model
        assert model.backend() == place
        assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
        assert all(backend_of(p.data) == place for p in parameters)
        assert all(backend_of(p.grad) == place for p in parameters)
        assert equal(model.state_dict(), state)
    gradients = [np.unique(xbp.to_numpy(p.grad)).tolist() for p in parameters]
    assert gradients == [[float(index)] for index in range(len(parameters))]


def test_a_model_goes_to_a_device(strict: Backend) -> None:
    there = find_backend("array_api_strict", device="device2")
    model = nn.Linear(2, 1, rng=0)
    assert model.to("array_api_strict", device="device2").backend() == there
    assert model.to(strict).backend() == strict
    assert model.to(there).backend() == there


def test_moving_to_where_it_is_keeps_the_values_in_place(backend: Backend) -> None:
    parameter = nn.Parameter(backend.asarray([1.0, 2.0]))
    data = parameter.data
    parameter.to(backend)
    parameter.data[0] = 3.0
    assert xbp.to_numpy(data).tolist() == [3.0, 2.0]


def test_a_model_stays_where_it_is_if_the_backend_does_not_exist() -> None:
    model = nn.Linear(2, 1, rng=0)
    with pytest.raises(BackendError, match="there is no backend 'nunpy'"):
        model.to("nunpy")
    assert model.backend() == find_backend("numpy")


def test_a_moved_model_computes_the_same(backend: Backend) -> None:
    x = default_rng(0).normal(size=(5, 3))
    model = mlp()
    expected = model(x)
    found = model.to(backend)(backend.asarray(x))
    assert backend_of(found) == backend
    # Sums of four products of order one, in another order for another library.
    np.testing.assert_allclose(xbp.to_numpy(found), expected, rtol=0, atol=1e-14)


def test_astype_converts_values_and_gradients_in_every_backend(backend: Backend) -> None:
    model = mlp().to(backend)
    double = model.state_dict()
    for parameter in model.parameters():
        parameter.add_grad(backend.xp.ones_like(parameter.data))
    for dtype in ("float32", np.float64, backend.xp.float32):
        assert model.astype(dtype) is model
        name = dtype_name(dtype)
        assert {dtype_name(p.data.dtype) for p in model.parameters()} == {name}
        assert {dtype_name(p.grad.dtype) for p in model.parameters() if p.grad is not None} == {
            name
        }
        assert all(backend_of(p.data) == backend for p in model.parameters())
        rounded = {key: array.astype("float32").astype(name) for key, array in double.items()}
        assert equal(model.state_dict(), rounded)
        x = backend.asarray(np.ones((1, 3)), dtype=name)
        assert dtype_name(model(x).dtype) == name


def test_an_unknown_dtype_changes_nothing() -> None:
    model = nn.Linear(2, 1, rng=0)
    with pytest.raises(InputError, match="unknown dtype 'float33'"):
        model.astype("float33")
    assert model.weight.data.dtype == np.float32


LAYERS: list[tuple[Callable[[], nn.Layer], tuple[int, ...], str]] = [
    (lambda: nn.Linear(3, 2, rng=0), (4, 3), "Linear(3, 2, bias=True)"),
    (lambda: nn.Conv2d(1, 2, 3, rng=0), (1, 1, 4, 4), "Conv2d(1, 2, kernel_size=(3, 3)"),
    (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 2, rng=0)),
        (4, 3),
        "Linear(3, 2, bias=True)",
    ),
]


@pytest.mark.parametrize(("make", "shape", "name"), LAYERS)
@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_mixing_backends_is_one_sentence_that_names_the_layer_and_both_sides(
    mine: str, theirs: str, make: Callable[[], nn.Layer], shape: tuple[int, ...], name: str
) -> None:
    model, place = make().to(mine), find_backend(theirs)
    x = place.asarray(np.zeros(shape, np.float32))
    for use in (model, model.forward):
        with pytest.raises(BackendError) as caught:
            use(x)
        sides = (f"input on {place}", f"parameters are on {find_backend(mine)}")
        assert_one_sentence(caught, name, *sides, ".to(", "xbp.asarray(")


def test_mixing_devices_is_one_sentence_too(strict: Backend) -> None:
    model = nn.Linear(3, 2, rng=0).to("array_api_strict", device="device2")
    with pytest.raises(BackendError) as caught:
        model(strict.asarray(np.zeros((4, 3), np.float32)))
    assert_one_sentence(caught, "Linear(3, 2, bias=True)", "'device1'", "'device2'")


@pytest.mark.parametrize(("make", "shape", "name"), LAYERS)
def test_input_of_another_dtype_is_one_sentence_that_names_the_layer_and_both_dtypes(
    backend: Backend, make: Callable[[], nn.Layer], shape: tuple[int, ...], name: str
) -> None:
    model = make().to(backend)
    with pytest.raises(InputError) as caught:
        model(backend.asarray(np.zeros(shape), dtype="float64"))
    advice = ("xbp.asarray(x, dtype='float32')", ".astype('float64')")
    assert_one_sentence(caught, name, "got float64 input", "are float32", *advice)
    for dtype in ("int64", "uint8", "bool"):
        with pytest.raises(InputError) as caught:
            model(backend.asarray(np.zeros(shape), dtype=dtype))
        assert_one_sentence(caught, "needs floating-point input", f"got {dtype}", "xbp.asarray(")


@pytest.mark.parametrize("x", [[[1.0, 2.0, 3.0]], 1.0, "x", None])
def test_input_that_is_no_array_is_one_sentence(x: Any) -> None:
    for layer in (nn.Linear(3, 2), nn.ReLU(), mlp()):
        with pytest.raises(InputError) as caught:
            layer(x)
        assert_one_sentence(caught, type(x).__name__, "xbp.asarray")


def test_a_file_mapped_into_memory_is_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = nn.Linear(3, 2, rng=0)
    assert model(mapped).tolist() == model(np.ones((4, 3), np.float32)).tolist()
