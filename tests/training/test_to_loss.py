"""Steps whose model and loss are one call of an accelerator: the same bits, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import accelerators, nn, optim, primitives, registry
from xbp.errors import InputError

Calls = list[tuple[int, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Shapes of x in each call of an accelerator that computes what the reference does."""
    found: Calls = []

    def chain_to_loss(x: Any, *rest: Any) -> Any:
        found.append(x.shape)
        return primitives.chain_to_loss.reference(x, *rest)  # type: ignore[attr-defined]

    table = {**registry.offered(np.ndarray), "chain_to_loss": chain_to_loss}
    monkeypatch.setitem(registry._tables, np.ndarray, table)
    return found


def images(n: int = 7) -> tuple[Any, Any]:
    return np.random.default_rng(0).normal(size=(n, 1, 6, 6)), np.arange(n) ** 2 % 3


def network(*more: nn.Layer) -> nn.Sequential:
    own = {"dtype": "float64"}
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=0, **own),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2, **own), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(8, 3, rng=1, **own), *more),
    )


def fitted(loss: Any = None, model: Any = None, **options: Any) -> tuple[Any, ...]:
    """History, parameters and buffers after two epochs of three steps."""
    model = network() if model is None else model
    loss = nn.CrossEntropyLoss() if loss is None else loss
    adam = optim.Adam(model.parameters(), lr=0.1)
    trainer = xbp.Trainer(model, loss, adam, ["accuracy"], rng=0, capture=False, **options)
    history = trainer.fit(*images(), epochs=2, batch_size=3)
    return history["loss"], history["accuracy"], model.state_dict()


def test_the_same_bits(calls: Calls) -> None:
    """With batches of three and of one; statistics of the batch move once a step."""
    at_once = fitted()
    assert calls == 2 * [(3, 1, 6, 6), (3, 1, 6, 6), (1, 1, 6, 6)]
    calls.clear()
    registry._tables[np.ndarray].pop("chain_to_loss")
    one_by_one = fitted()
    assert not calls
    assert at_once[:2] == one_by_one[:2]
    for name, array in at_once[2].items():
        assert array.tobytes() == one_by_one[2][name].tobytes(), name


class Own(nn.CrossEntropyLoss):
    """A loss of a user."""


DECLINED: dict[str, Callable[[], Any]] = {
    "smoothing": lambda: fitted(nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weights of classes": lambda: fitted(nn.CrossEntropyLoss(weight=[1, 2, 3])),
    "an ignored label": lambda: fitted(nn.CrossEntropyLoss(ignore_index=2)),
    "a subclass": lambda: fitted(Own()),
    "a function": lambda: fitted(lambda y, t: nn.CrossEntropyLoss()(y, t)),
    "dropout": lambda: fitted(model=network(nn.Dropout(0.5))),
    "a layer that is no operation": lambda: fitted(model=network(nn.Softplus())),
    "precision": lambda: fitted(precision="bfloat16", model=network().astype("float32")),
    "a scaled loss": lambda: fitted(precision="float16", model=network().astype("float32")),
}  # fmt: skip


@pytest.mark.parametrize("why", DECLINED)
def test_other_steps_are_two_calls(why: str, calls: Calls) -> None:
    DECLINED[why]()
    assert not calls


def test_parts_of_a_batch_are_two_calls(calls: Calls) -> None:
    model = network()
    trainer = xbp.Trainer(
        model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), capture=False
    )
    trainer.fit(*images(), epochs=1, batch_size=3, accumulate=2)
    assert calls == [(1, 1, 6, 6)]  # the last batch, of one sample, has one part


def test_without_accelerators(calls: Calls) -> None:
    with accelerators.disabled():
        fitted()
    assert not calls


@pytest.mark.parametrize("label", [-1, 3])
def test_wrong_labels_are_named(label: int, calls: Calls) -> None:
    model = network()
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1))
    x, y = images()
    y[2] = label
    with pytest.raises(InputError, match=f"needs labels from 0 to 2 for 3 classes, got {label}"):
        trainer.step(x, y)
    assert calls
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_finite_changes_nothing(calls: Calls) -> None:
    model, (x, y) = network(), images()
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1))
    before = model.state_dict()
    x[0, 0, 0, 0] = np.nan
    trainer.step(x, y)
    assert calls
    assert np.isnan(float(trainer.current_loss))
    for name, array in model.state_dict().items():
        assert array.tobytes() == before[name].tobytes()


@pytest.mark.parametrize(("shape", "labels"), [((7, 1, 5, 6), 7), ((7, 1, 6, 6), 6)])
def test_what_does_not_fit_is_refused_as_ever(
    shape: tuple[int, ...], labels: int, calls: Calls
) -> None:
    model = network()
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1))
    said = []
    for table in (registry._tables[np.ndarray], {}):
        registry._tables[np.ndarray] = table
        with pytest.raises(InputError) as error:
            trainer.step(np.ones(shape), np.zeros(labels, int))
        said.append(str(error.value))
    assert said[0] == said[1]
