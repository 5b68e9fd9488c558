"""What an optimizer refuses in one sentence."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from optim.rules import feed
from optim.steps import HERE, Make, one_sentence, values

import xbp
from xbp import nn, optim
from xbp.backend import backend_of, find_backend
from xbp.errors import BackendError, InputError


def test_no_parameters_are_one_sentence() -> None:
    with pytest.raises(InputError) as caught:
        optim.SGD(nn.ReLU().parameters(), lr=0.1)
    assert "at least one parameter" in one_sentence(caught)


def test_a_parameter_that_comes_twice_is_one_sentence(two: list[nn.Parameter]) -> None:
    with pytest.raises(InputError) as caught:
        optim.Adam([*two, two[0]])
    assert "parameter 2 is given twice" in one_sentence(caught)


@pytest.mark.parametrize("thing", [np.zeros(2), "weight", ("0.weight", None), nn.ReLU(), None])
def test_what_is_no_parameter_is_one_sentence(thing: Any, two: list[nn.Parameter]) -> None:
    with pytest.raises(InputError) as caught:
        optim.SGD([*two, thing], lr=0.1)
    assert type(thing).__name__ in one_sentence(caught)


@pytest.mark.parametrize(
    ("rule", "options", "name"),
    [
        (optim.SGD, {"momentum": -0.1}, "momentum"),
        (optim.SGD, {"momentum": "0.9"}, "momentum"),
        (optim.SGD, {"dampening": float("nan")}, "dampening"),
        (optim.SGD, {"weight_decay": -0.1}, "weight_decay"),
        (optim.SGD, {"nesterov": True}, "nesterov"),
        (optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov"),
        (optim.Adam, {"betas": (1.0, 0.9)}, "betas"),
        (optim.Adam, {"betas": (0.9, -0.1)}, "betas"),
        (optim.Adam, {"betas": (0.9, float("nan"))}, "betas"),
        (optim.Adam, {"betas": (0.9,)}, "betas"),
        (optim.Adam, {"betas": 0.9}, "betas"),
        (optim.Adam, {"betas": ("a", "b")}, "betas"),
        (optim.Adam, {"betas": None}, "betas"),
        (optim.Adam, {"eps": -1e-8}, "eps"),
        (optim.Adam, {"weight_decay": float("inf")}, "weight_decay"),
    ],
)
def test_a_hyperparameter_out_of_range_is_one_sentence(
    rule: Make, options: dict[str, Any], name: str, two: list[nn.Parameter]
) -> None:
    with pytest.raises(InputError) as caught:
        rule(two, lr=0.1, **options)
    assert name in one_sentence(caught)


@pytest.mark.parametrize("make", [partial(optim.SGD, lr=0.1, momentum=0.9), optim.Adam])
def test_a_model_that_moved_after_its_first_step_is_one_sentence(make: Make) -> None:
    reason = xbp.backend.why_unavailable("array_api_strict")
    if reason is not None:
        pytest.skip(reason)
    with xbp.use_backend("numpy"):
        model = nn.Linear(2, 1, rng=0)
    optimizer = make(model.parameters())
    feed(optimizer, np.ones((1, 2)), np.ones(1))
    model.to("array_api_strict")
    before = model.state_dict()
    with pytest.raises(BackendError) as caught:
        feed(optimizer, np.ones((1, 2)), np.ones(1))
    message = one_sentence(caught)
    assert "state is on numpy (cpu)" in message
    assert "parameter 0 on array_api_strict" in message
    assert "make the optimizer after" in message
    assert values(model.state_dict()) == values(before)


@pytest.mark.parametrize("make", [partial(optim.SGD, lr=0.1, momentum=0.9), optim.Adam])
def test_a_model_that_was_converted_after_its_first_step_is_one_sentence(make: Make) -> None:
    with xbp.use_backend("numpy"):
        model = nn.Linear(2, 1, rng=0)
    optimizer = make(model.parameters())
    feed(optimizer, np.ones((1, 2)), np.ones(1))
    model.astype("float64")
    before = model.state_dict()
    with pytest.raises(InputError) as caught:
        feed(optimizer, np.ones((1, 2)), np.ones(1))
    message = one_sentence(caught)
    assert "float32" in message
    assert "float64" in message
    assert values(model.state_dict()) == values(before)


def test_a_model_that_moved_before_its_first_step_trains_where_it_is() -> None:
    for backend in HERE:
        with xbp.use_backend("numpy"):
            model = nn.Linear(2, 1, rng=0)
        optimizer = optim.Adam(model.parameters())
        model.to(backend)
        feed(optimizer, np.ones((1, 2)), np.ones(1))
        assert backend_of(optimizer.state[0]["m"]) == find_backend(backend)
