"""What `fit` shows of its progress, and where."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.training.callbacks import notebook, progress

X, Y = np.eye(4, dtype="float32"), np.arange(4) % 2


def fit(epochs: int = 3, **options: Any) -> xbp.History:
    model = nn.Sequential(nn.Linear(4, 2, rng=0))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=0)
    return trainer.fit(X, Y, epochs, validation_data=(X, Y), **options)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A notebook's kernel, as far as xbp looks at it: the pictures of its single output."""
    pictures: list[str] = []

    def display(picture: str, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        assert not pictures, "a second output"
        pictures.append(picture)
        return SimpleNamespace(update=pictures.append)

    module, displays = ModuleType("IPython"), ModuleType("IPython.display")
    vars(module)["get_ipython"] = lambda: SimpleNamespace(kernel=object())
    vars(displays).update(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    monkeypatch.setattr(notebook, "SECONDS", 0)
    return pictures


def test_in_a_notebook_curves_grow_in_one_output(shown: list[str], capsys: Any) -> None:
    fit()
    assert [f"<p>epoch {epoch}/3</p>" in shown[epoch - 1] for epoch in (1, 2, 3)] == [True] * 3
    assert shown[3:] == shown[2:3], "the last picture, once more at the end"
    assert "val_loss" in shown[-1]
    assert "<polyline" in shown[-1]
    assert capsys.readouterr() == ("", "")


def test_pictures_that_come_too_fast_are_left_out(
    shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "SECONDS", 1e9)
    monkeypatch.setattr(notebook, "perf_counter", lambda: 2e9)
    fit(epochs=5)
    assert len(shown) == 2
    assert "<p>epoch 5/5</p>" in shown[-1]


def test_a_quiet_fit_shows_nothing_in_a_notebook(shown: list[str]) -> None:
    fit(verbose=False)
    assert not shown


@pytest.mark.parametrize("kernel", [None, "no IPython"])
def test_elsewhere_a_bar_is_for_terminals(
    shown: list[str], monkeypatch: pytest.MonkeyPatch, kernel: object
) -> None:
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    if kernel is None:  # the IPython of a terminal
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", SimpleNamespace)
    else:
        monkeypatch.delitem(sys.modules, "IPython")
    assert progress.progress(None) is None
    assert isinstance(progress.progress(True), progress.ProgressBar)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    assert isinstance(progress.progress(None), progress.ProgressBar)
    assert progress.progress(False) is None


def test_validation_data_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    fit(verbose=True)
    lines = capsys.readouterr().out
    assert "epoch 3/3: loss " in lines
    assert "(validation " in lines
    assert "test" not in lines
