"""Errors before the first step: pieces, data, targets, metrics, callbacks, learning rates."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import InputError, OutOfMemoryError
from xbp.models import lenet1998
from xbp.testing.cases import LAYERS, MODELS, Case
from xbp.training import (
    Accuracy,
    Callback,
    Checkpoints,
    ConfusionMatrix,
    CSVLogger,
    EarlyStopping,
    F1Score,
    History,
    LambdaCallback,
    LearningRateScheduler,
    Metric,
    ModelCheckpoint,
    Precision,
    TopKAccuracy,
    accuracy,
    binary_accuracy,
    load_weights,
    save_weights,
)

N = 12
LABELS = np.arange(N) % 3
ONE_HOT = np.eye(3)[LABELS]
NUMBERS = np.random.default_rng(1).normal(size=(N, 3))


def inputs(n: int = N) -> NDArray[Any]:
    return np.random.default_rng(0).normal(size=(n, 2))


def network(outputs: int = 3, *last: nn.Layer, dtype: str = "float64") -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, outputs, dtype=dtype, rng=0), *last)


def make(outputs: int = 3, loss: Any = None, metrics: Any = (), lr: Any = 0.1) -> xbp.Trainer:
    model = network(outputs)
    loss = loss or nn.CrossEntropyLoss()
    return xbp.Trainer(model, loss, optim.SGD(model.parameters(), lr), metrics, rng=0)


def mean_square(prediction: Any, target: Any) -> Any:
    """A loss of somebody's own, which broadcasts."""
    return np.mean((prediction - target) ** 2), 2 * (prediction - target) / prediction.size


def refused(trainer: xbp.Trainer, sentence: str, *args: Any, **options: Any) -> None:
    """`fit` says one sentence, and no step is made."""
    before = trainer.model.state_dict()
    with pytest.raises(InputError, match=sentence) as error:
        trainer.fit(*args, **options)
    assert "\n" not in str(error.value)
    assert trainer.optimizer.steps == 0
    assert all(np.array_equal(before[k], v) for k, v in trainer.model.state_dict().items())


# --- the shapes of targets ---

CLASS_LOSSES = [nn.CrossEntropyLoss, lenet1998.RejectingCrossEntropyLoss]
ENTRY_LOSSES = [nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss]
CLASS_METRICS: list[Any] = [
    *(Accuracy, F1Score, Precision, ConfusionMatrix, partial(TopKAccuracy, 2)),
    lambda: accuracy,
]

NOT_CLASSES = {
    "a column": (LABELS[:, None], r"give y\[:, 0\]"),
    "wider": (np.eye(4)[LABELS], r"\(12, 4\)"),
    "narrower": (np.eye(3)[LABELS][:, :2], r"\(12, 2\)"),
    "one more axis": (ONE_HOT[:, None], r"\(12, 1, 3\)"),
    "one less": (np.asarray(1), r"\(\)"),
}
TRANSPOSED = {"transposed": (ONE_HOT.T, r"\(3, 12\)"), "a row": (LABELS[None], r"\(1, 12\)")}


@pytest.mark.parametrize("loss", CLASS_LOSSES)
@pytest.mark.parametrize("case", NOT_CLASSES | TRANSPOSED)
def test_a_loss_of_classes_refuses_other_targets(loss: Any, case: str) -> None:
    target, sentence = (NOT_CLASSES | TRANSPOSED)[case]
    with pytest.raises(InputError, match=sentence):
        loss()(NUMBERS, target)
    refused(make(loss=loss()), ".", inputs(), target)


@pytest.mark.parametrize("metric", CLASS_METRICS)
@pytest.mark.parametrize("case", NOT_CLASSES | TRANSPOSED)
def test_a_metric_of_classes_refuses_other_targets(metric: Any, case: str) -> None:
    target, sentence = (NOT_CLASSES | TRANSPOSED)[case]
    update = getattr(metric(), "update", metric())
    with pytest.raises(InputError, match=sentence):
        update(NUMBERS, target)


@pytest.mark.parametrize("loss", ENTRY_LOSSES)
@pytest.mark.parametrize(
    ("outputs", "shape", "sentence"),
    [
        (1, (N,), r"give y\[:, None\]"),
        (1, (N, 1, 1), r"give y\[\.\.\., 0\]"),
        (3, (N,), r"CrossEntropyLoss|\(12,\)"),
        (3, (N, 1), r"\(12, 1\)"),
        (3, (N, 4), r"\(12, 4\)"),
        (3, (3, N), r"\(3, 12\)"),
    ],
)
def test_a_loss_of_entries_broadcasts_nothing(
    loss: Any, outputs: int, shape: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(InputError, match=rf"{sentence}|\(3, 12\)"):
        loss()(np.zeros((N, outputs)), np.zeros(shape))
    refused(make(outputs, loss()), sentence, inputs(), np.zeros(shape))


@pytest.mark.parametrize("shape", [(N,), (1, N), (N, 2)])
def test_binary_accuracy_broadcasts_nothing(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="needs targets of the prediction's shape"):
        binary_accuracy(np.zeros((N, 1)), np.zeros(shape))


REGRESSIONS = {
    "one output": (1, NUMBERS[:, :1], "two classes or more"),
    "some": (3, NUMBERS, "these targets .* are neither"),
    "two": (2, NUMBERS[:, :2], "these targets .* are neither"),
    "several labels a row": (3, np.ones((N, 3)), "these targets .* are neither"),
    "no label in a row": (3, ONE_HOT * (LABELS != 1)[:, None], "these targets .* are neither"),
}


@pytest.mark.parametrize("metric", ["accuracy", "f1", ConfusionMatrix()])
@pytest.mark.parametrize("case", REGRESSIONS)
def test_a_metric_of_classes_has_no_number_for_a_regression(metric: Any, case: str) -> None:
    outputs, y, sentence = REGRESSIONS[case]
    refused(make(outputs, nn.MSELoss(), [metric]), sentence, inputs(), y)
    trainer = make(outputs, nn.MSELoss(), [metric])
    with pytest.raises(InputError, match=sentence):
        trainer.evaluate(inputs(), y)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0.1, 0.9)])
def test_codes_of_labels_are_labels(low: float, high: float) -> None:
    """LeCun's -1 and 1, and Rumelhart's 0.1 and 0.9, on the squared error."""
    trainer = make(3, nn.MSELoss(), ["accuracy"])
    codes = low + (high - low) * ONE_HOT
    right = (trainer.model(inputs()).argmax(1) == LABELS).mean()
    assert trainer.evaluate(inputs(), codes)["accuracy"] == right
    assert "accuracy" in trainer.fit(inputs(), codes, verbose=False).names()


def test_options_of_metrics_are_compared_with_the_outputs() -> None:
    for metric, sentence in [
        (F1Score(average="binary"), "for 2 classes, but there are 3"),
        (F1Score(labels=[3]), "labels must be below 3"),
        (F1Score(4), "for 4 classes, but there are 3 outputs"),
        (TopKAccuracy(3), "is always 1"),
        (F1Score(threshold=0.0), r"needs outputs and targets \(N,\)"),
    ]:
        refused(make(metrics=[metric]), sentence, inputs(), LABELS)
    refused(make(3, mean_square, ["accuracy"]), "2 of 12 samples", inputs(), [7, -1, *LABELS[2:]])
    trainer = make(1, nn.BCEWithLogitsLoss(), [F1Score(threshold=0.0)])
    refused(trainer, "samples have another one", inputs(), np.full((N, 1), 0.5))


# --- nan is no class, and no probability ---


def test_outputs_that_are_nan_are_no_class(xp: Any) -> None:
    outputs = np.array([[0.0, 1], [np.nan, 1], [1, np.nan], [np.nan, np.nan], [2, 1]])
    labels = np.array([1, 0, 1, 0, 0])
    outputs, labels = xbp.asarray(outputs), xbp.asarray(labels)
    for metric, expected in [
        (Accuracy(), 2 / 5),
        (TopKAccuracy(1), 2 / 5),
        (F1Score(average="micro"), 4 / 7),
        (Precision(average=None), [1.0, 1.0]),
    ]:
        metric.update(outputs, labels)
        assert np.allclose(metric.compute(), expected), metric.name
    assert float(accuracy(outputs, labels)) == 2 / 5
    matrix = ConfusionMatrix()
    matrix.update(outputs, labels)
    with pytest.raises(InputError, match="3 of 5 samples"):
        matrix.compute()
    single, truth = xbp.asarray([[np.nan], [-1.0], [1.0]]), xbp.asarray([[0.0], [0.0], [1.0]])
    assert float(binary_accuracy(single, truth)) == pytest.approx(2 / 3)
    recall = F1Score(threshold=0.0, average=None)
    recall.update(single, truth)
    assert recall.compute().tolist() == pytest.approx([2 / 3, 1])


def test_targets_that_are_nan_are_no_probabilities() -> None:
    broken = np.where(np.arange(N)[:, None] == 5, np.nan, ONE_HOT)
    refused(make(), "needs probabilities", inputs(), broken)
    refused(make(1, nn.BCEWithLogitsLoss()), "from 0 to 1", inputs(), broken[:, :1])


def test_targets_that_are_nan_are_no_labels(xp: Any) -> None:
    """Also by hand, where argmax would find the place of the nan."""
    outputs = xp.asarray([[0.1, 0.9], [0.8, 0.2]])
    targets = xp.asarray([[math.nan, 1.0], [1.0, 0.0]])
    assert float(accuracy(outputs, targets)) == 0.5
    for metric in (Accuracy(), F1Score(), ConfusionMatrix()):
        metric.update(outputs, targets)
        with pytest.raises(InputError, match="1 of 2 samples have another one"):
            metric.compute()


NO_INTEGERS = {
    "bool": LABELS > 0,
    "floats": LABELS.astype(float),
    "floats of 32 bits": LABELS.astype("float32"),
}


@pytest.mark.parametrize("labels", NO_INTEGERS.values(), ids=NO_INTEGERS.keys())
def test_labels_of_another_dtype_are_told_how_to_be_converted(labels: NDArray[Any]) -> None:
    advice = r"if they are labels, convert them with xbp\.asarray\(y\)\.astype\('int64'\)"
    refused(make(), advice, inputs(), labels)
    refused(make(), advice, inputs(), LABELS, validation_data=(inputs(), labels))
    with pytest.raises(InputError, match=advice):
        nn.CrossEntropyLoss()(NUMBERS, labels)
    make().fit(inputs(), xbp.asarray(labels).astype("int64"))


@pytest.mark.parametrize("loss", ENTRY_LOSSES)
def test_complex_numbers_lose_no_part(loss: Any) -> None:
    refused(make(loss=loss()), r"y holds complex numbers \(complex128\)", inputs(), NUMBERS + 1j)
    refused(make(loss=loss()), "x holds complex numbers", inputs() + 0j, ONE_HOT)
    with pytest.raises(InputError, match="x holds complex numbers"):
        make().predict(inputs() + 0j)
    with pytest.raises(InputError, match="needs real targets, got complex128"):
        loss()(NUMBERS, ONE_HOT + 0j)


def test_targets_that_are_forgotten() -> None:
    refused(make(), "there are no targets: .* got a ndarray of shape", inputs(), None)
    refused(make(), "there are no targets: .* got a tuple of 2 and None", (inputs(), LABELS), None)
    with pytest.raises(InputError, match="there are no targets"):
        make().evaluate(inputs(), None)


# --- pieces that belong together ---


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
        trainer.fit(inputs(), LABELS)  # without another one, which would be an error
    frozen = optim.SGD(model.layers[1].parameters(), 0.1)
    for parameter in model.layers[0].parameters():
        parameter.trainable = False
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), frozen)  # that is meant
    for parameter in model.parameters():
        parameter.trainable = False
    trainer.fit(inputs(), LABELS)  # the optimizer has constants of the model: no harm
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
    """With an array where a Parameter should be."""

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
    """Forgets the axis of the samples."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return x.reshape(-1), lambda dy: dy.reshape(x.shape)


def test_the_history_names_what_it_has() -> None:
    history = make(metrics=["accuracy"]).fit(inputs(), LABELS)
    with pytest.raises(KeyError) as error:
        history["acc"]
    assert str(error.value) == "there is no 'acc' in the history, only epoch, lr, loss, accuracy"
    with pytest.raises(InputError, match="as it has no epoch"):
        xbp.History()["loss"]


# --- dtypes ---


@pytest.mark.parametrize(("own", "given"), [("float32", "float64"), ("float64", "float32")])
def test_floating_point_data_become_the_models(own: str, given: str, xp: Any) -> None:
    model = network(3, dtype=own)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1), rng=0)
    x = inputs().astype(given)
    assert trainer.predict(x).dtype == model[0].weight.data.dtype  # type: ignore[index]
    history = trainer.fit(x, LABELS, 2, 4, (x, LABELS))
    again = network(3, dtype=own)
    twin = xbp.Trainer(again, nn.CrossEntropyLoss(), optim.SGD(again.parameters(), 0.1), rng=0)
    converted = x.astype(own)
    assert twin.fit(converted, LABELS, 2, 4, (converted, LABELS)).records == history.records


def test_what_the_models_dtype_cannot_hold_is_refused() -> None:
    model = network(3, dtype="float32")
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1))
    refused(trainer, "beyond the model's float32", np.full((3, 2), 1e300), np.arange(3))
    with pytest.raises(InputError, match="needs floating-point input, got uint8"):
        trainer.predict(np.ones((3, 2), np.uint8))


def test_data_for_which_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise MemoryError

    trainer = make()
    monkeypatch.setattr("xbp.backend.places.as_numbers", no_room)
    with pytest.raises(OutOfMemoryError, match=r"no room for data of shape \(12, 2\)"):
        trainer.predict(inputs())


# --- rates ---

BAD_RATES: list[Any] = [
    -0.1,
    10**400,
    float("nan"),
    float("inf"),
    None,
    "0.1",
    [0.1],
    np.ones(1),
    True,
    1j,
]
GOOD_RATES: list[Any] = [0.5, 1, np.float32(0.5), np.asarray(0.5), np.int64(1), np.float16(0.5)]


def rate(step: int) -> Any:
    return RATE[0]


RATE: list[Any] = [0.0]


@pytest.mark.parametrize("value", BAD_RATES, ids=repr)
def test_a_rate_that_is_none_names_its_function(value: Any) -> None:
    RATE[0] = value
    refused(make(lr=rate), "learning rate of step 0 .* from the schedule rate", inputs(), LABELS)
    scheduler = [LearningRateScheduler(rate)]
    sentence = "learning rate of epoch 1 .* from the schedule rate"
    refused(make(), sentence, inputs(), LABELS, callbacks=scheduler)


@pytest.mark.parametrize("value", GOOD_RATES, ids=repr)
def test_a_rate_may_be_any_number(value: Any) -> None:
    RATE[0] = value
    for trainer, callbacks in ((make(lr=rate), []), (make(), [LearningRateScheduler(rate)])):
        (lr,) = trainer.fit(inputs(), LABELS, callbacks=callbacks)["lr"]
        assert lr == float(value)
        assert type(lr) is float


def test_the_last_rate_is_looked_at_before_the_first_step() -> None:
    sentence = r"learning rate of step 11 .* got -0\.1"
    refused(make(lr=lambda step: 0.1 - step * 0.2 / 11), sentence, inputs(), LABELS, 4, 4)
    rates = [0.1] * 11
    sentence = r"the schedule .*__getitem__ fails at step 11, the last .*IndexError"
    refused(make(lr=rates.__getitem__), sentence, inputs(), LABELS, 4, 4)
    make(lr=[0.1].__getitem__).fit(
        inputs(), LABELS, 4, 4, callbacks=[LearningRateScheduler(lambda epoch: 0.1)]
    )


@pytest.mark.parametrize("schedule", [optim.OneCycleLR, optim.CosineAnnealingLR])
def test_a_schedule_for_another_number_of_steps(schedule: Any, tmp_path: Any) -> None:
    for total, fate in ((13, "will not come to its end"), (11, "stays at its end")):
        with pytest.warns(UserWarning, match=f"made for {total} steps.* after 12: the rate {fate}"):
            make(lr=schedule(0.1, total)).fit(inputs(), LABELS, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make(lr=schedule(0.1, 12))
        halt = LambdaCallback(on_step_end=lambda t, s: t.optimizer.steps == 4 and t.stop("enough"))
        trainer.fit(inputs(), LABELS, 4, 4, callbacks=[xbp.training.Checkpoints(tmp_path, 1), halt])
        trainer = make(lr=schedule(0.1, 12))
        trainer.fit(inputs(), LABELS, 4, 4, resume=tmp_path)  # of 12 steps, 4 have been made
    assert trainer.optimizer.steps == 12


# --- what callbacks will find ---


def test_what_others_record_can_be_monitored() -> None:
    """Nobody knows before the first epoch."""

    class Own(Callback):
        def on_epoch_end(self, trainer: xbp.Trainer, epoch: int, record: Any) -> None:
            record["quality"] = epoch

    class Several(Metric):
        name = "several"

        def reset(self) -> None:
            pass

        def update(self, prediction: Any, target: Any) -> None:
            pass

        def numbers(self) -> dict[str, float]:
            return {"quality": 1.0}

    stop = EarlyStopping("quality", mode="max")
    make().fit(inputs(), LABELS, callbacks=[Own(), stop])
    make(metrics=[Several()]).fit(inputs(), LABELS, callbacks=[stop])
    refused(make(), "there is no 'quality' to monitor", inputs(), LABELS, callbacks=[stop])


def test_the_names_of_records_are_known() -> None:
    metrics = [F1Score(average=None), Precision(average=None, labels=[1, 2]), ConfusionMatrix()]
    trainer = make(metrics=[*metrics, "accuracy", accuracy and mean_of_first])
    history = trainer.fit(inputs(), LABELS, validation_data=(inputs(), LABELS))
    assert history.names() == trainer.expected


def mean_of_first(prediction: Any, target: Any) -> Any:
    return prediction[:, 0].mean()


def test_frames_of_pandas() -> None:
    """Floats of 64 bits for a model of 32, and a column of targets for one output."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(inputs(), columns=["a", "b"])
    model = network(1, dtype="float32")
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))
    refused(trainer, r"give y\[:, None\]", table, table["a"])
    assert len(trainer.fit(table, table[["a"]], validation_data=(table, table[["a"]]))) == 1


@pytest.mark.parametrize("where", ["", "on_fit_begin", "on_step_end", "on_epoch_end", "on_fit_end"])
def test_data_are_free_when_fit_has_ended(where: str) -> None:
    """As an error has no circle of references, wherever it comes from."""

    def fail(*_: Any) -> None:
        raise RuntimeError

    gc.disable()
    try:
        x = inputs().copy()
        held = weakref.ref(x)
        with suppress(RuntimeError):
            callbacks = [LambdaCallback(**{where: fail})] if where else []
            make().fit(x, LABELS, callbacks=callbacks)
        del x
        assert held() is None
    finally:
        gc.enable()
