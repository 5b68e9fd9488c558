"""Arrays of two libraries, or of two devices, are refused wherever they meet, in one sentence.

Shapes and dtypes are equal each time, so that nothing else distinguishes them: `twin`, whose dtypes
are numpy's, stands for CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pytest
from nn.cases import CASES
from twin import twin

import xbp
from xbp import nn, optim, primitives
from xbp.backend import Backend, find_backend, why_unavailable
from xbp.errors import BackendError
from xbp.testing.cases import DIFFERENTIABLE, PRIMITIVES, RULES, Case, Layer, Rule, fed
from xbp.testing.cases.case import filled
from xbp.training import METRICS, ConfusionMatrix, accuracy, binary_accuracy
from xbp.training.metrics.averages import Mean

PLACES = [
    ("numpy", None),
    ("twin", 0),
    ("twin", 1),
    ("array_api_strict", "device1"),
    ("array_api_strict", "device2"),
    ("torch", None),
]
PAIRS = [
    pytest.param(mine, theirs, id="-".join(f"{n}{d or ''}" for n, d in (mine, theirs)))
    for mine, theirs in permutations(PLACES, 2)
]


class Door(NamedTuple):
    """A public function, called with arrays of two places."""

    name: str
    owner: str | set[str]
    """The name in the message, or one of several."""
    enter: Callable[[Backend, Backend], object]


def on(place: Backend, *arrays: Any) -> Any:
    found = tuple(place.asarray(array) for array in arrays)
    return found if len(found) > 1 else found[0]


# --- layers --------------------------------------------------------------------------------------

ONE_EACH = {type(case.make()).__name__: case for case in reversed(CASES)}
LAYERS = {n: case for n, case in ONE_EACH.items() if hasattr(nn, n) and "Loss" not in n}
LOSSES = {name: case for name, case in ONE_EACH.items() if name.endswith("Loss")}


def owners(layer: nn.Layer) -> set[str]:
    """A layer and its sublayers."""
    return {type(part).__name__ for part in layer.tree()}


def output(case: Case, mine: Backend) -> tuple[nn.Layer, Any, Any]:
    layer = case.make().to(mine)
    y, backward = layer.forward(on(mine, *case.inputs()), training=True, rng=0)
    return layer, y, backward


def input_elsewhere(case: Case, mine: Backend, theirs: Backend) -> None:
    case.make().to(mine).forward(on(theirs, *case.inputs()))


def gradient_elsewhere(case: Case, mine: Backend, theirs: Backend) -> None:
    _, y, backward = output(case, mine)
    backward(theirs.asarray(y))


def gradient_for_parameters_elsewhere(case: Case, mine: Backend, theirs: Backend) -> None:
    _, y, backward = output(case, mine)
    nn.for_parameters(backward)(theirs.asarray(y))


class Scale(nn.Layer):
    """A user's layer without checks of its own."""

    def __init__(self) -> None:
        self.scale = nn.Parameter(np.ones(3))

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp, s = self.check_input(x), self.scale.data

        def backward(dy: Any) -> Any:
            self.scale.add_grad(xp.sum(dy * x, axis=0))
            return s * dy

        return s * x, backward


class Shift(nn.Layer):
    """A user's layer whose forward has additional arguments."""

    def forward(self, x: Any, by: float = 1.0) -> Any:
        return x + by, lambda dy: dy


OWN = {"Scale": Case(Layer("Scale", None, [], make=Scale), fed((2, 3)))}


OWN_GRADIENTS = ("gradient of Scale", "gradient for parameters of Scale",
                 "gradient of a layer with other arguments")  # fmt: skip
"""A user's backward gets numpy arrays unchanged; it may call `check_gradient`."""


def shifted(mine: Backend, theirs: Backend) -> None:
    y, backward = Shift().forward(mine.asarray([1.0]), by=2.0)
    backward(theirs.asarray(y))


def stateful(kind: Any, mine: Backend, theirs: Backend, *, which: str) -> None:
    layer, x = kind(3, 5, dtype="float64", rng=0).to(mine), mine.asarray(np.ones((2, 4, 3)))
    state = np.ones((1, 2, 5))
    both = (state,) * len(layer.states)
    elsewhere: Any = tuple(map(theirs.asarray, both)) if len(both) > 1 else theirs.asarray(state)
    if which == "initial state":
        layer.run(x, elsewhere)
        return
    (y, _), backward = layer.run(x)
    if which == "output's gradient":
        backward(theirs.asarray(y))
    else:
        backward(y, elsewhere)


# --- losses, metrics -----------------------------------------------------------------------------


def target_elsewhere(case: Case, mine: Backend, theirs: Backend) -> None:
    prediction, target = case.inputs()
    case.make()(mine.asarray(prediction), theirs.asarray(target))


def weight_elsewhere(mine: Backend, theirs: Backend) -> None:
    loss = nn.BCEWithLogitsLoss(pos_weight=theirs.asarray(np.ones(3)))
    loss(*on(mine, np.zeros((2, 3)), np.ones((2, 3))))


PAIR, SIGNS = (np.ones((2, 3)), np.ones((2, 3))), np.array([1, -1])
SEVERAL: dict[str, tuple[nn.Loss, tuple[Any, ...], Any]] = {
    "CosineEmbeddingLoss": (nn.CosineEmbeddingLoss(), PAIR, SIGNS),
    "TripletMarginLoss": (nn.TripletMarginLoss(), (*PAIR, PAIR[0]), None),
}
"""Losses of several inputs."""


def one_input_elsewhere(name: str, k: int, mine: Backend, theirs: Backend) -> None:
    loss, inputs, target = SEVERAL[name]
    given = tuple((theirs if i == k else mine).asarray(x) for i, x in enumerate(inputs))
    loss(given, None if target is None else mine.asarray(target))


def target_of_several_elsewhere(mine: Backend, theirs: Backend) -> None:
    nn.CosineEmbeddingLoss()(tuple(map(mine.asarray, PAIR)), theirs.asarray(SIGNS))


METERS: dict[str, Callable[[], Any]] = {
    **METRICS,
    "confusion_matrix": ConfusionMatrix,
    "mean": lambda: Mean("mean", accuracy),
}
LOGITS, LABELS = np.eye(7)[:5], np.arange(5)


def labels_elsewhere(make: Callable[[], Any], mine: Backend, theirs: Backend) -> None:
    make().update(mine.asarray(LOGITS), theirs.asarray(LABELS))


def batch_elsewhere(make: Callable[[], Any], mine: Backend, theirs: Backend) -> None:
    metric = make()
    with at(mine):
        metric.update(*on(mine, LOGITS, LABELS))
    with at(theirs):
        metric.update(*on(theirs, LOGITS, LABELS))
    metric.compute()


# --- parameters, optimizers ----------------------------------------------------------------------


def parameter(place: Backend, *, grad: bool = False) -> nn.Parameter:
    made = nn.Parameter(place.asarray(np.ones((2, 3))))
    if grad:
        made.add_grad(place.asarray(np.ones((2, 3))))
    return made


def first_gradient(mine: Backend, theirs: Backend) -> None:
    parameter(mine).add_grad(theirs.asarray(np.ones((2, 3))))


def second_gradient(mine: Backend, theirs: Backend) -> None:
    parameter(mine, grad=True).add_grad(theirs.asarray(np.ones((2, 3))))


def gradient_beside_one_set_by_hand(mine: Backend, theirs: Backend) -> None:
    made = parameter(mine)
    made.grad = theirs.asarray(np.ones((2, 3)))
    made.add_grad(mine.asarray(np.ones((2, 3))))


def step_with_gradient(rule: Rule, mine: Backend, theirs: Backend) -> None:
    made = [parameter(mine, grad=True), parameter(mine)]
    made[1].grad = theirs.asarray(np.ones((2, 3)))
    before = xbp.to_numpy(made[0].data).copy()
    try:
        rule(made).step()
    finally:
        assert np.array_equal(xbp.to_numpy(made[0].data), before)  # a whole step or none


def step_with_state(rule: Rule, mine: Backend, theirs: Backend) -> None:
    made = [parameter(mine, grad=True)]
    optimizer = rule(made)
    optimizer.step()
    state = optimizer.state[0]
    for name, array in state.items():
        state[name] = theirs.asarray(array)
    optimizer.step()


def clipped(clip: Any, mine: Backend, theirs: Backend) -> None:
    clip([parameter(mine, grad=True), parameter(theirs, grad=True)], 1.0)


def clipped_beside_its_parameter(clip: Any, mine: Backend, theirs: Backend) -> None:
    made = parameter(mine)
    made.grad = theirs.asarray(np.ones((2, 3)))
    clip([made], 1.0)


# --- primitives ----------------------------------------------------------------------------------

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
"""The table's functions of several arrays: small arrays, and large ones for accelerators."""
for primitive, function, arrays in (*PRIMITIVES, *DIFFERENTIABLE):
    filled_in = tuple(map(filled, arrays))
    size = "small" if filled_in[0].size < 10_000 else "large"
    known = CALLS.get(f"{primitive}, {size}", (None, ()))[1]
    if len(filled_in) > max(1, len(known)) and primitive not in (
        "philox4x32",
        "append_row",
        "appending",
    ):
        CALLS[f"{primitive}, {size}"] = function, filled_in


def appended_meanwhile(*arrays: Any) -> None:
    with primitives.appending(*arrays):
        pass


for name, appended in (("append_row", primitives.append_row), ("appending", appended_meanwhile)):
    CALLS[name] = appended, (np.asarray([1]), np.ones((3, 3)), np.ones(3))
PARTS = {
    **{name: set(primitives.__all__) for name in ("chain", "chain_to_loss")},
    "take_step": {"take_step", "take_row", "gather"},
}
"""The primitives that another one consists of, one of which refuses an array in its place."""


def primitives_in(name: str) -> str | set[str]:
    """The name of a primitive, or of one of its parts."""
    primitive = name.partition(",")[0]
    return PARTS.get(primitive, primitive)


def called(name: str, k: int, mine: Backend, theirs: Backend) -> None:
    function, arrays = CALLS[name]
    places = [theirs if index == k else mine for index in range(len(arrays))]
    function(*(place.asarray(array) for place, array in zip(places, arrays, strict=True)))


DOORS = [
    *(
        Door(f"{what} of {name}", owners(case.make()), partial(enter, case))
        for name, case in (LAYERS | OWN).items()
        for what, enter in (
            ("input", input_elsewhere),
            ("gradient", gradient_elsewhere),
            ("gradient for parameters", gradient_for_parameters_elsewhere),
        )
        if what == "gradient" or case.make().parameters()
    ),
    Door("gradient of a layer with other arguments", "Shift", shifted),
    *(
        Door(f"{which} of {kind.__name__}", kind.__name__, partial(stateful, kind, which=which))
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
        for which in ("initial state", "output's gradient", "state's gradient")
    ),
    *(
        Door(f"target of {name}", case.name, partial(target_elsewhere, case))
        for name, case in LOSSES.items()
    ),
    *(
        Door(f"input {k} of {name}", name, partial(one_input_elsewhere, name, k))
        for name, (_, inputs, _) in SEVERAL.items()
        for k in range(1, len(inputs))
    ),
    Door("target of CosineEmbeddingLoss", "CosineEmbeddingLoss", target_of_several_elsewhere),
    Door("weight of a loss", "BCEWithLogitsLoss", weight_elsewhere),
    *(
        Door(f"{what} of {name}", make().name, partial(enter, make))
        for name, make in METERS.items()
        for what, enter in (("labels", labels_elsewhere), ("batch", batch_elsewhere))
        if (name, what) != ("mean", "batch")  # its values may be Python's numbers
    ),
    Door("accuracy", "accuracy", lambda a, b: accuracy(a.asarray(LOGITS), b.asarray(LABELS))),
    Door(
        "binary_accuracy",
        "binary_accuracy",
        lambda a, b: binary_accuracy(a.asarray(LOGITS), b.asarray(LOGITS)),
    ),
    Door("first gradient", "a parameter", first_gradient),
    Door("second gradient", "a parameter", second_gradient),
    Door("gradient beside one set by hand", "a parameter", gradient_beside_one_set_by_hand),
    *(
        Door(f"{what} of {rule}", type(rule([parameter(find_backend("numpy"))])).__name__,
             partial(enter, rule))
        for rule in {rule.name: rule for rule in RULES}.values()
        for what, enter in (("gradient", step_with_gradient), ("state", step_with_state))
        if what == "gradient"
        or rule([parameter(find_backend("numpy"))]).rules()[0][0].state_names()
    ),
    *(
        Door(f"{what} to {clip.__name__}", clip.__name__, partial(enter, clip))
        for clip in (optim.clip_grad_norm, optim.clip_grad_value)
        for what, enter in (
            ("gradients", clipped), ("a gradient", clipped_beside_its_parameter)
        )
    ),
    *(
        Door(f"argument {k} of {name}", primitives_in(name), partial(called, name, k))
        for name, (_, arrays) in CALLS.items()
        for k in range(len(arrays))
    ),
]  # fmt: skip


def at(place: Backend) -> Any:
    """A context in which this place's device is the current one."""
    return place.device if place.name == "twin" else nullcontext()


@pytest.fixture(autouse=True)
def _with_a_twin() -> Iterator[None]:
    with twin(), xbp.use_backend("numpy"):
        yield


def there(place: tuple[str, Any]) -> Backend:
    reason = why_unavailable(place[0])
    if reason is not None:
        pytest.skip(reason)
    return find_backend(place[0], device=place[1])


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_refused_in_one_sentence(mine: tuple[str, Any], theirs: tuple[str, Any]) -> None:
    wrong, a, b = [], there(mine), there(theirs)
    for door in DOORS:
        if a.name == "numpy" and door.name in OWN_GRADIENTS:
            continue
        with at(a):
            try:
                door.enter(a, b)
            except BackendError as error:
                said = str(error)
                owners = {door.owner} if isinstance(door.owner, str) else door.owner
                named = any(owner in said for owner in owners)
                parts = (str(a), str(b), "; ")
                if "\n" in said or not named or not all(part in said for part in parts):
                    wrong.append(f"{door.name}: {said}")
            except Exception as error:
                wrong.append(f"{door.name}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{door.name}: nothing")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(DOORS)}", *wrong])


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_taken_from_any_library(mine: tuple[str, Any], theirs: tuple[str, Any]) -> None:
    """Copied values may come from any library."""
    a, b = there(mine), there(theirs)
    values = np.arange(6.0).reshape(2, 3)
    with at(a):
        one = parameter(a)
        before = one.data
        one.assign(b.asarray(values))
        assert one.data is before
        assert xbp.to_numpy(one.data).tolist() == values.tolist()
        assert a.asarray(b.asarray(values)).device == a.device

        layer = nn.Linear(3, 2, dtype="float64", rng=0).to(a)
        layer.load_state_dict({k: b.asarray(v + 1) for k, v in layer.state_dict().items()})
        adam = optim.Adam([parameter(a, grad=True)])
        adam.step()
        state = {k: b.asarray(v) for k, v in adam.state_dict().items()}
        adam.load_state_dict(state)
        assert adam.state[0]["m"].device == a.device

        trainer = xbp.Trainer(layer, nn.MSELoss(), optim.SGD(layer.parameters(), 0.1), rng=0)
        x, y = b.asarray(values), b.asarray(values[:, :2])
        trainer.fit(x, y, validation_data=(x, y), verbose=False)
        assert trainer.predict(x).device == a.device
        assert np.isfinite(trainer.evaluate(x, y)["loss"])
