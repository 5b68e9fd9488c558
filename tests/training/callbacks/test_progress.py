"""What `fit` shows of its progress, and where."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.training import LiveCurve, ProgressBar
from xbp.training.callbacks import live, progress

X, Y = np.eye(4, dtype="float32"), np.arange(4) % 2


def fit(epochs: int = 3, **options: Any) -> xbp.History:
    model = nn.Sequential(nn.Linear(4, 2, rng=0))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=0)
    return trainer.fit(X, Y, epochs, validation_data=(X, Y), **options)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A notebook's kernel: how many epochs each drawing in the single output of a `fit` has."""
    epochs: list[int] = []

    def display(history: xbp.History, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        assert not epochs, "a second output"
        epochs.append(len(history))
        return SimpleNamespace(update=lambda history: epochs.append(len(history)))

    module, displays = ModuleType("IPython"), ModuleType("IPython.display")
    vars(module)["get_ipython"] = lambda: SimpleNamespace(kernel=object())
    vars(displays)["display"] = display
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    monkeypatch.setattr(live, "SECONDS", 0)
    return epochs


@pytest.mark.parametrize("options", [{}, {"verbose": True}, {"callbacks": [LiveCurve()]}])
def test_in_a_notebook_curves_grow_in_one_output(
    drawn: list[int], options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(**options)
    assert drawn == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_drawings_that_come_too_fast_are_left_out_but_for_the_last(
    drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SECONDS", 1e9)
    fit(epochs=5)
    assert drawn == [1, 5]


def test_a_quiet_fit_shows_nothing_in_a_notebook(drawn: list[int]) -> None:
    fit(verbose=False)
    assert not drawn


@pytest.mark.parametrize("kernel", [None, "no IPython"])
@pytest.mark.usefixtures("drawn")
def test_elsewhere_a_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch, kernel: object) -> None:
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    if kernel is None:  # the IPython of a terminal
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", SimpleNamespace)
    else:
        monkeypatch.delitem(sys.modules, "IPython")
    assert progress.progress(None) is None
    assert isinstance(progress.progress(True), ProgressBar)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    assert isinstance(progress.progress(None), ProgressBar)
    assert progress.progress(False) is None


def test_validation_data_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    fit(verbose=True)
    lines = capsys.readouterr().out
    assert "epoch 3/3: loss " in lines
    assert "(validation " in lines
    assert "test" not in lines
