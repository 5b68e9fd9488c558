"""Training in reduced precision: accuracy, gradients that need a scale, parts, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import models, nn, optim
from xbp.errors import InputError, NonFiniteError
from xbp.primitives.reduced import PRECISIONS
from xbp.primitives.rounding import FORMATS
from xbp.training import Checkpoints, LambdaCallback, scaling

REDUCED = list(FORMATS)


def test_lenet5_learns_in_each() -> None:
    """2,000 images, three epochs: about 84 % of 1,000 others, whose standard error is 1.2 %."""
    (x, y), (x_test, y_test) = xbp.datasets.load_mnist()
    x, x_test = (xbp.datasets.standardize_images(i) for i in (x[:2000], x_test[:1000]))
    found = {}
    for name in PRECISIONS:
        model = models.LeNet5(rng=0)
        optimizer = optim.Adam(model.parameters(), 0.002)
        trainer = xbp.Trainer(
            model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0, precision=name
        )
        trainer.fit(x, y[:2000], epochs=3, batch_size=50, verbose=False)
        found[name] = trainer.evaluate(x_test, y_test[:1000])["accuracy"]
    assert min(found.values()) > 0.9, found
    assert max(found.values()) - min(found.values()) < 0.03, found


def tiny(precision: str, lr: float = 0.1, loss: Any = None) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(6, 5, rng=0), nn.Tanh(), nn.Linear(5, 2, rng=1))
    optimizer = optim.SGD(model.parameters(), lr, momentum=0.9)
    return xbp.Trainer(model, loss or nn.MSELoss(), optimizer, rng=0, precision=precision)


def batch(rows: int = 24) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 6)).astype("f4"), rng.normal(size=(rows, 2)).astype("f4")


def gradients(trainer: xbp.Trainer, monkeypatch: pytest.MonkeyPatch, **fit: Any) -> list[Any]:
    """Those of the first step, as its optimizer sees them."""
    seen: list[Any] = []
    step = trainer.optimizer.step

    def watched(*arguments: Any) -> None:
        seen.append([p.grad.copy() for p in trainer.optimizer.parameters])
        step(*arguments)

    monkeypatch.setattr(trainer.optimizer, "step", watched)
    trainer.capture = False
    trainer.fit(*batch(), epochs=1, verbose=False, **fit)
    return list(seen[0])


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_small_gradients_need_a_scale(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of 1e-9 are below half of float16's least number, 2^-24."""

    class Faint(nn.MSELoss):
        def __call__(self, prediction: Any, target: Any) -> Any:
            value, gradient = super().__call__(prediction, target)
            return 1e-7 * value, 1e-7 * gradient

    trainer = tiny("float16", loss=Faint())
    assert trainer.scaling is not None
    trainer.scaling.load_state_dict({"scale": scale, "good_steps": 0})
    found = gradients(trainer, monkeypatch, batch_size=24)
    exact = gradients(tiny("float32", loss=Faint()), monkeypatch, batch_size=24)
    for one, other in zip(found, exact, strict=True):
        if other.ndim == 2:
            near = np.max(abs(one - other)) <= 0.01 * np.max(abs(other))
            assert near == (scale > 1)


@pytest.mark.parametrize("name", REDUCED)
def test_parts_of_a_batch_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of parts, unrounded sums, are those of the batch to the rounding of factors.

    δ of a part is that of the batch times 2, exactly; so the same factors are rounded.
    """
    parts = gradients(tiny(name), monkeypatch, batch_size=12, accumulate=2)
    whole = gradients(tiny(name), monkeypatch, batch_size=24)
    for one, other in zip(parts, whole, strict=True):
        bound = 32 * FORMATS[name].unit * np.max(abs(other))
        assert np.max(abs(one - other)) <= bound


@pytest.mark.parametrize("name", REDUCED)
def test_a_resumed_run_is_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, stop: int | None, resume: Path | None) -> xbp.Trainer:
        trainer = tiny(name)
        if trainer.scaling is not None:
            trainer.scaling.load_state_dict({"scale": 2.0**10, "good_steps": 1993})

        def end(trainer: Any, _: int) -> None:
            if trainer.optimizer.steps == stop:
                trainer.stop("enough")

        trainer.fit(
            *batch(),
            epochs,
            4,
            callbacks=[LambdaCallback(on_step_end=end), Checkpoints(folder, 1)],
            resume=resume,
            verbose=False,
        )
        return trainer

    whole = run(tmp_path / "whole", 3, None, None)
    run(tmp_path / "part", 3, 8, None)  # in the second epoch, after the scale has grown
    resumed = run(tmp_path / "part", 3, None, tmp_path / "part")
    assert resumed.loss_scale == whole.loss_scale
    if name == "float16":
        assert whole.loss_scale == 2.0**11
        assert whole.scaling.state_dict() == resumed.scaling.state_dict()  # type: ignore[union-attr]
    assert resumed.history["loss"] == whole.history["loss"]
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        np.testing.assert_array_equal(one.data, other.data)
    with pytest.raises(InputError, match="the precision is"):
        tiny("float32").fit(*batch(), 3, 4, resume=tmp_path / "part", verbose=False)


def test_steps_alone_are_reduced() -> None:
    """Parameters, evaluation and prediction keep float32; so do steps in a block of another one."""
    x, y = batch()
    trainer = tiny("bfloat16")
    with xbp.precision("float16"):
        trainer.fit(x, y, batch_size=24, verbose=False)
    other = tiny("bfloat16")
    other.fit(x, y, batch_size=24, verbose=False)
    for one, two in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        np.testing.assert_array_equal(one.data, two.data)
        assert one.data.dtype == np.float32
    np.testing.assert_array_equal(trainer.predict(x), trainer.model(x))


def test_a_loss_that_is_not_finite_is_an_error_as_ever() -> None:
    """An activation beyond float16 is no matter of the scale."""
    x, y = batch()
    with pytest.raises(NonFiniteError):
        tiny("float16").fit(1e6 * x, y, batch_size=24, verbose=False)


def test_a_scale_stays_positive() -> None:
    trainer = tiny("float16")
    assert trainer.scaling is not None
    trainer.scaling.load_state_dict({"scale": scaling.LEAST, "good_steps": 0})
    x, _ = batch()
    before = [p.data.copy() for p in trainer.model.parameters()]
    for parameter in trainer.model.parameters():
        parameter.add_grad(np.full(parameter.shape, np.nan, "f4"))
    trainer.scaling.place(x)
    trainer.scaling.step(trainer.optimizer, trainer.optimizer.step)
    assert trainer.loss_scale == scaling.LEAST
    for parameter, old in zip(trainer.model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.data, old)


def test_without_float16_there_is_no_scale() -> None:
    assert [tiny(name).loss_scale for name in PRECISIONS] == [1.0, 1.0, 2.0**16, 1.0]


def test_a_model_without_gradients_makes_its_step() -> None:
    trainer = tiny("float16")
    for parameter in trainer.model.parameters():
        parameter.trainable = False
    trainer.step(*batch())
    assert trainer.optimizer.steps == 1
