"""The state of an optimizer: saved, restored, and refused where it does not fit."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from optim.rules import feed
from optim.steps import HERE, Make, one_sentence, stateful, two_gradients, values

import xbp
from xbp import nn, optim
from xbp.backend import backend_of, find_backend
from xbp.errors import InputError


def as_it_is(state: dict[str, Any]) -> dict[str, Any]:
    return state


def through_safetensors(state: dict[str, Any]) -> dict[str, Any]:
    """A state of arrays only, in another order."""
    arrays = {key: np.ascontiguousarray(state[key]) for key in reversed(state)}
    return safetensors.numpy.load(safetensors.numpy.save(arrays))


@stateful
@pytest.mark.parametrize("convert", [as_it_is, through_safetensors])
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    backend: str, dtype: str, convert: Callable[..., dict[str, Any]], make: Make
) -> None:
    gradients = list(two_gradients(8))
    starts = [np.array([1.0, 2.0]), np.array([[3.0]])]

    def new() -> optim.Optimizer:
        place = find_backend(backend)
        return make([nn.Parameter(place.asarray(start.copy(), dtype=dtype)) for start in starts])

    whole, interrupted = new(), new()
    for pair in gradients:
        feed(whole, *pair)
    for pair in gradients[:4]:
        feed(interrupted, *pair)
    state = convert(interrupted.state_dict())
    saved = values(state)

    resumed = new()
    for before, after in zip(interrupted.parameters, resumed.parameters, strict=True):
        after.assign(before.data)
    resumed.load_state_dict(state)
    for pair in gradients[4:]:
        feed(resumed, *pair)
        feed(interrupted, *pair)
    assert values(state) == saved  # it belongs to neither optimizer
    for optimizer in (resumed, interrupted):
        assert values(optimizer.state_dict()) == values(whole.state_dict())
        for mine, theirs in zip(optimizer.parameters, whole.parameters, strict=True):
            assert xbp.to_numpy(mine.data).tobytes() == xbp.to_numpy(theirs.data).tobytes()


def test_a_state_is_named_by_parameter_and_holds_numpy_copies(two: list[nn.Parameter]) -> None:
    optimizer = optim.Adam(two)
    assert optimizer.state_dict() == {"steps": 0, "0.count": 0, "1.count": 0}
    feed(optimizer, *next(two_gradients(1)))
    state = optimizer.state_dict()
    names = {"steps", "0.count", "0.m", "0.v", "1.count", "1.m", "1.v"}
    assert set(state) == names
    assert {type(state[name]) for name in names} == {int, np.ndarray}
    state["0.m"] += 1.0
    assert optimizer.state_dict()["0.m"].tolist() != state["0.m"].tolist()


def test_a_state_from_before_the_first_step_starts_anew(two: list[nn.Parameter]) -> None:
    optimizer = optim.Adam(two)
    empty = optimizer.state_dict()
    feed(optimizer, *next(two_gradients(1)))
    optimizer.load_state_dict(empty)
    assert optimizer.state_dict() == empty


def test_a_state_goes_to_where_the_parameters_are() -> None:
    parameter = nn.Parameter(np.array([1.0, 2.0], dtype=np.float32))
    optimizer = optim.Adam([parameter])
    feed(optimizer, np.ones(2))
    for backend in HERE:
        place = find_backend(backend)
        moved = optim.Adam([nn.Parameter(place.asarray([1.0, 2.0], dtype="float32"))])
        moved.load_state_dict(optimizer.state_dict())
        assert all(backend_of(array) == place for array in moved.state[0].values())
        assert values(moved.state_dict()) == values(optimizer.state_dict())


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.pop(key)


def having(key: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.update({key: value})


MALFORMED = [
    ("steps", without("steps")),
    ("0.count", without("0.count")),
    ("1.count", without("1.count")),
    ("0.velocity", without("0.velocity")),
    ("1.velocity", without("1.velocity")),
    ("2.count", having("2.count", 1)),
    ("2.velocity", having("2.velocity", np.zeros(2))),
    ("0.m", having("0.m", np.zeros(2))),
    ("velocity", having("velocity", np.zeros(2))),
    ("-1.velocity", having("-1.velocity", np.zeros((1, 1)))),
    ("0.velocity", having("0.velocity", np.zeros(3))),
    ("1.velocity", having("1.velocity", np.zeros(1))),
    ("0.velocity", having("0.velocity", None)),
    ("steps", having("steps", -1)),
    ("steps", having("steps", 1.5)),
    ("steps", having("steps", "3")),
    ("steps", having("steps", None)),
    ("steps", having("steps", np.array([1, 2]))),
    ("1.count", having("1.count", None)),
    ("1.count", having("1.count", -1)),
    ("0.velocity", having("0.count", 0)),
    ("7", having(7, 1)),
]


@pytest.mark.parametrize(("key", "spoil"), MALFORMED)
def test_a_malformed_state_is_refused_and_nothing_is_changed(
    key: str, spoil: Callable[[dict[str, Any]], Any], two: list[nn.Parameter]
) -> None:
    optimizer = optim.SGD(two, lr=0.1, momentum=0.9)
    feed(optimizer, np.ones(2), np.ones((1, 1)))
    before = values(optimizer.state_dict())
    state = {k: v + 1 for k, v in optimizer.state_dict().items()}
    spoil(state)
    with pytest.raises(InputError) as caught:
        optimizer.load_state_dict(state)
    message = one_sentence(caught)
    assert "SGD" in message
    assert key in message
    assert values(optimizer.state_dict()) == before


def test_a_state_with_text_in_place_of_numbers_changes_nothing(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=0.1, momentum=0.9)
    feed(optimizer, np.ones(2), np.ones((1, 1)))
    before = values(optimizer.state_dict())
    with pytest.raises(InputError):
        optimizer.load_state_dict(optimizer.state_dict() | {"1.velocity": np.array([["x"]])})
    assert values(optimizer.state_dict()) == before


def test_the_state_of_another_rule_is_refused(two: list[nn.Parameter]) -> None:
    rules: list[Make] = [
        partial(optim.SGD, lr=0.1),
        partial(optim.SGD, lr=0.1, momentum=0.9),
        optim.Adam,
    ]
    for saved in rules:
        source = saved(two)
        feed(source, np.ones(2), np.ones((1, 1)))
        for loading in rules:
            if loading is not saved:
                with pytest.raises(InputError, match="does not fit this"):
                    loading(two).load_state_dict(source.state_dict())
