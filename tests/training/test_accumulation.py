"""Accumulated gradients: those of several batches make the step of one large batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng

import xbp
from xbp import nn, optim
from xbp.data import Arrays
from xbp.errors import InputError, NonFiniteError
from xbp.random import RandomStream
from xbp.testing import assert_no_host_sync, emulated_graphs
from xbp.training import Checkpoints, LambdaCallback
from xbp.training.accumulation import accumulated
from xbp.training.capture import Phase, recordings_of
from xbp.training.results import CheckedLoss

SAMPLES, BATCH, TIMES = 23, 2, 4  # steps of 8, 8 and 7 samples; the last part has one


def absolute(prediction: Any, target: Any) -> Any:
    """A user's own loss: a mean over the samples."""
    n = prediction.shape[0]
    d = prediction - target
    return (d * d).sum() / n, 2 * d / n


LOSSES: dict[str, Callable[[], Any]] = {
    "mean": nn.CrossEntropyLoss,
    "weights and a label left out": lambda: nn.CrossEntropyLoss(
        weight=[0.05, 0.2, 0.02],
        ignore_index=1,  # less than 1 in all
    ),
    "smoothed": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    "mean of entries": nn.MSELoss,
    "sum": lambda: nn.MSELoss("sum"),
    "batchmean": lambda: nn.MSELoss("batchmean"),
    "function": lambda: absolute,
}


def network(dropout: float = 0.0, dtype: str = "float64") -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 5, dtype=dtype, rng=0), nn.Tanh(), nn.Dropout(dropout),
        nn.Linear(5, 3, dtype=dtype, rng=1),
    )  # fmt: skip


def data(name: str = "mean", dtype: str = "float64") -> tuple[Any, Any]:
    rng = default_rng(0)
    x, labels = rng.normal(size=(SAMPLES, 3)).astype(dtype), np.arange(SAMPLES) * 7 % 3
    classes = name in ("mean", "weights and a label left out", "smoothed")
    return x, labels if classes else rng.normal(size=(SAMPLES, 3)).astype(dtype)


def trainer(
    name: str = "mean", dropout: float = 0.0, dtype: str = "float64", **options: Any
) -> xbp.Trainer:
    model = network(dropout, dtype)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = data(name)[1].ndim == 1
    metrics = ["accuracy"] if labels and "weights" not in name else []
    return xbp.Trainer(model, LOSSES[name](), optimizer, metrics, rng=7, **options)


def outcome(one: xbp.Trainer) -> Any:
    state = {**one.model.state_dict(), **one.optimizer.state_dict()}
    bits = {name: (np.shape(a), np.asarray(a).tobytes()) for name, a in state.items()}
    return bits, [{k: str(v) for k, v in r.items()} for r in one.history.records]


@pytest.mark.parametrize("name", LOSSES)
def test_parts_make_the_step_of_the_whole(name: str) -> None:
    """Equal to a few roundings of float64 over nine steps, also with a smaller last part."""
    parts, whole = trainer(name), trainer(name)
    parts.fit(*data(name), epochs=3, batch_size=BATCH, accumulate=TIMES)
    whole.fit(*data(name), epochs=3, batch_size=BATCH * TIMES)
    assert parts.optimizer.steps == whole.optimizer.steps == 9
    for a, b in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-12, atol=1e-14)
    for a, b in zip(parts.history.records, whole.history.records, strict=True):
        assert a == pytest.approx(b, rel=1e-12)


def test_other_weights_would_be_seen() -> None:
    """Equal weights of all parts would change the last step."""
    parts, whole = trainer(), trainer()
    x, y = (array[:7] for array in data())
    parts.fit(x, y, epochs=1, batch_size=4, accumulate=2)
    whole.fit(x, y, epochs=1, batch_size=7)
    order = xbp.random.permutation(7, 0, 7)
    alike = trainer()
    for rows in (order[:4], order[4:]):
        prediction, backward = alike.model.forward(x[rows], training=True)
        backward(alike.loss(prediction, y[rows])[1] / 2)
    alike.optimizer.step()
    a, b, c = (one.model.state_dict()["0.weight"] for one in (parts, whole, alike))
    assert np.abs(a - b).max() < 1e-15
    assert np.abs(c - b).max() > 1e-4


def test_where_nothing_counts_nothing_moves() -> None:
    """One label in eight counts, so one step has gradients from one part, and one from none."""
    models = network(), network()
    x, y = data()[0][:8], np.array([1, 1, 1, 2, 1, 1, 1, 1])
    moved: list[Any] = []
    for model, accumulate in zip(models, (2, 1), strict=True):
        loss = nn.CrossEntropyLoss(ignore_index=1)
        one = xbp.Trainer(model, loss, optim.SGD(model.parameters(), lr=0.1), rng=0)
        keep = LambdaCallback(
            on_step_end=lambda t, k: moved.append(t.model.state_dict()["0.weight"])
        )
        one.fit(x, y, batch_size=4 // accumulate, accumulate=accumulate, callbacks=[keep])
    np.testing.assert_allclose(moved[:2], moved[2:], rtol=1e-14)  # a rounding or two
    initial = network().state_dict()["0.weight"]
    still = [np.array_equal(*pair) for pair in ((initial, moved[0]), (moved[0], moved[1]))]
    assert sum(still) == 1


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "function"])
@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_captured(backend: str, name: str) -> None:
    if backend not in xbp.available_backends():
        pytest.skip(f"no {backend} here")
    found = []
    with xbp.use_backend(backend), emulated_graphs():
        for capture in (False, True):
            one = trainer(name, dropout=0.3, dtype="float32", capture=capture)
            one.fit(*data(name, "float32"), epochs=2, batch_size=BATCH, accumulate=TIMES)
            first = outcome(one)
            if capture:
                recordings = recordings_of(one._stepper)
                assert recordings is not None
                assert recordings.by_size[BATCH * TIMES].phase is Phase.REPLAY
            # Steps of equal size with other masks need another recording.
            one.fit(*data(name, "float32"), epochs=2, batch_size=BATCH * TIMES)
            found.append((first, outcome(one)))
    assert found[0] == found[1]


def test_no_waits() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        one = trainer("weights and a label left out", dropout=0.3)
        one.fit(*data(), batch_size=BATCH, accumulate=TIMES)
        x, y = (xbp.asarray(array) for array in data())
        with assert_no_host_sync():
            accumulated(one, CheckedLoss(one.loss), x, y, RandomStream(0), BATCH)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["mean of entries", "sum", "mean", "weights and a label left out"])
def test_predictions_and_the_value_are_those_of_the_whole(name: str, dtype: str) -> None:
    one, (x, y) = trainer(name, dtype=dtype), data(name, dtype)
    loss = CheckedLoss(one.loss)
    expected = one.model(x)
    prediction, value, finite = accumulated(one, loss, x, y, RandomStream(0), BATCH)
    assert finite and prediction.dtype == value.dtype == dtype
    # A product of more rows may be summed up in another order.
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(prediction, expected, rtol=8 * eps, atol=8 * eps)
    assert value == pytest.approx(float(loss(expected, y)[0]), rel=SAMPLES * eps)
    x[3 * BATCH] = np.inf  # in the fourth part
    with np.errstate(invalid="ignore"):
        parts, value, finite = accumulated(one, loss, x, y, RandomStream(0), BATCH)
    done = slice(3 * BATCH)
    assert np.array_equal(parts[done], prediction[done]) and parts.dtype == value.dtype == dtype
    assert not finite and np.isnan(value)


def test_a_denominator_of_another_dtype_leaves_the_gradients_theirs() -> None:
    class Own(nn.MSELoss):
        def denominator(self, prediction: Any, target: Any, weight: Any = None) -> Any:
            return np.asarray(float(len(target)))

    one, other = (trainer("mean of entries", dtype="float32") for _ in range(2))
    x, y = data("mean of entries", "float32")
    one.loss = Own()
    for each in (one, other):
        accumulated(each, CheckedLoss(each.loss), x, y, RandomStream(0), BATCH)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert p.grad.dtype == "float32"
        np.testing.assert_allclose(p.grad, q.grad, rtol=1e-5, atol=1e-6)  # sums of 23 in float32


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, stop_after: int = 0, resume: bool = False, **options: Any) -> Any:
        def stop(training: Any, number: int) -> None:
            if training.optimizer.steps == stop_after:
                raise KeyboardInterrupt

        one = trainer(dropout=0.3)
        callbacks = [Checkpoints(folder, every=1), LambdaCallback(on_step_end=stop)]
        options = {"batch_size": BATCH, "accumulate": TIMES, **options}
        one.fit(*data(), 3, callbacks=callbacks, resume=folder if resume else None, **options)
        return outcome(one)

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        run(broken, stop_after=5)
    with pytest.raises(InputError, match="batch_size is 2, where it was 8"):
        run(broken, resume=True, accumulate=1)
    with pytest.raises(InputError, match="the batch_size that is accumulated is 4, where it was 2"):
        run(broken, resume=True, batch_size=4, accumulate=2)
    with pytest.raises(InputError, match="the batch_size that is accumulated is not part of both"):
        run(broken, resume=True, batch_size=8, accumulate=1)
    assert run(broken, resume=True) == run(tmp_path / "whole")


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was() -> None:
    one = trainer("mean of entries")
    x, y = data("mean of entries")
    y[11] = np.nan
    seen: list[dict[str, Any]] = []
    keep = LambdaCallback(
        on_step_end=lambda training, step: seen.append(training.model.state_dict())
    )
    before = one.model.state_dict()
    with pytest.raises(NonFiniteError, match=r"the target: check the data, first y\[11\]"):
        one.fit(x, y, epochs=1, batch_size=BATCH, accumulate=TIMES, callbacks=[keep])
    last = seen[-1] if seen else before
    assert all(np.array_equal(last[name], a) for name, a in one.model.state_dict().items())
    assert all(p.grad is None for p in one.model.parameters())


def test_a_step_by_hand_is_whole() -> None:
    """Eager steps after a fit with accumulation."""
    one, other = trainer(dropout=0.5), trainer(dropout=0.5)
    one.fit(*data(), batch_size=BATCH, accumulate=TIMES)
    other.model.load_state_dict(one.model.state_dict())
    other.optimizer.load_state_dict(one.optimizer.state_dict())
    for each in (one, other):
        each.step(*data())
    assert outcome(one)[0] == outcome(other)[0]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, None, "2"])
def test_wrong_numbers_are_one_sentence(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^accumulate must be an integer of at least 1, got "):
        trainer().fit(*data(), accumulate=wrong)


def test_a_source_is_accumulated_as_arrays_are_and_an_iterable_is_not() -> None:
    arrays, source = trainer(dropout=0.3), trainer(dropout=0.3)
    arrays.fit(*data(), epochs=2, batch_size=BATCH, accumulate=TIMES)
    source.fit(Arrays(*data()), epochs=2, batch_size=BATCH, accumulate=TIMES)
    assert outcome(arrays) == outcome(source)
    with pytest.raises(InputError, match=r"^accumulate needs arrays or a source, whose batches"):
        trainer().fit([data()], accumulate=2)
