"""The exponential moving average of weights: its formula, in a training, by hand, resumed."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng

import xbp
from xbp import nn, optim
from xbp.errors import DataError, InputError
from xbp.testing import assert_no_host_sync, emulated_graphs
from xbp.training import (
    Callback,
    Checkpoints,
    EarlyStopping,
    ExponentialMovingAverage,
    LambdaCallback,
    ModelCheckpoint,
    load_weights,
)
from xbp.training.capture import Phase, recordings_of


class Counted(nn.Layer):
    """The identity, with a buffer that counts steps, like a running statistic."""

    def __init__(self) -> None:
        self.steps = nn.Buffer(np.asarray(0.0, np.float32))
        self.fixed = nn.Parameter(np.ones(1, np.float32), trainable=False)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        def backward(dy: Any) -> Any:
            if training:
                self.steps.data[...] = self.steps.data + 1
            return dy

        return x, backward


def network(dtype: str = "float32") -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 4, dtype=dtype, rng=0), nn.Tanh(), nn.Dropout(0.2), Counted(),
        nn.Linear(4, 2, dtype=dtype, rng=1),
    )  # fmt: skip


def data(n: int = 9) -> tuple[Any, Any]:
    return default_rng(0).normal(size=(n, 3)).astype("float32"), np.arange(n) % 2


def trainer(**options: Any) -> xbp.Trainer:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=7, **options)


def in_bits(state: dict[str, Any]) -> dict[str, Any]:
    return {name: (np.shape(a), xbp.to_numpy(a).tobytes()) for name, a in state.items()}


def averages(ema: ExponentialMovingAverage) -> dict[str, Any]:
    return {k: v for k, v in ema.state_dict().items() if k.startswith("average.")}


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("backend", xbp.available_backends())
def test_the_formula(backend: str, decay: float) -> None:
    """θ̄ is a sum with weights β^(n-k) (1 - β), except β^n for the first term."""
    with xbp.use_backend(backend):
        model, ema = nn.Linear(2, 3, dtype="float64"), ExponentialMovingAverage(decay)
        seen = [default_rng(step).normal(size=(3, 2)) for step in range(6)]
        for weight in seen:
            model.weight.assign(weight)
            ema.update(model)
        shares = [decay ** (5 - k) * (1 - decay if k else 1) for k in range(6)]
        expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
        ema.copy_to(model)
        # Two roundings a step.
        np.testing.assert_allclose(
            xbp.to_numpy(model.weight.data), expected, rtol=1e-14, atol=1e-15
        )
    assert ema.updates == 6


def test_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    theirs = torch.nn.Linear(3, 2, dtype=torch.float64)
    model, ema = nn.Linear(3, 2, dtype="float64", rng=0), ExponentialMovingAverage(0.8)
    mean = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for step in range(100):
        for name, p in model.named_parameters():
            p.assign(default_rng(step).normal(size=p.shape))
            getattr(theirs, name).data = torch.asarray(p.data.copy())
        ema.update(model)
        mean.update_parameters(theirs)
    ema.copy_to(model)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.data, getattr(mean.module, name).detach(), rtol=1e-12)


def test_an_update_does_not_wait() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model, ema = network(), ExponentialMovingAverage(0.9)
        with assert_no_host_sync():
            for _ in range(3):
                ema.update(model)


# --- by hand --------------------------------------------------------------------------------------


def test_within_applied_the_model_has_the_average() -> None:
    model, ema = nn.PReLU(dtype="float64"), ExponentialMovingAverage(0.5)
    array = model.weight.data
    with ema.applied(model):
        assert model.weight.data.tolist() == [0.25]  # its own weights before the first update
    for weight in (1.0, 3.0):
        model.weight.assign(np.array([weight]))
        ema.update(model)

    def within() -> None:
        with ema.applied(model):
            assert model.weight.data.tolist() == [2.0]
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        within()
    assert model.weight.data.tolist() == [3.0]
    assert model.weight.data is array
    ema.copy_to(model)
    assert model.weight.data.tolist() == [2.0]


def test_what_a_layer_keeps_is_the_models() -> None:
    model, ema = network(), ExponentialMovingAverage(0.5)
    counted = model.layers[3]
    for steps in (1.0, 2.0, 3.0):
        counted.steps.assign(np.asarray(steps))  # type: ignore[attr-defined]
        counted.fixed.assign(np.asarray([steps]))  # type: ignore[attr-defined]
        ema.update(model)
    with ema.applied(model):
        assert float(counted.steps.data) == counted.fixed.data.item() == 3.0  # type: ignore[attr-defined]
    assert len(averages(ema)) == 4


def test_an_average_moves_with_its_model() -> None:
    pytest.importorskip("array_api_strict")
    model, ema = nn.Linear(2, 2, rng=0), ExponentialMovingAverage(0.5)
    ema.update(model)
    expected = {name: a.copy() for name, a in model.state_dict().items()}
    model.to("array_api_strict")
    ema.update(model)
    ema.copy_to(model)
    for name, array in model.state_dict().items():
        assert np.array_equal(array, expected[name])


# --- in a training --------------------------------------------------------------------------------


def test_validation_is_that_of_the_average_and_so_is_the_model_in_the_end() -> None:
    ema, one, held = ExponentialMovingAverage(0.8), trainer(), data(20)
    history = one.fit(*data(), epochs=3, batch_size=2, validation_data=held, callbacks=[ema])
    assert ema.updates == 15
    assert one.evaluate(*held)["loss"] == history["val_loss"][-1]

    kept, other = ExponentialMovingAverage(0.8, apply_at_end=False), trainer()
    other.fit(*data(), epochs=3, batch_size=2, validation_data=held, callbacks=[kept])
    plain = trainer()
    without = plain.fit(*data(), epochs=3, batch_size=2, validation_data=held)
    assert in_bits(other.model.state_dict()) == in_bits(plain.model.state_dict())
    assert without["loss"] == history["loss"]
    assert without["val_loss"] != history["val_loss"]
    with kept.applied(other.model):
        assert in_bits(other.model.state_dict()) == in_bits(one.model.state_dict())


class Around(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    @contextmanager
    def around_validation(self, trainer: Any) -> Any:
        self.calls.append("begin")
        try:
            yield
        finally:
            self.calls.append("end")


def test_callbacks_stand_around_each_validation() -> None:
    around = Around()
    trainer().fit(*data(), epochs=2, batch_size=4, validation_data=data(), callbacks=[around])
    assert around.calls == ["begin", "end"] * 2


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_captured(backend: str) -> None:
    if backend not in xbp.available_backends():
        pytest.skip(f"no {backend} here")
    found = []
    with xbp.use_backend(backend), emulated_graphs():
        for capture in (False, True):
            model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Dropout(0.2), nn.Linear(4, 2, rng=1))
            optimizer = optim.Adam(model.parameters(), lr=0.1)
            one = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=7, capture=capture)
            ema = ExponentialMovingAverage(0.8, apply_at_end=False)
            one.fit(*data(), 3, batch_size=2, validation_data=data(), callbacks=[ema])
            state = {**model.state_dict(), **averages(ema)}
            found.append((in_bits(state), [str(r) for r in one.history.records]))
        recordings = recordings_of(one._stepper)
        assert recordings is not None
        assert recordings.by_size[2].phase is Phase.REPLAY
    assert found[0] == found[1]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, stop_after: int = 0, resume: bool = False, decay: float = 0.8) -> Any:
        def stop(training: Any, number: int) -> None:
            if training.optimizer.steps == stop_after:
                raise KeyboardInterrupt

        one, ema = trainer(), ExponentialMovingAverage(decay)
        callbacks = [ema, Checkpoints(folder, every=1), LambdaCallback(on_step_end=stop)]
        fit = {"batch_size": 2, "validation_data": data(20), "callbacks": callbacks}
        one.fit(*data(), 3, resume=folder if resume else None, **fit)
        assert ema.updates == 15
        return in_bits({**one.model.state_dict(), **averages(ema)}), one.history.records

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        run(broken, stop_after=8)
    with pytest.raises(DataError, match=r"the average has the decay 0\.8, where this one has 0\.9"):
        run(broken, resume=True, decay=0.9)
    assert run(broken, resume=True) == run(tmp_path / "whole")


def test_a_second_fit_goes_on_with_the_average() -> None:
    ema, one = ExponentialMovingAverage(0.8), trainer()
    for _ in range(2):
        one.fit(*data(), epochs=1, batch_size=2, callbacks=[ema])
    assert ema.updates == 10


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [-0.1, 1.1, None, "0.9", float("nan")])
def test_a_decay_out_of_range_is_one_sentence(decay: Any) -> None:
    with pytest.raises(InputError, match=r"^decay must be a finite number from 0 to 1, got"):
        ExponentialMovingAverage(decay)


def test_another_model_is_one_sentence() -> None:
    ema = ExponentialMovingAverage(0.9)
    ema.update(nn.Linear(2, 3, rng=0))
    for other in (nn.Linear(2, 4, rng=0), nn.PReLU(), nn.Linear(2, 3, dtype="float64", rng=0)):
        for take in (ema.update, ema.copy_to):
            with pytest.raises(InputError, match=r"^this model is not the one of the average: '"):
                take(other)
    one = trainer()
    with pytest.raises(InputError, match="this model is not the one of the average"):
        one.fit(*data(), callbacks=[ema])
    with pytest.raises(InputError, match=r"^an average is that of a model, .* got a list of 2$"):
        ema.update(nn.Linear(2, 3).parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "state",
    [
        {"updates": 3, "decay": 0.9},
        {"updates": 0, "decay": 0.9, "average.weight": np.zeros(2)},
        {"updates": 3, "decay": 0.9, "average.weight": "zeros"},
        {"updates": -1, "decay": 0.9},
        {"updates": 0, "decay": "slow"},
    ],
)
def test_a_malformed_state_is_refused(state: dict[str, Any]) -> None:
    ema = ExponentialMovingAverage(0.9)
    with pytest.raises(ValueError, match=r"average|updates|decay"):
        ema.load_state_dict(state)
    assert ema.updates == 0


# --- what is kept is what was validated -----------------------------------------------------------


class Rising(Callback):
    """A monitored value of the validation, which is best in a given epoch."""

    def __init__(self, best: int) -> None:
        self.best = best

    def on_epoch_end(self, trainer: Any, epoch: int, record: Any) -> None:
        record["val_own"] = -abs(epoch - self.best)


@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_restores_the_averaged_weights_of_the_best_epoch(first: bool) -> None:
    x, y = data()
    ema, seen = ExponentialMovingAverage(0.5), []
    stopping = EarlyStopping("val_own", patience=9, mode="max")
    keep = LambdaCallback(on_epoch_end=lambda t, e, r: seen.append(averages_of(ema, t.model)))
    others = [ema, stopping] if first else [stopping, ema]
    made = trainer()
    made.fit(x, y, 4, 3, (x, y), [Rising(2), keep, *others], verbose=False)
    for name, value in made.model.state_dict().items():
        if "steps" not in name:
            np.testing.assert_array_equal(value, seen[1][name], err_msg=name)


def averages_of(ema: ExponentialMovingAverage, model: nn.Layer) -> dict[str, Any]:
    with ema.applied(model):
        return {name: np.copy(a) for name, a in model.state_dict().items()}


def test_early_stopping_by_the_training_loss_restores_the_models_own_weights() -> None:
    x, y = data()
    ema, own = ExponentialMovingAverage(0.5, apply_at_end=False), []
    stopping = EarlyStopping("loss", patience=9)
    keep = LambdaCallback(on_epoch_end=lambda t, e, r: own.append(t.model.state_dict()))
    made = trainer()
    history = made.fit(x, y, 3, 3, (x, y), [keep, ema, stopping], verbose=False)
    best = int(np.argmin(history["loss"]))
    assert in_bits(made.model.state_dict()) == in_bits(own[best])


def test_the_best_model_is_written_as_it_was_validated(tmp_path: Path) -> None:
    x, y = data()
    ema, seen, path = ExponentialMovingAverage(0.5), [], tmp_path / "best.safetensors"
    best = ModelCheckpoint(path, "val_own", "max", save_best_only=True, save_weights_only=True)
    keep = LambdaCallback(on_epoch_end=lambda t, e, r: seen.append(averages_of(ema, t.model)))
    trainer().fit(x, y, 3, 3, (x, y), [Rising(2), keep, best, ema], verbose=False)
    found = load_weights(path)
    for name, value in seen[1].items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
