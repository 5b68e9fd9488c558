"""What a notebook shows of a history."""

from __future__ import annotations

import math
import sys
import types
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import xbp
from xbp import History, nn, optim
from xbp.training import LiveCurve
from xbp.training.markup import ROWS, TRAINING, VALIDATION

SVG = "{http://www.w3.org/2000/svg}"


def shown(history: History) -> ElementTree.Element:
    return ElementTree.fromstring(history._repr_html_())


def test_curves_of_training_and_validation_lie_in_one_figure_a_quantity() -> None:
    history = History()
    for epoch in range(1, 9):
        record = {"epoch": epoch, "lr": 0.1, "loss": 1 / epoch, "accuracy": 0.5}
        history.records.append(record | {"val_loss": 2 / epoch, "val_accuracy": 0.4})
    history.stopped = "all 8 epochs are done"
    page = shown(history)
    figures = page.findall(f"{SVG}svg")
    assert len(figures) == 2
    for figure in figures:
        lines = figure.findall(f"{SVG}polyline")
        assert [line.get("stroke") for line in lines] == [TRAINING, VALIDATION]
    points = [p.split(",") for p in figures[0].find(f"{SVG}polyline").get("points").split()]  # type: ignore[union-attr]
    heights = [float(y) for _, y in points]
    assert heights == sorted(heights), "a falling loss is drawn downwards: y grows"
    rows = page.findall("table/tbody/tr")
    assert len(rows) == ROWS + 1
    assert "… 3 before" in ElementTree.tostring(rows[0], encoding="unicode")
    assert page.findtext("p") == "all 8 epochs are done"


def test_numbers_that_are_not_finite_are_left_out_of_curves() -> None:
    history = History()
    history.records += [{"epoch": 1, "loss": math.nan}, {"epoch": 2, "loss": 0.5}]
    page = shown(history)
    assert len(page.findall(f"{SVG}svg/{SVG}circle")) == 1
    assert "nan" in "".join(page.itertext())


def test_a_history_without_epochs_and_names_with_markup() -> None:
    assert not shown(History()).findall(f"{SVG}svg")
    history = History()
    history.records.append({"epoch": 1, "loss": 1.0, "<b>&": 2.0})
    assert "<b>&" in "".join(shown(history).itertext())


def test_a_summary_is_a_table_with_the_sum_of_the_parameters() -> None:
    rows = nn.summary(xbp.models.LeNet5(rng=0), (1, 28, 28))
    page = ElementTree.fromstring(rows._repr_html_())
    cells = [[cell.text or "" for cell in row] for row in page.iter("tr")]
    assert len(cells) == len(rows) + 2
    assert cells[1] == ["0", "Conv2d", "6 × 28 × 28", "156"]
    assert cells[-1][-1] == "61,706"
    assert isinstance(rows, list)


def fitted() -> History:
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    model = nn.Linear(3, 1, rng=0)
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))
    return trainer.fit(x, x[:, :1], epochs=3, batch_size=4, callbacks=[LiveCurve()])


def test_a_live_curve_is_drawn_once_and_then_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Handle:
        def update(self, history: History) -> None:
            seen.append(("update", len(history)))

    def display(history: History, *, display_id: bool) -> Handle:
        assert display_id
        seen.append(("display", len(history)))
        return Handle()

    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=None)
    shown: Any = types.ModuleType("IPython.display")
    shown.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    monkeypatch.setattr("xbp.training.callbacks.live.SECONDS", 0)
    fitted()
    assert seen == [("display", 1), ("update", 2), ("update", 3)]
    ipython.get_ipython = lambda: types.SimpleNamespace()  # a shell in a terminal
    fitted()
    ipython.get_ipython = lambda: None
    fitted()
    assert len(seen) == 3


def test_a_live_curve_does_nothing_in_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    fitted()
    assert capsys.readouterr().out == ""
