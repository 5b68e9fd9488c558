"""State dicts: copies on numpy, loaded in place or not at all."""

from typing import Any

import numpy as np
import pytest
from nn.core.blocks import HERE, NAMES, Block, assert_one_sentence, equal

from xbp import nn
from xbp.backend import Backend, find_backend
from xbp.errors import InputError


def test_a_state_holds_numpy_copies(backend: Backend) -> None:
    model = Block().to(backend)
    state = model.state_dict()
    expected = Block().state_dict()
    assert {type(array) for array in state.values()} == {np.ndarray}
    assert equal(state, expected)
    for array in state.values():
        array += 1
    assert equal(model.state_dict(), expected)
    before = model.state_dict()
    model.scale.data[...] = 5.0
    assert before["scale"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("source", HERE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_of_any_library_is_loaded_in_place(
    backend: Backend, source: str, dtype: str
) -> None:
    model = Block().to(backend)
    arrays = [parameter.data for parameter in model.parameters()]
    wanted = {name: array * np.pi for name, array in Block().astype("float64").state_dict().items()}
    place = find_backend(source)
    state = {name: place.asarray(array, dtype=dtype) for name, array in wanted.items()}
    model.load_state_dict(state)
    assert all(p.data is a for p, a in zip(model.parameters(), arrays, strict=True))
    expected = {name: array.astype(dtype).astype("float32") for name, array in wanted.items()}
    assert equal(model.state_dict(), expected)
    for array in state.values():
        array[...] = 0.0
    assert equal(model.state_dict(), expected)


def test_a_state_in_another_order_is_the_same_state() -> None:
    state = {name: array + 1 for name, array in Block().state_dict().items()}
    model = Block()
    model.load_state_dict(dict(reversed(state.items())))
    assert equal(model.state_dict(), state)


def changed(**changes: Any) -> dict[str, Any]:
    """A state of Block that differs from a new Block's in all entries; None removes an entry."""
    state: dict[str, Any] = {name: array + 1 for name, array in Block().state_dict().items()}
    state |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "problems"),
    [
        ({}, NAMES),
        (changed(scale=None), ["'scale' is missing"]),
        (changed(pair__1__0__bias=None), ["'pair.1.0.bias' is missing"]),
        (changed(extra=np.ones(1)), ["'extra' is unknown"]),
        (changed(scale=np.ones(4)), ["'scale' has shape (4,) in place of (3,)"]),
        (changed(scale=np.ones((3, 1))), ["'scale' has shape (3, 1) in place of (3,)"]),
        (changed(scale=np.array(1.0)), ["'scale' has shape () in place of (3,)"]),
        (
            changed(
                scale=None,
                inner__bias=None,
                extra=np.ones(1),
                other=np.ones(1),
                inner__weight=np.ones((2, 3)),
                many__0__weight=np.ones(9),
            ),
            [
                "'scale' is missing",
                "'inner.bias' is missing",
                "'extra' is unknown",
                "'other' is unknown",
                "'inner.weight' has shape (2, 3) in place of (3, 2)",
                "'many.0.weight' has shape (9,) in place of (3, 3)",
            ],
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing_and_each_problem_is_named(
    backend: Backend, state: dict[str, Any], problems: list[str]
) -> None:
    model = Block().to(backend)
    before = model.state_dict()
    with pytest.raises(InputError) as caught:
        model.load_state_dict(state)
    assert_one_sentence(caught, "does not fit this Block", *problems)
    assert equal(model.state_dict(), before)


def test_the_state_of_a_larger_model_is_refused_in_a_short_sentence() -> None:
    state = {f"{index}.weight": np.ones((2, 2)) for index in range(50)}
    with pytest.raises(InputError, match=r"'weight' is missing, .*, and 41 more$") as caught:
        nn.Linear(2, 2, bias=False, rng=0).load_state_dict(state)
    assert len(str(caught.value)) < 400


def test_a_state_with_text_in_place_of_numbers_changes_nothing() -> None:
    model = Block()
    before = model.state_dict()
    with pytest.raises(InputError):
        model.load_state_dict(changed(pair__1__0__bias=np.array(["a", "b"])))
    assert equal(model.state_dict(), before)


def test_a_state_of_lists_is_loaded_or_refused_in_one_sentence() -> None:
    model = nn.Linear(2, 1, bias=False)
    try:
        model.load_state_dict({"weight": [[1.0, 2.0]]})
    except InputError:
        return
    assert model.weight.data.tolist() == [[1.0, 2.0]]
