"""The record of a run, and the curves within its epochs."""

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.report.run import Run, StepCurve, load_history
from xbp.training import History


class TestStepCurve:
    def fit(self, curve, epochs=2, schedule=0.1):
        x = np.arange(20.0).reshape(10, 2)
        model = nn.Linear(2, 1, dtype="float64", rng=0)
        optimizer = optim.SGD(model.parameters(), lr=schedule)
        trainer = xbp.Trainer(model, nn.MSELoss(), optimizer, rng=0)
        return trainer.fit(x / 20, x[:, :1], epochs=epochs, batch_size=2, callbacks=[curve])

    def test_every_step_where_there_are_few(self):
        curve, rates = StepCurve(), []
        history = self.fit(curve, schedule=lambda step: rates.append(step) or 0.1 / (1 + step))
        assert np.allclose(curve.curves["epoch"], np.arange(10) / 5 + 0.1)
        assert np.allclose(curve.curves["lr"], 0.1 / (1 + np.arange(10)))
        means = np.reshape(curve.curves["loss"], (2, 5)).mean(axis=1)
        assert np.allclose(means, history["loss"])

    def test_windows(self):
        every, curve = StepCurve(), StepCurve(points=4)
        self.fit(every)
        self.fit(curve)
        parts = [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]
        for name in ("epoch", "loss", "lr"):
            expected = [np.mean([every.curves[name][i] for i in part]) for part in parts]
            assert np.allclose(curve.curves[name], expected)


def test_a_record_comes_back(trained):
    run = Run.load(trained.folder)
    assert (run.title, run.classes, run.backend) == ("LeNet-5", 10, "numpy (cpu)")
    assert (run.images, run.test_images, run.epochs, run.batch_size) == (4000, 500, 3, 50)
    assert run.data_dir == str(trained.data)
    assert len(run.seconds) == 3
    assert run.stopped == "all 3 epochs done"
    assert len(run.steps["loss"]) == 150


def test_a_history_comes_back(tmp_path):
    history = History()
    history.records = [
        {"epoch": 1, "lr": 0.1, "loss": 1 / 3, "val_loss": 2e-9},
        {"epoch": 2, "lr": 0.1, "loss": 0.25},
    ]
    history.to_csv(tmp_path / "history.csv")
    assert load_history(tmp_path).records == history.records


def test_too_large_a_record(tmp_path):
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(10**9)  # a sparse file
    with pytest.raises(xbp.errors.DataError, match="larger than"):
        Run.load(tmp_path)
