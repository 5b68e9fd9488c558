"""Curves in a notebook that are drawn again after each epoch."""

from __future__ import annotations

import sys
from typing import Any

from xbp.training.callbacks.base import Callback, Training
from xbp.training.history import Record


class LiveCurve(Callback):
    """The curves of the `History` in the output of a notebook's cell, drawn again after each epoch.

    Anywhere else, as in a terminal, it does nothing. IPython is not imported: a notebook has it.

    Examples
    --------
    >>> from xbp.training import LiveCurve
    >>> callback = LiveCurve()  # trainer.fit(x, y, epochs=20, callbacks=[LiveCurve()])
    """

    call_order = 1  # after those that put numbers into the record
    first_rank_only = True

    def on_fit_begin(self, trainer: Training) -> None:
        self._handle: Any = None

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        if self._handle is not None:
            self._handle.update(trainer.history)
        elif in_notebook():
            self._handle = sys.modules["IPython.display"].display(trainer.history, display_id=True)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel") and "IPython.display" in sys.modules
