"""Values returned by a user's functions: Python's numbers, numpy scalars, 0-d arrays, or others.

After a loss that is nan, no step is made, whatever its type.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import InputError, NonFiniteError
from xbp.training import (
    Checkpoints,
    EarlyStopping,
    LambdaCallback,
    Metric,
    ModelCheckpoint,
)
from xbp.training.files.resume import snapshot


def data(n: int = 12) -> tuple[NDArray[Any], NDArray[Any]]:
    x = np.random.default_rng(0).normal(size=(n, 2))
    return x, x[:, :1].copy()


def make(loss: Any = None, metrics: Any = ()) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(2, 1, dtype="float64", rng=0))
    return xbp.Trainer(
        model, loss or nn.MSELoss(), optim.SGD(model.parameters(), 0.01), metrics, rng=0
    )


KINDS: dict[str, Any] = {
    "Python float": float,
    "Python int": int,
    "bool": bool,
    "numpy float32": np.float32,
    "numpy float64": np.float64,
    "numpy int": np.int64,
    "0-d array": np.asarray,
    "0-d array of integers": lambda v: np.asarray(int(v)),
    "0-d array here": xbp.asarray,
    "0-d array of another library": lambda v: pytest.importorskip("torch").tensor(v),
}
OTHERS: dict[str, Any] = {
    "None": None,
    "an int beyond all floats": 10**400,
    "a text": "1.0",
    "a list": [1.0],
    "one entry": np.ones(1),
    "one a sample": np.ones(4),
    "a complex number": 1j,
    "a complex array": np.asarray(1j),
    "a function": data,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_may_return_any_number(kind: str, xp: Any) -> None:
    def three(prediction: Any, target: Any) -> Any:
        return KINDS[kind](True if kind == "bool" else 3.0)

    history = make(metrics=[three]).fit(*data(), 2, 5, data())
    expected = 1.0 if kind == "bool" else 3.0
    for name in ("three", "val_three"):
        assert history[name] == [expected] * 2
        assert {type(value) for value in history[name]} == {float}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bool"])
def test_a_loss_may_return_any_number(kind: str, xp: Any) -> None:
    def two(prediction: Any, target: Any) -> Any:
        return KINDS[kind](2.0), 0 * prediction

    history = make(two).fit(*data(), 2, 5, data())
    assert history["loss"] == history["val_loss"] == [2.0, 2.0]


def test_a_record_has_names() -> None:
    def put(trainer: xbp.Trainer, epoch: int, record: Any) -> None:
        record[3] = 1.0

    with pytest.raises(InputError, match=r"strings; .*put puts in an int"):
        make().fit(*data(), callbacks=[LambdaCallback(on_epoch_end=put)])


@pytest.mark.parametrize("clash", ["loss", "epoch", "lr", "own", "val_loss"])
@pytest.mark.parametrize("told", [True, False])
def test_a_metric_takes_nobody_elses_name(clash: str, told: bool) -> None:
    """An error before the first step if the metric has names, else at the end of the epoch."""

    class Several(Metric):
        name = "several"

        def reset(self) -> None:
            """Nothing is kept."""

        def update(self, prediction: Any, target: Any) -> None:
            """Nothing is looked at."""

        def numbers(self) -> dict[str, float]:
            return {clash: 77.0, "more": 1.0}

        if told:

            def names(self, prediction: Any) -> list[str]:
                return [clash, "more"]

    def own(prediction: Any, target: Any) -> float:
        return 1.0

    trainer = make(metrics=[own, Several()])
    with pytest.raises(InputError, match=f"would be called '{clash}'|cannot be called '{clash}'"):
        trainer.fit(*data())
    assert (trainer.optimizer.steps == 0) == told


@pytest.mark.parametrize("kind", OTHERS)
def test_something_else_is_one_sentence_that_names_the_function(kind: str) -> None:
    def named(prediction: Any, target: Any) -> Any:
        return OTHERS[kind]

    def loss(prediction: Any, target: Any) -> Any:
        return OTHERS[kind], 0 * prediction

    def put(trainer: xbp.Trainer, epoch: int, record: Any) -> None:
        record["own"] = OTHERS[kind]

    for trainer, callbacks, sentence in [
        (make(metrics=[named]), [], "the metric named must return a number or a 0-d array, got "),
        (make(loss), [], r"the loss .*loss, as its value, must return a number"),
        (make(named), [], r"the loss .*named must return \(value, gradient\)"),
        (make(), [LambdaCallback(on_epoch_end=put)], "what .*put puts into the record as 'own'"),
    ]:
        with pytest.raises(InputError, match=sentence) as error:
            trainer.fit(*data(), batch_size=4, callbacks=callbacks)
        assert "\n" not in str(error.value)


class Own(Metric):
    name = "own"

    def __init__(self, value: Any) -> None:
        self.value = value

    def reset(self) -> None:
        pass

    def update(self, prediction: Any, target: Any) -> None:
        pass

    def compute(self) -> Any:
        return self.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_of_ones_own_may_compute_any_number(kind: str, xp: Any) -> None:
    assert make(metrics=[Own(KINDS[kind](1.0))]).evaluate(*data())["own"] == 1


@pytest.mark.parametrize("kind", OTHERS)
def test_a_metric_of_ones_own_that_computes_no_number_is_named(kind: str) -> None:
    with pytest.raises(InputError, match="what the metric own computes must be a number"):
        make(metrics=[Own(OTHERS[kind])]).evaluate(*data())


BAD_GRADIENTS: list[tuple[Any, str]] = [
    (lambda p: p[:, 0], r"shape \(4, 1\) and dtype float64, got \(4,\) and float64"),
    (lambda p: p.astype("float32"), "got .* and float32"),
    (lambda p: p.sum(), r"got \(\) and float64"),
    (lambda p: 1.0, "a gradient beside the prediction, got a float"),
    (lambda p: None, "a gradient beside the prediction, got None"),
    (lambda p: p.tolist(), "a gradient beside the prediction, got a list of 4"),
]


@pytest.mark.parametrize(("gradient", "sentence"), BAD_GRADIENTS)
def test_a_gradient_that_does_not_fit_names_the_loss(gradient: Any, sentence: str) -> None:
    def mine(prediction: Any, target: Any) -> Any:
        return 1.0, gradient(prediction)

    trainer = make(mine)
    before = trainer.model.state_dict()
    with pytest.raises(InputError, match=rf"the loss .*mine must return .*{sentence}"):
        trainer.fit(*data(), batch_size=4)
    assert np.array_equal(trainer.model.state_dict()["0.weight"], before["0.weight"])


NANS: dict[str, Any] = {
    "Python float": math.nan,
    "numpy float32": np.float32("nan"),
    "numpy float64": np.float64("nan"),
    "0-d array": np.asarray(math.nan),
    "minus infinity": -math.inf,
    "0-d infinity": np.asarray(math.inf),
}


@pytest.mark.parametrize("kind", NANS)
def test_no_step_is_made_after_a_loss_that_is_not_finite(kind: str) -> None:
    calls: list[int] = []

    def breaking(prediction: Any, target: Any) -> Any:
        calls.append(1)
        broken = len(calls) > 2
        return (NANS[kind] if broken else 1.0), prediction * (math.nan if broken else 1.0)

    trainer = make(breaking)
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 3.*the loss itself"):
        trainer.fit(*data(), batch_size=3)
    assert trainer.optimizer.steps == 2
    assert all(np.isfinite(value).all() for value in trainer.model.state_dict().values())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_data_that_are_not_finite_are_named_before_the_learning_rate() -> None:
    for broken, culprit in ((0, "the input: check the data, first x[7]"), (1, "the target")):
        (x, y), trainer = data(), make()
        trainer.fit(x, y)  # so that the rate is a possible cause
        (x, y)[broken][7] = np.inf
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError) as error:
            trainer.fit(x, y)
        assert culprit in str(error.value)
        assert "learning rate" not in str(error.value)
    trainer = make()
    trainer.optimizer.lr = 1e200
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteError, match=r"a learning rate below 1e\+200 may help"),
    ):
        trainer.fit(*data(), 5, verbose=False)


def test_a_record_of_numpys_numbers_can_be_saved_and_monitored(tmp_path: Any) -> None:
    def put(trainer: xbp.Trainer, epoch: int, record: Any) -> None:
        record["val_loss"] = np.asarray(1 / epoch, np.float32)

    callbacks = [
        LambdaCallback(on_epoch_end=put),
        EarlyStopping(),
        ModelCheckpoint(tmp_path / "m-{val_loss:.2f}"),
        Checkpoints(tmp_path / "c", monitor="val_loss"),
    ]
    trainer = make()
    trainer.fit(*data(), 2, callbacks=callbacks)
    assert (tmp_path / "m-0.50").exists()
    assert snapshot(trainer)[1]["history"]["records"][1]["val_loss"] == 0.5


def test_a_state_that_is_no_dict_names_its_callback(tmp_path: Any) -> None:
    class Odd(LambdaCallback):
        def state_dict(self) -> Any:
            return [1]

    with pytest.raises(InputError, match=r"Odd.state_dict must return a dict .* got a list of 1"):
        make().fit(*data(), callbacks=[Odd(), Checkpoints(tmp_path)])
