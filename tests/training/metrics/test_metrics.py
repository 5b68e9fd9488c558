"""Metrics: counted by hand, against scikit-learn, on every backend, and invalid arguments."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.testing import assert_no_host_sync
from xbp.training import (
    METRICS,
    Accuracy,
    Callback,
    ConfusionMatrix,
    F1Score,
    LambdaCallback,
    Metric,
    Precision,
    Recall,
    TopKAccuracy,
    accuracy,
    binary_accuracy,
)
from xbp.training.metrics import counting
from xbp.training.metrics.averages import Averages
from xbp.training.metrics.confusion import confusion_matrix


@pytest.mark.parametrize("dtype", ["bool", "int64", "float32", "uint8"])
def test_binary_accuracy_counts_entries_on_the_right_side(dtype: str) -> None:
    logits = np.array([[2.0], [-1.0], [0.5], [-0.1], [0.0]], dtype=np.float32)
    target = np.array([[1], [1], [0], [0], [0]]).astype(dtype)
    assert float(binary_accuracy(logits, target)) == 3 / 5  # 0 is not above 0
    assert float(binary_accuracy(logits, target, threshold=0.5)) == 4 / 5


def test_a_target_that_is_neither_0_nor_1_is_missed() -> None:
    assert float(binary_accuracy(np.array([3.0, -3.0]), np.array([2, -1]))) == 0


def test_binary_accuracy_on_the_strict_backend() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        share = binary_accuracy(xbp.asarray([[1.0], [-1.0]]), xbp.asarray([[1], [1]]))
    assert xbp.to_numpy(share) == 0.5


def test_targets_of_another_shape_are_not_broadcast() -> None:
    with pytest.raises(InputError, match=r"prediction's shape \(4, 1\), got \(4,\)"):
        binary_accuracy(np.zeros((4, 1)), np.zeros(4))


def test_accuracy_of_a_single_output_is_refused() -> None:
    """The argmax of one output is always 0, so that argmax would count the zeros."""
    with pytest.raises(InputError, match="for a single one use binary_accuracy"):
        accuracy(np.zeros((4, 1)), np.zeros(4, dtype=np.int64))


def test_a_trainer_takes_binary_accuracy() -> None:
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    y = np.array([[0], [0], [1], [1]])
    model = nn.Linear(1, 1, dtype="float64", rng=0)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    trainer = xbp.Trainer(model, nn.BCEWithLogitsLoss(), optimizer, [binary_accuracy], rng=0)
    history = trainer.fit(x, y, epochs=20, batch_size=2, validation_data=(x, 1 - y))
    assert history["binary_accuracy"][-1] == 1
    assert history["val_binary_accuracy"][-1] == 0


# --- counting ---


Batches = list[tuple[NDArray[Any], NDArray[Any]]]


def batches(classes: int, seed: int = 0, absent: tuple[int, ...] = ()) -> Batches:
    """Outputs and labels in three batches, one of them small; better than chance."""
    rng, found = np.random.default_rng(seed), []
    for n in (40, 33, 1):
        labels = rng.choice([k for k in range(classes) if k not in absent], n)
        outputs = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
        outputs[:, list(absent)] -= 100  # also never predicted
        found.append((outputs.astype(np.float32), labels))
    return found


def measured(metric: Metric, found: Batches) -> Any:
    for outputs, labels in found:
        metric.update(xbp.asarray(outputs), xbp.asarray(labels))
    return metric.compute()


def joined(found: Batches) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Outputs, true labels, predicted labels."""
    outputs = np.concatenate([x for x, _ in found])
    return outputs, np.concatenate([y for _, y in found]), outputs.argmax(1)


@pytest.fixture(autouse=True)
def _undefined_is_no_warning() -> Iterator[None]:
    with warnings.catch_warnings():  # scikit-learn's
        warnings.filterwarnings("ignore", ".*(ill-defined|not in|single label).*")
        yield


def test_metrics_are_those_of_scikit_learn_on_every_backend(backend: xbp.Backend) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    found = batches(7)
    outputs, true, predicted = joined(found)
    expected = {
        "accuracy": learn.accuracy_score(true, predicted),
        "top_5_accuracy": learn.top_k_accuracy_score(true, outputs, k=5),
        "precision": learn.precision_score(true, predicted, average="macro"),
        "recall": learn.recall_score(true, predicted, average="macro"),
        "f1": learn.f1_score(true, predicted, average="macro"),
    }
    # Counts are exact; scikit-learn's mean may add the scores in another order.
    values = {name: measured(make(), found) for name, make in METRICS.items()}
    assert values == pytest.approx(expected, rel=1e-15)
    assert (measured(ConfusionMatrix(), found) == learn.confusion_matrix(true, predicted)).all()


SCORES = {Precision: "precision_score", Recall: "recall_score", F1Score: "f1_score"}
CASES: dict[str, Batches] = {
    "all classes": batches(4),
    "absent classes": batches(5, absent=(1, 4)),
    "never predicted": [(np.eye(4)[[0, 0, 1, 1]], np.array([0, 2, 1, 2]))],
    "only predicted": [(np.eye(4)[[0, 3, 1, 3]], np.array([0, 0, 1, 0]))],
    "nothing right": [(np.eye(4)[[1, 2, 3]], np.array([2, 3, 1]))],
    "two classes": batches(2),
    "one of two": batches(2, absent=(1,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.kind)
def test_scores_are_those_of_scikit_learn(score: Any, case: str) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    function, found = getattr(learn, SCORES[score]), CASES[case]
    outputs, true, predicted = joined(found)
    classes = outputs.shape[1]
    averages = ["micro", "macro", "weighted", *["binary"] * (classes == 2)]
    some = [None, range(classes), [classes - 1], [1, 0]]
    for average, labels, undefined in itertools.product(averages, some, (0.0, 1.0, math.nan)):
        if average == "binary" and labels is not None:
            continue
        metric = score(average=average, labels=labels, zero_division=undefined)
        expected = function(
            true, predicted, average=average, labels=labels, zero_division=undefined
        )
        # As above.
        assert measured(metric, found) == pytest.approx(expected, rel=1e-15, nan_ok=True), metric
    for labels, undefined in itertools.product(some, (0.0, 1.0, math.nan)):
        metric = score(average=None, labels=labels, zero_division=undefined)
        labels = range(classes) if labels is None else labels
        expected = function(true, predicted, average=None, labels=labels, zero_division=undefined)
        np.testing.assert_array_equal(measured(metric, found), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
def test_the_confusion_matrix_is_that_of_scikit_learn(case: str, normalize: str | None) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    outputs, true, predicted = joined(CASES[case])
    classes = range(outputs.shape[1])
    expected = learn.confusion_matrix(true, predicted, labels=classes, normalize=normalize)
    matrix = measured(ConfusionMatrix(normalize=normalize), CASES[case])
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.dtype == expected.dtype
    if normalize is None:
        np.testing.assert_array_equal(matrix, confusion_matrix(true, predicted, len(classes)))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_accuracy_is_that_of_scikit_learn(k: int) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    outputs, true, _ = joined(batches(5))
    expected = learn.top_k_accuracy_score(true, outputs, k=k, labels=range(5))
    assert measured(TopKAccuracy(k), batches(5)) == expected


def test_top_k_accuracy_prefers_the_first_of_equal_outputs() -> None:
    """Ties go to the first class; scikit-learn prefers the last, so classes are reversed."""
    learn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    outputs, true = rng.integers(0, 3, (200, 6)).astype(np.float64), rng.integers(0, 6, 200)
    for k in (1, 2, 4):
        from_behind = learn.top_k_accuracy_score(5 - true, outputs[:, ::-1], k=k, labels=range(6))
        assert measured(TopKAccuracy(k), [(outputs, true)]) == from_behind
    assert measured(TopKAccuracy(1), [(outputs, true)]) == measured(Accuracy(), [(outputs, true)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shares_of_right_guesses_by_hand(dtype: str) -> None:
    """In float64, whatever the outputs; nan is no class, and the threshold is 0 itself."""
    outputs = np.array([[np.nan, 0.0], [0.9, 0.1], [0.2, 0.7]], dtype)
    share = accuracy(outputs, np.array([0, 0, 0]))
    assert share == 1 / 3 and share.dtype == "float64"
    logits = np.array([np.nan, np.nan, 1e-3, -1e-3, 0.0, 0.0], dtype)
    share = binary_accuracy(logits, np.array([0, 1, 1, 0, 0, 1]))
    assert share == 1 / 2 and share.dtype == "float64"


def test_an_output_that_is_nan_is_not_right() -> None:
    outputs, labels = np.full((4, 3), np.nan), np.array([0, 1, 2, 0])
    assert measured(TopKAccuracy(2), [(outputs, labels)]) == 0


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "bool"])
def test_a_single_output_is_compared_with_a_threshold(
    backend: xbp.Backend, shape: tuple[int, ...], dtype: str
) -> None:
    logits = np.array([2.0, -1.0, 0.5, -0.1, 0.0, 3.0]).reshape(shape)
    target = np.array([1, 1, 0, 0, 0, 1]).astype(dtype)
    found = [(logits, target), (logits, target.reshape(shape))]
    assert measured(Precision(threshold=0.0, average="binary"), found) == 2 / 3
    assert measured(Recall(threshold=2.0, average="binary"), found) == 1 / 3
    assert measured(ConfusionMatrix(threshold=0.0), found).tolist() == [[4, 2], [2, 4]]


def test_probabilities_as_targets_and_small_integers_as_labels(backend: xbp.Backend) -> None:
    outputs, true, _ = joined(batches(4))
    expected = measured(ConfusionMatrix(), [(outputs, true)])
    for target in (true.astype(np.uint8), np.eye(4, dtype=np.float32)[true]):
        assert (measured(ConfusionMatrix(), [(outputs, target)]) == expected).all()
        assert measured(Accuracy(), [(outputs, target)]) == np.trace(expected) / len(true)
    predicted = outputs.argmax(1).astype(np.int16)
    assert (measured(ConfusionMatrix(4), [(predicted, true)]) == expected).all()


def every_metric(classes: int = 4) -> list[Metric]:
    return [
        *(Accuracy(), TopKAccuracy(2), ConfusionMatrix()),
        *(Precision(), Recall(average=None), F1Score(classes, average="weighted")),
    ]


@pytest.mark.parametrize("held", [1, 50, 10**6])
def test_how_many_keys_wait_makes_no_difference(held: int, monkeypatch: Any) -> None:
    expected = [measured(metric, batches(4)) for metric in every_metric()]
    monkeypatch.setattr(counting, "HELD", held)
    for metric, value in zip(every_metric(), expected, strict=True):
        np.testing.assert_array_equal(measured(metric, batches(4)), value)


@pytest.mark.parametrize("make", [ConfusionMatrix, F1Score])
def test_memory_is_bounded_for_many_classes(make: Any, monkeypatch: Any) -> None:
    """No array is larger than the counters and a batch."""
    classes, batch = 120, 64
    largest, calls, count = 0, 0, counting.bincount

    def spy(x: Any, length: int) -> Any:
        nonlocal largest, calls
        largest, calls = max(largest, len(x), length), calls + 1
        return count(x, length)

    monkeypatch.setattr(counting, "bincount", spy)
    monkeypatch.setattr(counting, "HELD", 256)
    metric, rng = make(classes), np.random.default_rng(0)
    for _ in range(400):
        metric.update(rng.integers(0, classes, batch), rng.integers(0, classes, batch))
        assert sum(map(len, metric._waiting)) < max(256, metric.size())
    metric.compute()
    assert largest <= max(256, metric.size()) + 3 * batch
    keys = 400 * batch * (3 if make is F1Score else 1)
    assert calls <= keys // max(256, metric.size()) + 1


def test_counts_are_exact_where_means_of_means_are_not() -> None:
    metric, outputs = Accuracy(), np.eye(2)
    for n in (3, 7, 11):
        metric.update(outputs[np.ones(n, int)], np.arange(n) % 2)
    assert metric.compute() == (1 + 3 + 5) / 21


def test_no_metric_waits_for_the_device_within_an_epoch(monkeypatch: Any) -> None:
    """Sixty steps of an explicit loop, which counts keys many times."""
    pytest.importorskip("array_api_strict")
    monkeypatch.setattr(counting, "HELD", 40)
    found, metrics = batches(4), every_metric()
    with xbp.use_backend("array_api_strict"):
        metrics += [ConfusionMatrix(threshold=0.0), ConfusionMatrix(4, name="of labels")]
        arrays = [(xbp.asarray(x), xbp.asarray(y)) for x, y in found]
        with assert_no_host_sync():
            for (x, y), _ in itertools.product(arrays, range(20)):
                for metric in metrics[:-2]:
                    metric.update(x, y)
                metrics[-2].update(x[:, 0], xbp.get_backend().xp.astype(y > 1, x.dtype))
                metrics[-1].update(y, y)
                values = [accuracy(x, y), binary_accuracy(x, x)]
        for metric, twin in zip(metrics[:-2], every_metric(), strict=True):
            np.testing.assert_array_equal(metric.compute(), measured(twin, found * 20))
        assert metrics[-1].compute().sum() == 20 * 74
        assert [xbp.to_numpy(value).dtype for value in values] == ["float64", "float64"]


# --- in a Trainer ---


def make_trainer(metrics: Any) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(4, 8, rng=0), nn.Tanh(), nn.Linear(8, 4, rng=1))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, metrics, rng=0)


def data(n: int = 100) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, n)
    return (rng.normal(size=(n, 4)) + 2 * np.eye(4)[y]).astype(np.float32), y


def test_a_trainers_epoch_does_not_wait_for_its_metrics() -> None:
    """From the first step of an epoch to the end of its last one."""
    pytest.importorskip("array_api_strict")
    guards: list[Any] = []

    class Guard(Callback):
        def on_epoch_begin(self, trainer: xbp.Trainer, epoch: int) -> None:
            guards.append(assert_no_host_sync())
            guards[-1].__enter__()

        def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
            if step == trainer.steps_per_epoch:
                guards[-1].__exit__(None, None, None)

    records = []
    for backend in ("numpy", "array_api_strict"):
        with xbp.use_backend(backend):
            trainer = make_trainer(every_metric())
            callbacks = [Guard()] if backend != "numpy" else []
            history = trainer.fit(*data(), 2, 4, validation_data=data(), callbacks=callbacks)
        records.append(history.records[-1])
    assert len(guards) == 2
    # The counts are equal, the losses equal to rounding.
    assert records[0] == pytest.approx(records[1], rel=1e-5)


def test_records_have_every_number_and_evaluate_leaves_the_matrix() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    matrix = ConfusionMatrix()
    trainer = make_trainer(["accuracy", "f1", Precision(average=None), matrix])
    x, y = data()
    history = trainer.fit(x, y, epochs=2, batch_size=16, validation_data=(x, y))
    names = ["loss", "accuracy", "f1", *(f"precision_{k}" for k in range(4))]
    assert history.names() == ["epoch", "lr", *names, *(f"val_{name}" for name in names)]
    predicted = trainer.predict(x).argmax(1)
    result = trainer.evaluate(x, y, batch_size=7)
    assert list(result) == names
    assert (matrix.compute() == learn.confusion_matrix(y, predicted)).all()
    assert result["accuracy"] == history["val_accuracy"][-1] == (predicted == y).mean()
    precision = learn.precision_score(y, predicted, average=None)
    assert [result[f"precision_{k}"] for k in range(4)] == precision.tolist()


def test_evaluating_within_an_epoch_leaves_its_own_counts_alone() -> None:
    x, y = data()

    def evaluate(trainer: xbp.Trainer, step: int) -> None:
        trainer.evaluate(x[:10], y[:10])

    records = [
        make_trainer(every_metric()).fit(x, y, 2, 16, callbacks=callbacks).records
        for callbacks in ([], [LambdaCallback(on_step_end=evaluate)])
    ]
    assert records[0] == records[1]


def test_a_function_is_averaged_over_samples_as_before() -> None:
    def share(prediction: Any, target: Any) -> Any:
        return (prediction.argmax(1) == target).mean()

    trainer = make_trainer([share, accuracy])
    x, y = data(50)
    result = trainer.evaluate(x, y, batch_size=16)
    right = (trainer.predict(x).argmax(1) == y).mean()
    # A mean of means, rounded once for each batch.
    assert result["share"] == pytest.approx(right, rel=1e-15)
    assert result["accuracy"] == pytest.approx(right, rel=1e-15)


def test_a_metric_of_ones_own() -> None:
    class Largest(Metric):
        name = "largest"

        def reset(self) -> None:
            self.value: Any = 0.0

        def update(self, prediction: Any, target: Any) -> None:
            self.value = np.maximum(self.value, prediction.max())

        def compute(self) -> float:
            return float(self.value)

    trainer = make_trainer([Largest])
    x, y = data(50)
    assert trainer.evaluate(x, y, batch_size=16)["largest"] == float(trainer.predict(x).max())
    with pytest.raises(NotImplementedError, match=r"define state_dict\(self\)"):
        trainer.metrics["largest"].state_dict()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_state_of_half_an_epoch_goes_on(first: int, backend: xbp.Backend) -> None:
    found = [(xbp.asarray(x), xbp.asarray(y)) for x, y in batches(4)]
    metrics = {metric.name: metric for metric in [*every_metric(), Accuracy(name="a")]}
    results = []
    for stop in (None, first):
        seen = Averages(nn.CrossEntropyLoss(), metrics)
        for step, (x, y) in enumerate(found):
            if step == stop:
                state = seen.state_dict()
                assert all(isinstance(value, np.ndarray) for value in state.values())
                seen = Averages(nn.CrossEntropyLoss(), metrics)
                seen.load_state_dict(state)
            seen.add(nn.CrossEntropyLoss()(x, y)[0], x, y)
        results.append((seen.result(), metrics["confusion_matrix"].compute().tolist()))
    assert results[0] == results[1]


def test_a_state_of_another_metric_is_refused() -> None:
    matrix = ConfusionMatrix()
    measured(matrix, batches(4))
    with pytest.raises(InputError, match="does not fit recall: its counts have another shape"):
        Recall().load_state_dict(matrix.state_dict())
    seen = Averages(nn.MSELoss(), {})
    with pytest.raises(InputError, match="does not fit loss: it needs a value for each batch"):
        seen.load_state_dict({"loss.sizes": np.ones(3, int), "loss.values": np.ones(2)})


# --- what is refused ---

LOGITS = np.zeros((3, 4))
BAD_UPDATES: list[tuple[Any, Any, Any, str]] = [
    (Accuracy(), LOGITS, np.zeros(2, int), r"outputs \(N, C\).*\(3, 4\) and \(2,\)"),
    (Accuracy(), LOGITS, np.zeros(3), "accuracy needs integer labels, got float64"),
    (Recall(), np.zeros((3, 1)), np.zeros(3, int), "single one give threshold=0.0 for logits"),
    (TopKAccuracy(4), LOGITS, np.zeros(3, int), "top_4_accuracy of 4 outputs is always 1"),
    (F1Score(5), LOGITS, np.zeros(3, int), "f1 is for 5 classes, but there are 4 outputs"),
    (F1Score(), np.zeros(3), np.zeros(3, int), "predicted and true labels.*got float64"),
    (F1Score(), np.zeros(3, int), np.zeros(3, int), "num_classes="),
    (F1Score(2, threshold=0.0), LOGITS, np.zeros(3), r"\(N,\) or \(N, 1\), got shapes \(3, 4\)"),
    (F1Score(3), np.zeros(3, int), np.zeros((3, 3)), r"got float64 \(3, 3\)"),
]


@pytest.mark.parametrize(
    ("metric", "x", "y", "sentence"), BAD_UPDATES, ids=[b[3] for b in BAD_UPDATES]
)
def test_a_batch_that_does_not_fit_gets_one_sentence(
    metric: Metric, x: Any, y: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        metric.update(x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
@pytest.mark.parametrize("metric", every_metric(), ids=lambda metric: metric.name)
def test_labels_that_are_no_class_are_found_in_the_end(metric: Metric, wrong: int) -> None:
    with xbp.use_backend("numpy"):
        outputs, labels = LOGITS, np.array([0, wrong, 1])
        with pytest.raises(InputError, match="from 0 to 3 for 4 classes; 1 of 3 samples"):
            measured(metric.fresh(), [(outputs, labels)])


@pytest.mark.parametrize("make", [ConfusionMatrix, F1Score])
@pytest.mark.parametrize(
    ("predicted", "true"), [(4, 0), (-1, 1), (0, 4), (1, -1), (-1, 4), (4, -1)]
)
def test_labels_that_are_no_class_are_not_counted_elsewhere(
    make: Any, predicted: int, true: int
) -> None:
    """Either of both, with any key."""
    metric = make(4)
    with pytest.raises(InputError, match="from 0 to 3 for 4 classes; 1 of 2 samples"):
        measured(metric, [(np.array([0, predicted]), np.array([0, true]))])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
def test_keys_do_not_overflow_the_labels_dtype(dtype: str, backend: xbp.Backend) -> None:
    found = [(np.arange(200).astype(dtype), np.arange(200)[::-1].astype(dtype))]
    matrix = measured(ConfusionMatrix(200), found)
    assert (matrix == np.eye(200)[::-1]).all()
    assert measured(Precision(200), [(found[0][0], found[0][0])]) == 1


def test_a_half_is_no_class() -> None:
    metric = ConfusionMatrix(threshold=0.0)
    with pytest.raises(InputError, match="from 0 to 1 for 2 classes; 1 of 2 samples"):
        measured(metric, [(np.zeros(2), np.array([0.5, 1.0]))])


def test_nothing_seen_is_no_number() -> None:
    for metric in [*every_metric(), *make_trainer([accuracy]).metrics.values()]:
        with pytest.raises(InputError, match=f"{metric.name} has seen no samples"):
            metric.compute()
    used = Accuracy()
    measured(used, batches(4))
    used.reset()
    with pytest.raises(InputError, match="no samples"):
        used.compute()


BAD_OPTIONS: list[tuple[Any, str]] = [
    (lambda: TopKAccuracy(0), "k must be an integer of at least 1"),
    (lambda: F1Score(1), "num_classes must be an integer of at least 2"),
    (lambda: F1Score(average="mean"), "average must be one of 'binary', 'micro'"),
    (lambda: F1Score(zero_division=2), "zero_division must be 0, 1 or nan"),
    (lambda: F1Score(labels=[]), "at least one class"),
    (lambda: F1Score(labels=[1], average="binary"), "none with average='binary'"),
    (lambda: F1Score(labels=[-1]), "labels must be an integer of at least 0"),
    (lambda: F1Score(3, threshold=0.0), "separates 2 classes, got num_classes=3"),
    (lambda: ConfusionMatrix(normalize="rows"), "normalize must be one of 'true', 'pred', 'all'"),
    (lambda: measured(F1Score(average="binary"), batches(3)), "is for 2 classes, but there are 3"),
    (
        lambda: measured(F1Score(labels=[3]), batches(3)),
        "labels must be below 3, the classes; got 3",
    ),
    (lambda: make_trainer(["f1", F1Score()]), "two quantities would be called 'f1'"),
    (lambda: make_trainer([F1Score(name="loss")]), "two quantities would be called 'loss'"),
    (
        lambda: make_trainer(["auc"]),
        "no metric 'auc'; give a function, a Metric or one of accuracy",
    ),
    (lambda: make_trainer([[]]), r"no metric like a list of 0"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD_OPTIONS, ids=[s for _, s in BAD_OPTIONS])
def test_bad_options_get_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


IGNORING = [
    lambda **options: F1Score(3, average=None, **options),
    lambda **options: F1Score(3, average="micro", **options),
    lambda **options: Precision(3, average="weighted", **options),
    lambda **options: Recall(3, **options),
    lambda **options: ConfusionMatrix(3, **options),
    lambda **options: ConfusionMatrix(3, normalize="true", **options),
]


@pytest.mark.parametrize("ignored", [-100, -1, -2, 0, 7])
@pytest.mark.parametrize("make", IGNORING)
@pytest.mark.parametrize("backend", ["numpy", "array_api_strict"])
def test_an_ignored_label_does_not_count(backend: str, make: Any, ignored: int) -> None:
    """As if its samples were missing, whatever their outputs."""
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    labels[rng.random(40) < 0.3] = ignored
    kept = labels != ignored
    outputs[np.flatnonzero(~kept)[:3]] = np.nan
    with xbp.use_backend(backend) as found:
        metric, reference = make(ignore_index=ignored), make()
        metric.check(found.asarray(outputs), found.asarray(labels))
        for part in (slice(0, 25), slice(25, 40)):
            metric.update(found.asarray(outputs[part]), found.asarray(labels[part]))
        reference.update(found.asarray(outputs[kept]), found.asarray(labels[kept]))
    np.testing.assert_array_equal(metric.compute(), reference.compute())
    resumed = make(ignore_index=ignored)
    resumed.load_state_dict(metric.state_dict())
    np.testing.assert_array_equal(resumed.compute(), reference.compute())


def test_a_label_that_is_neither_class_nor_ignored_is_refused_beside_ignored_ones() -> None:
    metric = F1Score(2, ignore_index=-100)
    metric.update(np.eye(2), np.array([-100, 5]))
    with pytest.raises(InputError, match=r"needs labels from 0 to 1 .*; 1 of 2 samples"):
        metric.compute()
    single = Precision(threshold=0.5, ignore_index=-1)
    single.update(np.array([0.7, 0.7, 0.1]), np.array([1.0, -1.0, 0.5]))
    with pytest.raises(InputError, match="1 of 3 samples"):
        single.compute()
    with pytest.raises(InputError, match="ignore_index"):
        ConfusionMatrix(2, ignore_index="no")  # type: ignore[arg-type]
