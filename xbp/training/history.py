"""The history of a training, epoch by epoch."""

from __future__ import annotations

import csv
import os
from typing import TypeAlias

from xbp.errors import UnknownNameError
from xbp.training.files.writing import replacing

Record: TypeAlias = "dict[str, float]"
"""One epoch: its number, the learning rate, the loss, and other measured values."""


class History:
    """The records of all epochs of a `fit`.

    Equal seeds give equal records, bit for bit, on one backend with one number of threads.

    Attributes
    ----------
    records : list of dict
        One for each epoch: ``"epoch"`` (from 1), ``"lr"`` (of its last step), of groups with
        rates of their own also ``"lr_1"`` and so on, ``"loss"``, each
        metric, and the same on validation data with the prefix ``"val_"``.
    seconds : list of float
        The duration of each epoch, validation included. It is not part of the records, as it
        differs from run to run.
    stopped : str
        Why training ended: one sentence.

    Examples
    --------
    >>> history = History()
    >>> history.records += [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    >>> history["loss"]
    [0.5, 0.25]
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.seconds: list[float] = []
        self.stopped = ""

    def __getitem__(self, name: str) -> list[float]:
        """The values of one quantity in all epochs that have it.

        Raises
        ------
        UnknownNameError
            No epoch has it.
        """
        values = [record[name] for record in self.records if name in record]
        if not values:
            names = list(dict.fromkeys(name for record in self.records for name in record))
            what = f"only {', '.join(names)}" if names else "as it has no epoch"
            msg = f"there is no {name!r} in the history, {what}"
            raise UnknownNameError(msg)
        return values

    def __len__(self) -> int:
        return len(self.records)

    def names(self) -> list[str]:
        """The names of all quantities, in order of appearance, after epoch, lr and loss."""
        recorded = (name for record in self.records for name in record)
        return list(dict.fromkeys(["epoch", "lr", "loss", *recorded]))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records as CSV, with a column for each quantity and numbers in full precision.

        Raises
        ------
        DataError
            The file cannot be written.
        """
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.names())
            writer.writeheader()
            writer.writerows(self.records)

    def _repr_html_(self) -> str:
        """Curves and the last epochs, which notebooks show in place of the repr."""
        from xbp.training.markup import as_html  # in a notebook alone

        return as_html(self.records, self.names(), self.stopped)

    def __repr__(self) -> str:
        return f"History({len(self)} epochs, stopped={self.stopped!r})"
