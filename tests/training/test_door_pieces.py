"""Errors before the first step: models, losses, optimizers, callbacks, arguments of `fit`."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from training.door import LABELS, NUMBERS, N, inputs, make, mean_square, network, refused

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.testing.cases import LAYERS, MODELS, Case
from xbp.training import (
    Accuracy,
    Callback,
    Checkpoints,
    CSVLogger,
    EarlyStopping,
    History,
    LambdaCallback,
    LearningRateScheduler,
    Metric,
    ModelCheckpoint,
    accuracy,
    load_weights,
    save_weights,
)


def other() -> list[nn.Parameter]:
    return network().parameters()


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="this SGD has none of the model's parameters"):
        xbp.Trainer(network(), nn.CrossEntropyLoss(), optim.SGD(other(), 0.1))
    trainer = make()
    trainer.model = network()
    refused(trainer, "has none of the model's parameters", inputs(), LABELS)


def test_parameters_that_are_missing_or_others_are_told_of_once() -> None:
    model = nn.Sequential(nn.Linear(2, 3, dtype="float64"), nn.Linear(3, 3, dtype="float64"))
    for parameters, sentence in [
        (model.layers[1].parameters(), r"lacks 2 of the .* \(0\.weight, 0\.bias\)"),
        (model.parameters() + other(), "2 of the optimizer's parameters are not the model's"),
    ]:
        with pytest.warns(UserWarning, match=sentence) as told:
            trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(parameters, 0.1))
        assert len(told) == 1
        assert told[0].filename == __file__
        trainer.fit(inputs(), LABELS)  # without a second warning, which would be an error
    frozen = optim.SGD(model.layers[1].parameters(), 0.1)
    for parameter in model.layers[0].parameters():
        parameter.trainable = False
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), frozen)  # intended
    for parameter in model.parameters():
        parameter.trainable = False
    trainer.fit(inputs(), LABELS)  # the optimizer may have constants of the model
    for _, parameter in model._all_names(""):
        parameter.trainable = True
    with pytest.warns(UserWarning, match=r"lacks 2 of the .* \(0\.weight, 0\.bias\)"):
        trainer.fit(inputs(), LABELS)


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        (nn.Softmax(), nn.CrossEntropyLoss()),
        (nn.Sigmoid(), nn.CrossEntropyLoss()),
        (nn.Sequential(nn.Tanh(), nn.Sigmoid()), nn.BCEWithLogitsLoss()),
        (nn.Softmax(), nn.BCEWithLogitsLoss()),
    ],
)
def test_a_softmax_before_a_loss_with_its_own(last: nn.Layer, loss: nn.Loss) -> None:
    model = network(3, last)
    with pytest.warns(UserWarning, match="takes logits and has a s.* of its own"):
        xbp.Trainer(model, loss, optim.SGD(model.parameters(), 0.1))
    xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize(
    ("last", "loss", "target"),
    [
        ([], nn.CrossEntropyLoss(), 0 * LABELS),
        ([], nn.CrossEntropyLoss(), np.ones((N, 1))),
        ([nn.Softmax()], nn.MSELoss(), NUMBERS[:, :1]),
    ],
)
def test_a_softmax_of_one_output_learns_nothing(last: Any, loss: Any, target: Any) -> None:
    model = network(1, *last)
    trainer = xbp.Trainer(model, loss, optim.SGD(model.parameters(), 0.1))
    with pytest.warns(UserWarning, match="a softmax over a single output is always 1"):
        trainer.fit(inputs(), target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(2).fit(inputs(), LABELS % 2)
        make(1, nn.MSELoss()).fit(inputs(), NUMBERS[:, :1])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda model: model.layers[0].weight, "got a Parameter"),
        (lambda model: model.parameters, "got the function .*parameters"),
        (lambda model: 0.1, "got a float"),
        (lambda model: None, "got None"),
    ],
)
def test_an_optimizer_of_no_list(given: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=f"in a list or another iterable.* {sentence}"):
        optim.SGD(given(network()), 0.1)


@pytest.mark.parametrize(
    ("piece", "value"), [("loss", "mse"), ("loss", nn.MSELoss), ("optimizer", "adam"), ("model", 3)]
)
def test_pieces_put_in_later_are_looked_at(piece: str, value: Any) -> None:
    trainer = make()
    setattr(trainer, piece, value)
    with pytest.raises(InputError, match=f"the {piece} must be"):
        trainer.fit(inputs(), LABELS)


class Scale(nn.Layer):
    """A layer with an array in place of a Parameter."""

    def __init__(self) -> None:
        self.scale = np.ones(3)
        self.count, self.step, self.indices = np.float64(1), np.ones(()), np.arange(3)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return x * self.scale, lambda dy: dy * self.scale


def test_an_array_that_is_no_parameter_is_told_of() -> None:
    model = network(3, Scale())
    with pytest.warns(UserWarning, match="Scale keeps the array 'scale' as it is") as told:
        xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))
    assert len(told) == 1


EVERY_CALL = {case.call: case for line in (*LAYERS, *MODELS) for case in line.cases()}


@pytest.mark.parametrize("case", EVERY_CALL.values(), ids=lambda case: case.call)
def test_no_layer_of_xbp_keeps_such_an_array(case: Case) -> None:
    model = network(3, case.make().astype("float32"))
    xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))


# --- wrong types ---

BAD_PIECES: list[tuple[dict[str, Any], str]] = [
    ({"model": nn.Linear}, "the model must be an nn.Layer.* got the class Linear"),
    ({"model": lambda x: x}, "the model must be an nn.Layer.* got the function .*lambda"),
    ({"loss": nn.MSELoss}, "the loss must be a Loss.* got the class MSELoss"),
    ({"loss": "mse"}, "the loss must be a Loss.* got 'mse'"),
    ({"loss": None}, "the loss must be a Loss.* got None"),
    ({"optimizer": optim.Adam}, "the optimizer must be an Optimizer.* got the class Adam"),
    ({"optimizer": "adam"}, "the optimizer must be an Optimizer.* got 'adam'"),
    ({"metrics": "accuracy"}, "metrics must be a list.* got 'accuracy'; put it into a list"),
    ({"metrics": Accuracy()}, "metrics must be a list.* got an Accuracy; put it into a list"),
    ({"metrics": accuracy}, "metrics must be a list.* got the function accuracy"),
    ({"metrics": ["acc"]}, "no metric 'acc'"),
    ({"metrics": [nn.MSELoss()]}, "no metric like a MSELoss"),
    ({"metrics": [nn.MSELoss]}, "no metric like the class MSELoss"),
    ({"metrics": [3]}, "no metric like an int"),
    ({"capture": "yes"}, "capture must be True, False or None, got 'yes'"),
    ({"metrics": [Metric()]}, "a metric needs a name"),
    ({"metrics": [lambda prediction: 0]}, r"of \(prediction, target\), got .*lambda.*\(pred"),
    ({"loss": lambda target: 0}, r"the loss must be a function of \(prediction, target\), got"),
    ({"metrics": [Accuracy(name="val_loss")]}, "cannot be called 'val_loss'"),
    ({"metrics": [Accuracy(), Accuracy(name="val_accuracy")]}, "cannot be called 'val_acc"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_PIECES, ids=[s for _, s in BAD_PIECES])
def test_a_piece_of_another_type_gets_one_sentence(change: dict[str, Any], sentence: str) -> None:
    model = network()
    pieces = {"model": model, "loss": nn.MSELoss(), "optimizer": optim.SGD(model.parameters(), 1)}
    with pytest.raises(InputError, match=sentence) as error:
        xbp.Trainer(**pieces | change)
    assert "\n" not in str(error.value)


class Keras(Callback):
    """A method with the arguments of another framework."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"callbacks": EarlyStopping("loss")}, "a list of Callbacks, got an EarlyStopping; put it"),
    ({"callbacks": EarlyStopping}, "a list of Callbacks, got the class EarlyStopping"),
    ({"callbacks": print}, "a list of Callbacks, got the function print"),
    ({"callbacks": "early"}, "a list of Callbacks, got 'early'"),
    ({"callbacks": [EarlyStopping]}, r"the class EarlyStopping; make one with EarlyStopping\("),
    ({"callbacks": [print]}, r"the function print; wrap it, as in LambdaCallback\(on_epoch_end"),
    ({"callbacks": [None]}, "callbacks must be Callbacks, got None"),
    ({"callbacks": 2 * [EarlyStopping("loss")]}, "the same EarlyStopping is given twice"),
    ({"callbacks": [Keras()]}, r"Keras\.on_epoch_end must be .*\(trainer, epoch, record\), got"),
    ({"resume": 3}, "a checkpoint has a path, got an int"),
    ({"validation_data": inputs()}, r"a pair \(x, y\), got a ndarray of shape \(12, 2\)"),
    ({"validation_data": inputs(2)}, r"a pair \(x, y\), got a ndarray of shape \(2, 2\)"),
    ({"validation_data": (inputs(), LABELS, LABELS)}, r"a pair \(x, y\), got a tuple of 3"),
    ({"validation_data": (inputs(),)}, "got a tuple of 1"),
    ({"validation_data": (inputs(), LABELS[:, None])}, r"give y\[:, 0\]"),
    ({"validation_data": (inputs(), LABELS + 1)}, "labels from 0 to 2 for 3 classes, got 3"),
    ({"validation_data": (np.ones((N, 5)), LABELS)}, r"expects input \(…, 2\)"),
    ({"validation_data": (inputs(), LABELS[1:])}, "the same number of samples"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_CALLS, ids=[s for _, s in BAD_CALLS])
def test_an_argument_of_another_type_gets_one_sentence(
    change: dict[str, Any], sentence: str
) -> None:
    refused(make(metrics=["accuracy"]), sentence, inputs(), LABELS, **change)


@pytest.mark.parametrize(
    ("make_it", "sentence"),
    [
        (lambda f: optim.SGD(network().parameters(), f), r"a schedule as lr must .* \(step\)"),
        (LearningRateScheduler, r"schedule must be a function of \(epoch\)"),
        (lambda f: LambdaCallback(on_step_end=f), r"on_step_end must .* \(trainer, step\)"),
    ],
)
def test_functions_of_other_arguments(make_it: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence + r", got .*<lambda>\(a, b, c\)"):
        make_it(lambda a, b, c: 0.1)
    with pytest.raises(InputError, match="got the class StepLR; make one with StepLR"):
        make_it(optim.StepLR)
    for function in (lambda *any: 0.1, lambda a, b=1, *more: 0.1, partial(pow, 0.1)):
        make_it(function)


@pytest.mark.parametrize("path", [None, 3, b"name", ["name"]], ids=repr)
@pytest.mark.parametrize(
    "use",
    [
        *(CSVLogger, Checkpoints, ModelCheckpoint, load_weights),
        lambda path: save_weights(network().state_dict(), path),
        lambda path: History().to_csv(path),
        lambda path: make().fit(inputs(), LABELS, resume=path if path is not None else 0),
    ],
)
def test_what_is_no_path_is_one_sentence(use: Any, path: Any) -> None:
    with pytest.raises(InputError, match=r"^a.* has a path, got (None|an int|a bytes|a list)"):
        use(path)


def test_none_stands_for_no_callbacks_and_no_metrics() -> None:
    model = network()
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1), None)
    assert len(trainer.fit(inputs(), LABELS, callbacks=None)) == 1


def test_validation_targets_are_compared_with_those_of_training() -> None:
    y = NUMBERS[:, :1]
    valid = inputs(), y[:, 0]
    refused(make(1, mean_square), r"give y\[:, None\]", inputs(), y, validation_data=valid)


def test_a_single_sample_is_no_batch() -> None:
    trainer, square = make(), nn.Sequential(nn.Linear(2, 2, dtype="float64", rng=0))
    for one in (trainer, xbp.Trainer(square, nn.MSELoss(), optim.SGD(square.parameters(), 1))):
        with pytest.raises(InputError, match=r"x of shape \(2,\) is no batch .* give x\[None\]"):
            one.predict(inputs()[0])
    trainer.fit(inputs(), LABELS)
    with pytest.raises(InputError, match=r"of a single sample.* give x\[None\]"):
        trainer.predict(inputs()[0])
    assert trainer.predict(inputs()[:1]).shape == (1, 3)
    model = nn.Sequential(nn.Linear(2, 3, dtype="float64"), Flat())
    trainer = xbp.Trainer(model, mean_square, optim.SGD(model.parameters(), 0.1))
    refused(trainer, "first axis must be that of the samples", inputs(), LABELS)


class Flat(nn.Layer):
    """A layer that drops the axis of the samples."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return x.reshape(-1), lambda dy: dy.reshape(x.shape)


def test_the_history_names_what_it_has() -> None:
    history = make(metrics=["accuracy"]).fit(inputs(), LABELS)
    with pytest.raises(KeyError) as error:
        history["acc"]
    assert str(error.value) == "there is no 'acc' in the history, only epoch, lr, loss, accuracy"
    with pytest.raises(InputError, match="as it has no epoch"):
        xbp.History()["loss"]
