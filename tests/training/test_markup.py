"""What a notebook shows of a history."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from xbp import History
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
