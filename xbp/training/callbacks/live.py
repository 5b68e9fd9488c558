"""Curves in a notebook that are drawn again after each epoch."""

from __future__ import annotations

import math
import sys
from time import perf_counter
from typing import Any

from xbp.training.callbacks.base import Callback, Training
from xbp.training.history import Record

SECONDS = 0.2
"""The shortest time between two drawings."""


class LiveCurve(Callback):
    """The curves of the `History` in the output of a notebook's cell, drawn again after each epoch.

    In a notebook `fit` has one by itself, unless ``verbose=False``. Anywhere else, as in a
    terminal, it does nothing. IPython is not imported: a notebook has it.

    Examples
    --------
    >>> from xbp.training import LiveCurve
    >>> callback = LiveCurve()  # trainer.fit(x, y, epochs=20, callbacks=[LiveCurve()])
    """

    call_order = 1  # after those that put numbers into the record
    first_rank_only = True

    def on_fit_begin(self, trainer: Training) -> None:
        self._handle: Any = None
        self._drawn, self._when = 0, -math.inf

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        if perf_counter() - self._when >= SECONDS:
            self._draw(trainer)

    def on_fit_end(self, trainer: Training) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Training) -> None:
        epochs = len(trainer.history)
        if epochs == self._drawn:
            return
        if self._handle is not None:
            self._handle.update(trainer.history)
        elif in_notebook():
            self._handle = sys.modules["IPython.display"].display(trainer.history, display_id=True)
        self._drawn, self._when = epochs, perf_counter()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel") and "IPython.display" in sys.modules
