"""Update rules against their definitions; optimizers' state, files and errors."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.random import default_rng
from numpy.typing import NDArray
from optim.rules import assert_close, feed, problem, trained

import xbp
from xbp import nn, optim
from xbp.backend import backend_of, dtype_name, find_backend
from xbp.errors import BackendError, InputError
from xbp.testing.cases import RULES, Rule

STEPS = 100
HERE = xbp.available_backends()
Make = Callable[..., optim.Optimizer]

every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
stateful = pytest.mark.parametrize(
    "make",
    [
        partial(optim.SGD, lr=0.1),
        partial(optim.SGD, lr=optim.StepLR(0.1, 3, 0.5), momentum=0.9, nesterov=True),
        partial(optim.Adam, lr=optim.OneCycleLR(0.1, 10), weight_decay=0.1),
    ],
    ids=["SGD", "SGD with momentum", "Adam"],
)


def values(state: dict[str, Any]) -> dict[str, Any]:
    """The state in a form that `==` compares bit for bit."""
    return {key: (np.shape(value), np.asarray(value).tobytes()) for key, value in state.items()}


def one_sentence(caught: pytest.ExceptionInfo[Exception]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def two() -> list[nn.Parameter]:
    return [nn.Parameter(np.array([1.0, 2.0])), nn.Parameter(np.array([[3.0]]))]


def two_gradients(steps: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    rng = default_rng(5)
    for _ in range(steps):
        yield rng.normal(size=2), rng.normal(size=(1, 1))


# --- the formulas --------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("backend", HERE)
def test_float32_stays_float32_whatever_the_schedule_returns(backend: str, rule: Rule) -> None:
    with xbp.use_backend(backend):
        parameter = nn.Parameter(xbp.asarray([1.0, -2.0], dtype="float32"))
    schedule = lambda step: np.float64(0.1) / (step + 1)  # noqa: E731
    optimizer = replace(rule, options={**rule.options, "lr": schedule})([parameter])
    for _ in range(3):
        feed(optimizer, np.ones(2))
    arrays = [parameter.data, *optimizer.state[0].values()]
    assert {dtype_name(array.dtype) for array in arrays} == {"float32"}
    assert type(optimizer.lr) is float


def test_adams_first_step_is_the_rate_whatever_the_scale() -> None:
    scales = np.array([1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0])
    found = trained(partial(optim.Adam, lr=0.1, eps=0.0), np.zeros(7), [-scales])
    assert_close(found, np.full(7, 0.1), 1e-15)  # three roundings


def test_adam_takes_numpy_numbers_and_lists_as_betas() -> None:
    start, gradients = problem()
    expected = trained(partial(optim.Adam, betas=(0.5, 0.75)), start, gradients)
    forms: list[Any] = [[0.5, 0.75], (np.float64(0.5), np.float64(0.75))]
    for betas in forms:
        for backend in HERE:
            found = trained(partial(optim.Adam, betas=betas), start, gradients, backend)
            assert_close(found, expected, 1e-13)  # as above


# --- the step ------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("backend", HERE)
def test_updates_are_in_place_and_leave_the_gradient_alone(backend: str, rule: Rule) -> None:
    here = find_backend(backend)
    data, gradient = here.asarray([1.0, 2.0]), here.asarray([0.5, -0.5])
    parameter = nn.Parameter(data)
    optimizer = rule([parameter])
    parameter.add_grad(gradient)
    kept: list[dict[str, Any]] = []
    seen = []
    for _ in range(3):
        optimizer.step()
        kept.append(dict(optimizer.state[0]))
        seen.append(xbp.to_numpy(data).tolist())
    assert parameter.data is data
    assert all(before != after for before, after in pairwise([[1.0, 2.0], *seen]))
    assert parameter.grad is gradient
    assert xbp.to_numpy(gradient).tolist() == [0.5, -0.5]
    assert set(kept[0]) == set(optimizer.rules()[0][0].state_names())
    assert all(kept[0][name] is kept[2][name] for name in kept[0])


@stateful
def test_a_parameter_without_gradient_is_left_alone_and_not_counted(
    make: Make, two: list[nn.Parameter]
) -> None:
    optimizer = make(two)
    gradients = list(two_gradients(4))
    for first, _ in gradients[:2]:
        optimizer.zero_grad()
        two[0].add_grad(first)
        optimizer.step()
    assert two[1].data.tolist() == [[3.0]]
    assert (optimizer.steps, optimizer.counts) == (2, [2, 0])
    assert optimizer.state[1] == {}

    # With its first gradient, it gets the first update of a new optimizer at that rate.
    alone = nn.Parameter(np.array([[3.0]]))
    other = make([alone])
    other.lr = optimizer.lr
    feed(other, gradients[2][1])
    feed(optimizer, *gradients[2])
    assert two[1].data.tobytes() == alone.data.tobytes()
    assert (optimizer.steps, optimizer.counts) == (3, [3, 1])


def test_a_step_without_any_gradient_is_a_step(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=optim.StepLR(0.1, 1, 0.5))
    optimizer.step()
    assert optimizer.lr == 0.05
    assert two[0].data.tolist() == [1.0, 2.0]


def test_zero_grad_forgets_all_gradients(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=0.1)
    feed(optimizer, *next(two_gradients(1)))
    assert all(parameter.grad is not None for parameter in two)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in two)


def test_parameters_may_come_from_an_iterator(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(iter(two), lr=0.5)
    feed(optimizer, np.ones(2), np.ones((1, 1)))
    assert two[0].data.tolist() == [0.5, 1.5]
    assert two[1].data.tolist() == [[2.5]]


# --- the learning rate ---------------------------------------------------------------------------


def test_a_schedule_is_asked_for_each_step_in_turn() -> None:
    start, gradients = problem()
    schedule = optim.OneCycleLR(0.1, STEPS)
    expected, optimizer = [], optim.SGD([nn.Parameter(start.copy())], lr=1.0, momentum=0.9)
    for step, gradient in enumerate(gradients):
        optimizer.lr = schedule(step)
        feed(optimizer, gradient)
        expected.append(schedule(step))
    found = trained(partial(optim.SGD, lr=schedule, momentum=0.9), start, gradients)
    assert found.tobytes() == optimizer.parameters[0].data.tobytes()
    fresh = optim.SGD([nn.Parameter(start.copy())], lr=schedule)
    assert [fresh.lr_at(step) for step in range(STEPS)] == expected


def test_the_rate_can_be_set_to_a_number_and_to_a_schedule(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=0.5)
    assert optimizer.lr == optimizer.lr_at(7) == 0.5
    optimizer.lr = 0
    feed(optimizer, np.ones(2), np.ones((1, 1)))
    assert two[0].data.tolist() == [1.0, 2.0]
    optimizer.lr = lambda step: 10.0 + step
    assert (optimizer.steps, optimizer.lr, optimizer.lr_at(5)) == (1, 11.0, 15.0)


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), "0.1", None, True, [0.1]])
def test_a_rate_that_is_no_rate_is_one_sentence(lr: Any, two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=0.5)
    with pytest.raises(InputError) as caught:
        optimizer.lr = lr
    assert one_sentence(caught).startswith("lr must be a finite number from 0")
    assert optimizer.lr == 0.5
    for rule in (optim.SGD, optim.Adam):
        with pytest.raises(InputError, match="lr must be"):
            rule(two, lr=lr)


# --- saving --------------------------------------------------------------------------------------


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


# --- what is refused -----------------------------------------------------------------------------


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


# --- a rule of one's own -------------------------------------------------------------------------


class Adagrad(optim.Optimizer):
    """s ← s + g², p ← p - η g / √s: a rule as a user would write it."""

    def update(self, xp: Any, p: Any, g: Any, state: Any, lr: float, t: int) -> None:
        if t == 1:
            state["s"] = xp.zeros_like(p)
        state["s"] += g * g
        p -= lr * g / xp.sqrt(state["s"])

    def state_names(self) -> tuple[str, ...]:
        return ("s",)


@pytest.mark.parametrize("backend", HERE)
def test_a_subclass_needs_nothing_but_its_rule(backend: str) -> None:
    start, gradients = problem()
    found = trained(partial(Adagrad, lr=0.1), start, gradients, backend)
    expected = start.copy()
    for step, gradient in enumerate(gradients):
        total = sum(g * g for g in gradients[: step + 1])
        expected -= 0.1 * gradient / np.sqrt(total)
    assert_close(found, expected, 1e-12)  # a few hundred roundings

    optimizer, other = (Adagrad([nn.Parameter(start.copy())], lr=0.1) for _ in range(2))
    feed(optimizer, gradients[0])
    other.load_state_dict(optimizer.state_dict())
    assert values(other.state_dict()) == values(optimizer.state_dict())


def test_an_optimizer_without_a_rule_says_what_to_define(two: list[nn.Parameter]) -> None:
    class Nothing(optim.Optimizer):
        pass

    optimizer = Nothing(two, lr=0.1)
    with pytest.raises(NotImplementedError, match=r"^Nothing has no update rule; define update\("):
        feed(optimizer, np.ones(2), np.ones((1, 1)))
