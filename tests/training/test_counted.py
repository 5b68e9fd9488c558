"""Losses whose mean does not count samples; labels with several axes; tuples of outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim, training
from xbp.backend import why_unavailable
from xbp.errors import InputError
from xbp.testing import emulated_graphs

X = np.random.default_rng(0).normal(size=(23, 4))
LABELS = np.random.default_rng(1).integers(0, 3, 23)
LABELS[:9] = -1  # a batch of ignored labels only, without shuffling
WEIGHT = [0.25, 3.0, 1.0]
LOSSES = [
    nn.CrossEntropyLoss(ignore_index=-1),
    nn.CrossEntropyLoss(ignore_index=-1, weight=WEIGHT),
    nn.CrossEntropyLoss(ignore_index=-1, weight=WEIGHT, label_smoothing=0.1),
    nn.CrossEntropyLoss("sum", ignore_index=-1, weight=WEIGHT),
    nn.NLLLoss(ignore_index=-1, weight=WEIGHT),
]


class Nothing(optim.SGD):
    """A rule without updates, so that the mean of an epoch is that of one model."""

    def update(self, *arguments: Any, **options: Any) -> None:
        pass


def trainer_of(loss: Any, *, rule: Any = optim.SGD, **options: Any) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(4, 3, dtype="float64", rng=0), nn.Dropout(0.0))
    if isinstance(loss, nn.NLLLoss):
        model = nn.Sequential(model, nn.LogSoftmax())
    return xbp.Trainer(model, loss, rule(model.parameters(), 0.1), rng=3, **options)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("batch_size", [1, 4, 5, 23])
def test_the_mean_over_uneven_batches_is_that_over_the_set(loss: nn.Loss, batch_size: int) -> None:
    trainer = trainer_of(loss, rule=Nothing)
    expected = float(loss(trainer.predict(X), LABELS)[0])
    found = trainer.evaluate(X, LABELS, batch_size=batch_size)["loss"]
    assert found == pytest.approx(expected, rel=1e-14)  # float64, in another order
    trained = trainer.fit(X, LABELS, batch_size=batch_size, validation_data=(X, LABELS))
    assert trained["loss"][0] == pytest.approx(expected, rel=1e-14)
    assert trained["val_loss"][0] == pytest.approx(expected, rel=1e-14)


def test_a_mean_of_weighted_samples_is_that_over_the_set() -> None:
    from xbp.estimators.weighting import WeightedLoss

    counts = np.random.default_rng(4).integers(0, 5, 23).astype(float)
    for own, y in ((nn.MSELoss(), X[:, :3]), (nn.CrossEntropyLoss(weight=WEIGHT), abs(LABELS))):
        trainer = trainer_of(WeightedLoss(own))
        packed = np.column_stack([counts, y])
        found = trainer.evaluate(X, packed, batch_size=5)["loss"]
        expected = own(trainer.predict(X), y, counts)[0]
        assert found == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_captured_steps_count_alike(loss: nn.Loss) -> None:
    if why := why_unavailable("torch"):
        pytest.skip(why)
    found = []
    for capture in (False, True):
        with emulated_graphs(), xbp.use_backend("torch"):
            trainer = trainer_of(loss, capture=capture)
            history = trainer.fit(X, LABELS, epochs=2, batch_size=4)
            found.append(
                [
                    history["loss"],
                    trainer.model.state_dict()["0.weight"].tolist()
                    if "0.weight" in trainer.model.state_dict()
                    else trainer.model.state_dict()["0.0.weight"].tolist(),
                ]
            )
    assert found[0] == found[1]


def test_a_run_goes_on_within_such_an_epoch(tmp_path: Path) -> None:
    loss = nn.CrossEntropyLoss(ignore_index=-1, weight=WEIGHT)
    whole = trainer_of(loss).fit(X, LABELS, epochs=2, batch_size=4)
    first = trainer_of(loss)
    stopping = training.LambdaCallback(on_step_end=lambda t, s: s == 3 and t.stop("enough"))
    keeping = training.Checkpoints(tmp_path, every=1)
    first.fit(X, LABELS, epochs=2, batch_size=4, callbacks=[stopping, keeping])
    again = trainer_of(loss).fit(X, LABELS, epochs=2, batch_size=4, resume=tmp_path)
    assert again["loss"] == whole["loss"]


def test_a_set_without_a_label_that_counts_is_refused() -> None:
    trainer = trainer_of(LOSSES[0])
    with pytest.raises(InputError, match="nothing to learn from"):
        trainer.fit(X[:9], LABELS[:9])


# --- several axes ---------------------------------------------------------------------------------


class PerPixel(nn.Layer):
    """Outputs (N, C, L) of inputs (N, F, L)."""

    def __init__(self) -> None:
        self.linear = nn.Linear(4, 6, dtype="float64", rng=0)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        y, backward = self.linear.forward(xp.permute_dims(x, (0, 2, 1)))

        def permuted(dy: Any) -> Any:
            return xp.permute_dims(backward(xp.permute_dims(dy, (0, 2, 1))), (0, 2, 1))

        return xp.permute_dims(y, (0, 2, 1)), permuted


PIXELS = np.random.default_rng(5).normal(size=(7, 4, 5))
CLASSES = np.random.default_rng(6).integers(0, 6, (7, 5))


def test_metrics_count_each_label(backend: str) -> None:
    with xbp.use_backend(backend):
        model = PerPixel()
        metrics = ["accuracy", training.TopKAccuracy(2), training.F1Score(average="micro"),
                   training.ConfusionMatrix(), training.accuracy]  # fmt: skip
        metrics[-1] = named = lambda p, t: training.accuracy(p, t)
        named.__name__ = "by_function"
        trainer = xbp.Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1), metrics, rng=0
        )
        trainer.fit(PIXELS, CLASSES, batch_size=3, validation_data=(PIXELS, CLASSES))
        found = trainer.evaluate(PIXELS, CLASSES, batch_size=2)
        rows = np.moveaxis(xbp.to_numpy(trainer.predict(PIXELS)), 1, -1).reshape(-1, 6)
    right = np.argmax(rows, axis=1) == CLASSES.reshape(-1)
    order = np.argsort(-rows, axis=1)[:, :2]
    among = (order == CLASSES.reshape(-1, 1)).any(axis=1)
    assert found["accuracy"] == right.mean()
    assert found["by_function"] == pytest.approx(right.mean(), rel=1e-14)  # a mean of means
    assert found["f1_micro"] == pytest.approx(right.mean(), rel=1e-15)
    assert found["top_2_accuracy"] == among.mean()
    matrix = metrics[3].compute()  # type: ignore[attr-defined]
    assert matrix.sum() == 35 and np.trace(matrix) == right.sum()


@pytest.mark.parametrize("make", [training.Accuracy, lambda **o: training.TopKAccuracy(2, **o)])
def test_metrics_leave_a_label_out(make: Any, backend: str) -> None:
    labels = np.where(CLASSES == 2, -1, CLASSES)
    rng = np.random.default_rng(7)
    outputs = rng.normal(size=(7, 6, 5))
    with xbp.use_backend(backend):
        metric = make(ignore_index=-1)
        metric.check(xbp.asarray(outputs[:1]), xbp.asarray(labels))
        for part in (slice(0, 3), slice(3, 7)):
            metric.update(xbp.asarray(outputs[part]), xbp.asarray(labels[part]))
        again = metric.fresh()
        again.load_state_dict(metric.state_dict())
        rows = np.moveaxis(outputs, 1, -1).reshape(-1, 6)
        kept = labels.reshape(-1) >= 0
        known = make()
        known.update(xbp.asarray(rows[kept]), xbp.asarray(labels.reshape(-1)[kept]))
    assert metric.compute() == again.compute() == known.compute()
    nothing = make(ignore_index=0)
    nothing.update(outputs[:1, :, 0], np.array([0]))
    assert np.isnan(nothing.compute())


def test_labels_that_metrics_do_not_leave_out_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels from 0 to 5.*; 1 of 35 samples"):
        training.Accuracy().check(np.zeros((1, 6, 5)), np.where(np.arange(35) == 3, -1, 0)
                                  .reshape(7, 5))  # fmt: skip
    with pytest.raises(InputError, match="or as many more axes behind these, got shapes"):
        training.Accuracy().update(np.zeros((7, 6, 5)), CLASSES[:, :4])
    with pytest.raises(InputError, match="ignore_index must be an integer"):
        training.Accuracy(ignore_index="no")  # type: ignore[arg-type]


# --- several outputs ------------------------------------------------------------------------------


class Siamese(nn.Layer):
    """Embeddings (N, 3) of both halves of x (N, 2, 4)."""

    def __init__(self) -> None:
        self.body = nn.Linear(4, 3, dtype="float64", rng=0)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        u, back_u = self.body.forward(x[:, 0, :])
        v, back_v = self.body.forward(x[:, 1, :])
        return (u, v), lambda dy: xp.stack([back_u(dy[0]), back_v(dy[1])], axis=1)


PAIRS = np.random.default_rng(8).normal(size=(11, 2, 4))
SIGNS = np.where(np.arange(11) % 2 == 0, 1, -1)


def siamese(**options: Any) -> xbp.Trainer:
    model = Siamese()
    loss, rule = nn.CosineEmbeddingLoss(margin=0.1), optim.SGD(model.parameters(), 0.5)
    return xbp.Trainer(model, loss, rule, [cosine], rng=0, **options)


def cosine(prediction: Any, target: Any) -> Any:
    return abs(prediction[0] * prediction[1]).sum()


def test_a_model_of_two_outputs_trains() -> None:
    trainer = siamese()
    history = trainer.fit(PAIRS, SIGNS, epochs=40, batch_size=4)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    u, v = trainer.predict(PAIRS, batch_size=3)
    assert u.shape == v.shape == (11, 3)
    value = nn.CosineEmbeddingLoss(margin=0.1)((u, v), SIGNS)[0]
    assert trainer.evaluate(PAIRS, SIGNS, batch_size=4)["loss"] == pytest.approx(float(value))


def test_a_model_of_two_outputs_trains_captured() -> None:
    if why := why_unavailable("torch"):
        pytest.skip(why)
    found = []
    for capture in (False, True):
        with emulated_graphs(), xbp.use_backend("torch"):
            trainer = siamese(capture=capture)
            found.append(trainer.fit(PAIRS, SIGNS, epochs=2, batch_size=3).records)
    assert found[0] == found[1]


def test_what_a_loss_of_two_outputs_returns_is_checked() -> None:
    trainer = siamese()
    trainer.loss = lambda prediction, target: (0.0, prediction[0])
    with pytest.raises(InputError, match="a gradient for each of 2 outputs, got 1"):
        trainer.fit(PAIRS, SIGNS)
    trainer.loss = lambda prediction, target: (0.0, (prediction[0], prediction[1][:1]))
    with pytest.raises(InputError, match=r"shape \(11, 3\).*got \(1, 3\)"):
        trainer.fit(PAIRS, SIGNS)
