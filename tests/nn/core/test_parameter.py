"""Parameters: their data, accumulated gradients, assigned values."""

from typing import Any

import numpy as np
import pytest
from nn.core.blocks import HERE, PAIRS, assert_one_sentence
from numpy.random import default_rng

import xbp
from xbp import nn, optim
from xbp.backend import Backend, backend_of, dtype_name, find_backend
from xbp.errors import BackendError, InputError
from xbp.random import generator


def test_a_parameter_holds_its_array_without_a_copy_and_has_no_gradient() -> None:
    data = np.ones((2, 3))
    parameter = nn.Parameter(data)
    assert parameter.data is data
    assert parameter.grad is None
    assert parameter.shape == (2, 3)
    assert repr(parameter) == "Parameter(shape=(2, 3), dtype=float64)"


@pytest.mark.parametrize("thing", [[1.0], 1.0, "weight", None])
def test_a_parameter_of_no_array_is_one_sentence(thing: Any) -> None:
    with pytest.raises(InputError) as caught:
        nn.Parameter(thing)
    assert_one_sentence(caught, type(thing).__name__, "xbp.asarray")


def test_a_misspelt_attribute_of_a_parameter_is_an_error() -> None:
    with pytest.raises(AttributeError):
        nn.Parameter(np.ones(1)).gard = np.ones(1)  # type: ignore[attr-defined]


def test_a_parameter_is_drawn_on_the_current_backend(backend: Backend) -> None:
    draw = lambda shape, rng: rng.normal(size=shape)  # noqa: E731
    with xbp.use_backend(backend.name):
        parameter = nn.Parameter.draw((2, 3), draw, generator(4), "float32")
    assert backend_of(parameter.data) == backend
    assert dtype_name(parameter.data.dtype) == "float32"
    expected = default_rng(4).normal(size=(2, 3)).astype(np.float32)
    assert xbp.to_numpy(parameter.data).tolist() == expected.tolist()


def test_gradients_add_up_and_the_arrays_given_stay_as_they_are(backend: Backend) -> None:
    parameter = nn.Parameter(backend.asarray([0.0, 0.0]))
    given = [
        backend.asarray([1.0, 2.0]),
        backend.asarray([10.0, 20.0]),
        backend.asarray([0.5, 0.5]),
    ]
    totals = []
    for gradient in given:
        parameter.add_grad(gradient)
        totals.append(xbp.to_numpy(parameter.grad).tolist())
    assert totals == [[1.0, 2.0], [11.0, 22.0], [11.5, 22.5]]
    assert [xbp.to_numpy(g).tolist() for g in given] == [[1.0, 2.0], [10.0, 20.0], [0.5, 0.5]]
    assert backend_of(parameter.grad) == backend
    parameter.zero_grad()
    assert parameter.grad is None


def test_a_gradient_may_be_a_view_of_something_that_stays_as_it_is() -> None:
    whole = np.arange(6.0).reshape(2, 3)
    parameter = nn.Parameter(np.zeros((3, 2)))
    parameter.add_grad(whole.T)
    parameter.add_grad(whole.T)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == (2 * whole.T).tolist()
    assert whole.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 2), "float64"), ((3,), "float64"), ((1, 3), "float64"), ((), "float64"),
     ((2, 3, 1), "float64"), ((2, 3), "float32"), ((2, 3), "int64"), ((2, 3), "complex128")],
)  # fmt: skip
def test_a_gradient_of_another_shape_or_dtype_is_one_sentence(
    backend: Backend, shape: tuple[int, ...], dtype: str
) -> None:
    parameter = nn.Parameter(backend.asarray(np.zeros((2, 3))))
    good = backend.asarray(np.ones((2, 3)))
    bad = backend.asarray(np.ones(shape), dtype=dtype)
    for _ in range(2):  # as the first gradient, and as an added one
        with pytest.raises(InputError) as caught:
            parameter.add_grad(bad)
        assert_one_sentence(caught, str(shape), "(2, 3)", dtype, "float64", "backward")
        parameter.add_grad(good)
    assert xbp.to_numpy(parameter.grad).tolist() == np.full((2, 3), 2.0).tolist()


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_a_gradient_of_another_library_is_one_sentence(mine: str, theirs: str) -> None:
    parameter = nn.Parameter(find_backend(mine).asarray([0.0]))
    with pytest.raises(BackendError) as caught:
        parameter.add_grad(find_backend(theirs).asarray([1.0]))
    assert_one_sentence(caught, mine, theirs, "backward")
    assert parameter.grad is None


@pytest.mark.parametrize("source", HERE)
def test_a_value_of_any_library_is_assigned_in_place(backend: Backend, source: str) -> None:
    data = backend.asarray([0.0, 0.0], dtype="float32")
    parameter = nn.Parameter(data)
    value = find_backend(source).asarray([1.0, 0.1])
    parameter.assign(value)
    assert parameter.data is data
    assert xbp.to_numpy(data).tolist() == [1.0, np.float32(0.1)]
    value[0] = 5.0
    assert xbp.to_numpy(data).tolist()[0] == 1.0


def test_a_parameter_that_is_a_numpy_scalar_is_refused_or_trained() -> None:
    try:
        parameter = nn.Parameter(np.float64(1.0))
    except InputError:
        return
    parameter.add_grad(np.array(1.0))
    optim.SGD([parameter], lr=0.5).step()
    assert parameter.data == 0.5
