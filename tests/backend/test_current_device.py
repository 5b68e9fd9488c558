"""New arrays are made on the device of the operands, whichever device is the current one.

CuPy's creation functions ignore ``device=``: results are on the current device of the thread.
`twin` imitates this on a CPU, and raises an error if the current device is not that of an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from nn.cases import CASES
from twin import Array, Device, current, twin

import xbp.accelerators
from xbp import nn, optim
from xbp.backend import Backend, Graph, find_backend
from xbp.testing.cases import RULES, Case, Rule
from xbp.testing.helpers import replaced
from xbp.training import METRICS, ConfusionMatrix, accuracy, binary_accuracy


@pytest.fixture(autouse=True)
def library() -> Iterator[Any]:
    xbp.set_backend("numpy")  # not use_backend, which affects this thread only
    with twin() as library:
        yield library


def numbers(tree: Any) -> list[Any]:
    """All arrays in nested tuples, as numpy arrays; those of a twin must be on device 1."""
    if isinstance(tree, tuple | list):
        return [part for item in tree for part in numbers(item)]
    if isinstance(tree, Array):
        assert tree.device == Device(1)
    return [] if tree is None else [xbp.to_numpy(tree)]


def assert_same(compute: Callable[[Backend], Any]) -> None:
    """`compute` on device 1, while 0 is current, gives the results of numpy."""
    with xbp.accelerators.disabled():  # a twin has none
        expected = numbers(compute(find_backend("numpy")))
    assert current.device == 0
    found = numbers(compute(find_backend("twin", device=1)))
    assert current.device == 0
    assert expected
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()


ONE_EACH = {type(case.make()).__name__: case for case in reversed(CASES)}
LAYERS = [case for case in ONE_EACH.values() if hasattr(case.make(), "forward")]
LOSSES = [case for case in ONE_EACH.values() if not hasattr(case.make(), "forward")]


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: type(case.make()).__name__)
@pytest.mark.parametrize("alone", [False, True], ids=["whole", "for parameters"])
def test_layers(case: Case, alone: bool) -> None:
    def compute(place: Backend) -> Any:
        layer = case.make().to(place)
        y, backward = layer.forward(place.asarray(*case.inputs()), training=True, rng=0)
        if alone:
            nn.for_parameters(backward)(y)
            return y, [p.grad for p in layer.parameters()]
        return y, backward(y), [p.grad for p in layer.parameters()]

    assert_same(compute)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_from_a_state(kind: Any) -> None:
    def compute(place: Backend) -> Any:
        layer, x = kind(3, 5, dtype="float64", rng=0).to(place), place.asarray(np.ones((2, 9, 3)))
        (_, state), _ = layer.run(x)
        (y, last), backward = layer.run(x, state)
        return y, last, backward(y, last), [p.grad for p in layer.parameters()]

    assert_same(compute)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: type(case.make()).__name__)
def test_losses(case: Case) -> None:
    assert_same(lambda place: case.make()(*map(place.asarray, case.inputs())))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_optimizers(rule: Rule) -> None:
    def compute(place: Backend) -> Any:
        made = [nn.Parameter(place.asarray(np.arange(1.0, 7.0).reshape(s))) for s in ((2, 3), (6,))]
        optimizer = rule(made)
        for _ in range(3):
            for parameter in made:
                for _ in range(2):  # a second gradient is added to the first
                    parameter.add_grad(place.asarray(np.arange(6.0).reshape(parameter.shape)))
            norm = optim.clip_grad_norm(made, 0.5)
            optimizer.step()
            optimizer.zero_grad()
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        return [p.data for p in made], norm, [list(s.values()) for s in optimizer.state]

    assert_same(compute)


def test_a_parameter() -> None:
    def compute(place: Backend) -> Any:
        parameter = nn.Parameter(place.asarray(np.ones((2, 3))))
        parameter.add_grad(place.asarray(np.ones((2, 3))))
        parameter.assign(np.arange(6).reshape(2, 3))
        parameter.astype("float32")
        moved = nn.Parameter(np.ones(3))
        moved.to(place)
        same = place.asarray(parameter.data, dtype="float64")
        return parameter.data, parameter.grad, moved.data, same

    assert_same(compute)


LOGITS, LABELS = np.eye(7)[:5], np.arange(5) % 3


def test_metrics() -> None:
    def compute(place: Backend) -> Any:
        batch = place.asarray(LOGITS), place.asarray(LABELS)
        values = [accuracy(*batch), binary_accuracy(batch[0], batch[0])]
        for make in (*METRICS.values(), lambda: ConfusionMatrix(7)):
            metric: Any = make()
            for _ in range(3):
                metric.update(*batch)
            values.append(np.asarray(metric.compute()))
        return values

    assert_same(compute)


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(18, 3, rng=1),
    )  # fmt: skip


X = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)
Y = np.arange(20) % 3


def train(place: Backend, *, capture: bool = False) -> Any:
    made = model().to(place)
    adam = optim.Adam(made.parameters())
    trainer = xbp.Trainer(
        made, nn.CrossEntropyLoss(), adam, ["accuracy", "f1"], rng=0, capture=capture
    )
    history = trainer.fit(X, Y, epochs=3, batch_size=8, validation_data=(X, Y), verbose=False)
    assert trainer.capture is capture  # otherwise it has continued with eager steps
    seen = trainer.current_loss
    evaluated = list(trainer.evaluate(X, Y).values())
    prediction = trainer.step(place.asarray(X), place.asarray(Y))
    records = [list(record.values()) for record in history.records]
    weights = list(made.state_dict().values())
    return np.asarray(records), seen, np.asarray(evaluated), trainer.predict(X), prediction, weights


def test_a_training_while_another_device_is_current() -> None:
    assert_same(train)


def test_a_training_in_another_thread() -> None:
    def compute(place: Backend) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(train, place).result()

    assert_same(compute)


def test_what_is_set_in_one_thread_holds_in_another() -> None:
    xbp.set_backend("twin", device=1)
    try:
        with ThreadPoolExecutor(1) as pool:
            array = pool.submit(xbp.asarray, [1.0, 2.0]).result()
            layer = pool.submit(nn.Linear, 2, 3, rng=0).result()
            assert pool.submit(layer, layer.weight.data).result().device == Device(1)
        assert array.device == layer.weight.data.device == Device(1)
    finally:
        Device(0).use()


def test_a_block_leaves_the_current_device_as_it_was() -> None:
    with xbp.use_backend("twin", device=1):
        assert current.device == 1
        xbp.set_backend("twin", device=2)
        assert current.device == 2
    assert current.device == 0


class Again(Graph):
    """A recording whose function runs again, on the current device."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self, function: Callable[[], object]) -> None:
        self.function = function

    def replay(self) -> None:
        assert Device(current.device) == self.device
        self.function()


@pytest.mark.parametrize("threads", [False, True])
def test_recorded_steps(library: Any, threads: bool) -> None:
    place = find_backend("twin", device=1)
    expected = numbers(train(place))
    with replaced(library, graph=Again):
        if threads:
            with ThreadPoolExecutor(1) as pool:
                found = numbers(pool.submit(train, place, capture=True).result())
        else:
            found = numbers(train(place, capture=True))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()
