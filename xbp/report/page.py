"""The page of a report, from the template ``page.html``."""

from __future__ import annotations

import importlib
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xbp.datasets.labelled import LABELLED_IMAGES
from xbp.errors import DataError, InputError
from xbp.models import GPT, TextClassifier
from xbp.nn import Layer
from xbp.nn.summary import summary
from xbp.report import contents, figures
from xbp.report.figures import FIRST, SECOND, Curve
from xbp.report.language import rows_of
from xbp.report.run import (
    OWN,
    RECORD,
    SAMPLE,
    TEXT,
    TEXTS,
    WEIGHTS,
    Run,
    load_history,
    load_test_set,
    read_file,
)
from xbp.report.texts import Lexicon, load_test_texts, logits_of
from xbp.report.texts import rows_of as rows_of_classifier
from xbp.training import History, load_model
from xbp.training.callbacks.progress import percent
from xbp.training.files import write_text

MOST_CLASSES = 30
"""The most classes whose confusion matrix is legible."""


def check_packages() -> None:
    """Refuse early if a report could not be written.

    Raises
    ------
    InputError
        A package is missing or broken.
    """
    for module in ("jinja2", "matplotlib.figure"):
        try:
            importlib.import_module(module)
        except Exception:
            name = module.partition(".")[0]
            msg = f"a report needs {name}, which cannot be imported; pip install jinja2 matplotlib"
            raise InputError(msg) from None


def write_report(folder: Path, path: Path, *, data_dir: Path | None = None) -> None:
    """Write the page of the run in `folder` to the file `path`.

    Equal folders and test sets give equal pages, byte for byte, on one backend.

    Parameters
    ----------
    folder, path : Path
    data_dir : Path, optional
        The folder of the data set, if it has moved.

    Raises
    ------
    DataError
        The folder belongs to no run, or its test set cannot be found.
    InputError
        A package is missing.
    """
    check_packages()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    run, history = Run.load(folder), load_history(folder)
    model = None if run.data == OWN else load_model(folder / WEIGHTS)
    content = _content(run, history)
    kinds = {TEXT: GPT, TEXTS: TextClassifier}
    if any((run.data == data) != isinstance(model, kind) for data, kind in kinds.items()):
        msg = (
            f"{str(folder / WEIGHTS)!r} holds a {type(model).__name__}, which is not the model of "
            f"the run in {RECORD}; train again"
        )
        raise DataError(msg)
    if model is None:
        content |= _own(run, history)
    elif isinstance(model, GPT):
        content |= _language(run, history, model, read_file(folder, SAMPLE))
    elif isinstance(model, TextClassifier):
        content |= _texts(run, model, folder, data_dir)
    else:
        content |= _classifier(run, model, *load_test_set(run, data_dir))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "share": _share,
        "signed": figures.signed,
        "ink": figures.ink,
        "photograph": figures.photograph,
    }
    text = environment.get_template("page.html").render(**content)
    write_text(path, text)


def _content(run: Run, history: History) -> dict[str, Any]:
    """The variables of the template that all runs have."""
    return {
        "run": run,
        "history": history.records,
        "started": datetime.fromisoformat(run.started),
        "seconds": [0.0] * (len(history) - len(run.seconds)) + run.seconds,
        "curves": _curves(run, history),
        "colours": False,
        "name": str,
        "tested": None,
        "first": None,
        "most_classes": MOST_CLASSES,
        "measured": "test loss, in nats",
        "written": None,
    }


def _language(run: Run, history: History, model: GPT, written: str) -> dict[str, Any]:
    """The variables of the template for a language model."""
    losses = history["val_loss"] if "val_loss" in history.names() else []
    return {
        "samples": "windows",
        "data": "",
        "layers": rows_of(model),
        "result": f"{losses[-1]:.4f}" if losses else "–",
        "written": written,
    }


def _texts(run: Run, model: TextClassifier, folder: Path, data_dir: Path | None) -> dict[str, Any]:
    """The variables of the template for a classifier of texts."""
    lexicon = Lexicon.load(folder, model)
    test = load_test_texts(run, lexicon, data_dir)
    logits = logits_of(model, lexicon, test.texts)
    tested = contents.judged(logits, test.labels, run.classes, test.texts)
    return {
        "samples": "texts",
        "data": "",
        "name": lexicon.name,
        "layers": rows_of_classifier(model, lexicon.length),
        "result": percent(tested.images - tested.wrong, tested.images),
        "tested": tested,
        "confusion": _confusion(tested.matrix),
    }


class SavedLayer(NamedTuple):
    """A row of `Run.layers`, as the template reads a `LayerSummary`."""

    name: str
    kind: str
    sizes: str
    parameters: int


def _own(run: Run, history: History) -> dict[str, Any]:
    """The variables of the template for a run that `Trainer.save` has written."""
    last = history.records[-1]
    name = next(each for each in ("val_accuracy", "val_loss", "loss") if each in last)
    what = {"val_accuracy": "accuracy on validation data", "val_loss": "loss on validation data"}
    value = percent(last[name]) if name == "val_accuracy" else f"{last[name]:.4g}"
    return {
        "samples": "samples",
        "data": "",
        "layers": [SavedLayer(row[0], row[1], row[2], int(row[3])) for row in run.layers],
        "result": value,
        "measured": what.get(name, "loss"),
    }


def _classifier(run: Run, model: Layer, x: NDArray[np.uint8], y: NDArray[Any]) -> dict[str, Any]:
    """The variables of the template for a classifier of images."""
    data = LABELLED_IMAGES[run.data]
    views: dict[str, Any] = {"mirror": run.mirror, "shift": run.shift}
    tested = contents.examine(model, x, y, run.classes, data, **views)
    first = contents.feature_maps(model, x[0], data)
    probabilities = contents.softmax(contents.outputs(model, x[:1], data, **views)[0])
    return {
        "samples": "images",
        "data": data.title,
        "name": data.name,
        "colours": x.ndim == 4,
        "layers": summary(model, x.shape[1:] if x.ndim == 4 else (1, *x.shape[1:])),
        "result": percent(tested.images - tested.wrong, tested.images),
        "tested": tested,
        "confusion": _confusion(tested.matrix),
        "filters": contents.first_filters(model, x.shape[-2:]),
        "first": {"image": x[0], "label": int(y[0]), "maps": first},
        "answers": [
            (int(i), float(probabilities[i]))
            for place, i in enumerate(np.argsort(-probabilities)[:3])
            if place == 0 or probabilities[i] >= 0.0001
        ],
    }


def _share(probability: float) -> str:
    """A share in percent, rounded so that only 0 and 1 appear as 0 % and 100 %."""
    if 0 < probability < 0.00005:
        return "< 0.01 %"
    return "> 99.99 %" if 0.99995 <= probability < 1 else percent(probability)


def _curves(run: Run, history: History) -> list[tuple[str, Any]]:
    """(caption, SVG) of each figure."""
    from markupsafe import Markup

    # A language model learns for one epoch, so its steps say more.
    by_steps = run.data == TEXT
    length, axis = (run.images / run.batch_size, "step") if by_steps else (1, "epoch")

    def points(name: str) -> tuple[list[float], list[float]]:
        # An interrupted epoch has no test.
        found = [(r["epoch"] * length, r[name]) for r in history.records if name in r]
        return [epoch for epoch, _ in found], [value for _, value in found]

    steps, result = run.steps, []
    places = [epoch * length for epoch in steps["epoch"]]
    losses = [
        Curve("training", *points("loss"), FIRST),
        Curve("test", *points("val_loss"), SECOND),
    ]
    if run.knows_all_steps:
        losses[0] = Curve("training", places, steps["loss"], FIRST, marked=False)
    positive = all(y > 0 for line in losses for y in line.y)
    title = "Loss on training and test images over the epochs"
    scale = "log" if positive else "linear"
    result.append(("Loss", figures.curves("loss", title, losses, scale=scale, axis=axis)))
    if not by_steps:
        accuracies = [
            Curve("training", *points("accuracy"), FIRST),
            Curve("test", *points("val_accuracy"), SECOND),
        ]
        title = "Accuracy on training and test images over the epochs"
        result.append(("Accuracy", figures.curves("accuracy", title, accuracies, scale="percent")))
    rate = Curve("learning rate", *points("lr"))
    if run.knows_all_steps:
        rate = Curve("learning rate", places, steps["lr"], marked=False)
    figure = figures.curves("rate", "Learning rate over the epochs", [rate], axis=axis)
    result.append(("Learning rate", figure))
    return [(caption, Markup(svg)) for caption, svg in result]


def _confusion(matrix: NDArray[np.int64]) -> dict[str, Any]:
    """A confusion matrix with shares of rows and columns, and the shade of each cell."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    right, rows, columns = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    pairs = np.argwhere(wrong > 0)
    order = np.argsort(-wrong[tuple(pairs.T)], kind="stable")[:10]
    return {
        "cells": matrix.tolist(),
        "shades": np.rint(75 * np.sqrt(wrong / max(1, wrong.max(initial=0)))).astype(int).tolist(),
        "recall": [percent(*pair) for pair in zip(right.tolist(), rows.tolist(), strict=True)],
        "precision": [
            f"{100 * part / whole:.1f}" if whole else "–"
            for part, whole in zip(right.tolist(), columns.tolist(), strict=True)
        ],
        "pairs": [(int(i), int(j), int(wrong[i, j])) for i, j in pairs[order]],
    }
