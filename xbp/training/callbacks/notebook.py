"""Curves that grow in a notebook while a model is trained."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

from xbp.training.callbacks.base import Callback, Training
from xbp.training.history import Record
from xbp.training.markup import as_html

SECONDS = 0.5
"""The time between two pictures: a notebook keeps up with no more."""


class NotebookCurves(Callback):
    """The history of a `fit` in its cell: one output, which changes after epochs."""

    first_rank_only = True

    def on_fit_begin(self, trainer: Training) -> None:
        self.place: Any = None
        self.shown = 0.0

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        if perf_counter() - self.shown >= SECONDS:
            self._show(trainer)

    def on_fit_end(self, trainer: Training) -> None:
        self._show(trainer)

    def _show(self, trainer: Training) -> None:
        from IPython.display import HTML, display

        history = trainer.history
        if not history.records:
            return
        status = f"epoch {history.records[-1]['epoch']}/{trainer.last_epoch}"
        picture = HTML(as_html(history.records, history.names(), status))
        if self.place is None:
            self.place = display(picture, display_id=True)
        else:
            self.place.update(picture)
        self.shown = perf_counter()


def in_notebook() -> bool:
    """Whether Python runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None
