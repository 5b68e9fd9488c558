"""Callbacks that write each record as soon as it is complete: CSV, TensorBoard, MLflow."""

from __future__ import annotations

import csv
import importlib
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from xbp.errors import BackendError, DataError, InputError
from xbp.paths import path_of, require_plain
from xbp.training.callbacks.base import Callback, Training
from xbp.training.files.writing import check_writable, is_plain
from xbp.training.history import Record


class Tracker(Callback):
    """Base of callbacks that write records; a subclass defines `begin` and `write`."""

    first_rank_only = True

    def on_fit_begin(self, trainer: Training) -> None:
        self.begun = False

    def on_step_end(self, trainer: Training, step: int) -> None:
        if not self.begun:
            self.begun = True
            self.begin(trainer)

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        self.write(epoch, record)

    def begin(self, trainer: Training) -> None:
        """After the first step, when it is known whether the run was resumed."""

    def write(self, epoch: int, record: Record) -> None:
        """Write the record of an epoch."""
        raise NotImplementedError(f"{type(self).__name__} has no write(self, epoch, record)")


class CSVLogger(Tracker):
    """Write each record to a CSV file as soon as its epoch is over, as one line.

    Each line is written in one piece, so the file of a run that was killed has whole lines only;
    when the run is resumed, the lines after its checkpoint are written again. The columns are the
    quantities of a whole epoch, even if the first epoch was stopped before its validation, then
    those that callbacks put into the first record. The format is that of ``History.to_csv``.

    Parameters
    ----------
    path : path-like
    separator : str, default ","
        One character.
    append : bool, default False
        Whether to add lines to an existing file, whose bytes stay as they are. By default each
        `fit` replaces it after the first step.

    Raises
    ------
    InputError
        `separator` is not one character, or `path` is no path.
    DataError
        In `fit`: the file cannot be written; or, with `append`, it is no CSV file, or lacks a
        column. Found out before the first step, except for quantities that callbacks add.

    Examples
    --------
    >>> from xbp.training import CSVLogger
    >>> logger = CSVLogger("history.csv")  # trainer.fit(…, callbacks=[logger])
    """

    size: int | None = None
    """Bytes up to the end of this run's last line."""

    def __init__(
        self, path: str | os.PathLike[str], separator: str = ",", append: bool = False
    ) -> None:
        if not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n':
            msg = f"separator must be one character, such as ',' or ';', got {separator!r}"
            raise InputError(msg)
        self.path, self.separator = path_of(path, "a CSV file"), separator
        self.append = append

    def on_fit_begin(self, trainer: Training) -> None:
        super().on_fit_begin(trainer)
        require_plain(self.path, "a CSV file")
        if not is_plain(self.path):
            msg = (
                f"{str(self.path)!r} is an open file of this process, which a CSV file would cut; "
                "give the path of a plain file"
            )
            raise DataError(msg)
        self.size = None
        self.expected = trainer.expected
        self._change(None)  # fails now if the file cannot be written
        if self.append:
            self._check_columns(self._columns(), self.expected)

    def begin(self, trainer: Training) -> None:
        if self.size is None and self.append:
            content = self._content()
            self.size = len(content)
            if content and not content.endswith(b"\n"):  # an unfinished last line
                self._change(self.size, b"\r\n")
        self._change(self.size or 0)

    def write(self, epoch: int, record: Record) -> None:
        names = self._columns() if self.size else []
        text = io.StringIO()
        columns = names or list(dict.fromkeys([*self.expected, *record]))
        writer = csv.DictWriter(text, columns, delimiter=self.separator)
        if not names:
            writer.writeheader()
        self._check_columns(columns, list(record))
        writer.writerow(record)
        self._change(self.size or 0, text.getvalue().encode())

    def _check_columns(self, columns: list[str], names: list[str]) -> None:
        """Refuse names without a column, if there are columns."""
        unknown = [name for name in names if name not in columns]
        if columns and unknown:
            msg = (
                f"{str(self.path)!r} has the columns {', '.join(columns)}, and none for "
                f"{', '.join(unknown)}; choose another file, or append=False"
            )
            raise DataError(msg)

    def _columns(self) -> list[str]:
        """The names in the first line; none if the file is empty."""
        content = self._content()
        try:
            first = content.partition(b"\n")[0].decode("utf-8-sig")
            names = next(csv.reader([first], delimiter=self.separator))
        except (UnicodeDecodeError, csv.Error):
            names = []
        if content and not names:
            msg = f"{str(self.path)!r} is no CSV file in UTF-8; choose another, or append=False"
            raise DataError(msg)
        return names

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            msg = f"cannot read {str(self.path)!r} ({error.strerror}); check its permissions"
            raise DataError(msg) from None

    def _change(self, size: int | None, line: bytes = b"") -> None:
        """Truncate the file to `size` bytes, and add a line, whole or not at all."""
        try:
            with self.path.open("ab", buffering=0) as file:
                if size is not None:
                    self.size = min(size, file.tell())
                    if self.size < file.tell():
                        file.truncate(self.size)
                if line:
                    written = file.write(line)
                    if written != len(line):  # the disk is full
                        file.truncate(self.size)
                        msg = f"cannot write {str(self.path)!r} (no space left); free some"
                        raise DataError(msg)
                    self.size = file.tell()
        except OSError as error:
            msg = f"cannot write {str(self.path)!r} ({error.strerror}); check its folder and rights"
            raise DataError(msg) from None

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size = None if state["size"] is None else int(state["size"])


class TensorBoard(Tracker):
    """Write each record for TensorBoard: ``tensorboard --logdir LOG_DIR`` then shows the curves.

    It writes two of TensorBoard's runs, ``train`` and ``validation``, so that ``loss`` and
    ``val_loss`` share a diagram. After a resume, or in a folder used before, new records replace
    old ones from their first epoch on.

    Parameters
    ----------
    log_dir : path-like

    Raises
    ------
    BackendError
        tensorboardX, which writes such files, is not installed.
    DataError
        In `fit`: the folder cannot be made, before the first step; or a file cannot be written.

    Examples
    --------
    >>> from xbp.training import TensorBoard
    >>> board = TensorBoard("runs/1")  # trainer.fit(…, callbacks=[board]) # doctest: +SKIP
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.log_dir = path_of(log_dir, "a folder for TensorBoard")
        self.files = needed("tensorboardX.event_file_writer", "TensorBoard")
        self.messages = needed("tensorboardX.proto.event_pb2", "TensorBoard")
        self.writers: dict[str, Any] = {}

    def on_fit_begin(self, trainer: Training) -> None:
        super().on_fit_begin(trainer)
        with self._one_sentence(self.log_dir):
            self.log_dir.mkdir(parents=True, exist_ok=True)
        check_writable(self.log_dir / "events")

    def write(self, epoch: int, record: Record) -> None:
        runs: dict[str, dict[str, float]] = {"train": {}, "validation": {}}
        for name, value in record.items():
            run = "validation" if name.startswith("val_") else "train"
            runs[run][name.removeprefix("val_")] = value
        del runs["train"]["epoch"]
        for run, numbers in runs.items():
            if numbers:
                with self._one_sentence(self.log_dir / run):
                    self._write(run, epoch, numbers)

    @contextmanager
    def _one_sentence(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where, why = str(folder), error.strerror or error
            msg = f"cannot write to {where!r} ({why}); choose another log_dir, or free some space"
            raise DataError(msg) from None

    def _write(self, run: str, epoch: int, numbers: dict[str, float]) -> None:
        # The parts of SummaryWriter that write synchronously; its own flush does not wait for the
        # thread that writes its events.
        event = partial(self.messages.Event, step=epoch, wall_time=time.time())
        if run not in self.writers:
            folder = self.log_dir / run
            folder.mkdir(parents=True, exist_ok=True)
            writer = self.files.EventsWriter(str(folder / "events"), f".{epoch:06}")
            start = self.messages.SessionLog(status=self.messages.SessionLog.START)
            self.writers[run] = writer
            writer.write_event(event(session_log=start))  # invalidates old events from this step on
        written = event()
        for name, value in numbers.items():
            written.summary.value.add(tag=name, simple_value=value)
        self.writers[run].write_event(written)
        self.writers[run].flush()

    def on_fit_end(self, trainer: Training) -> None:
        writers, self.writers = self.writers, {}
        with ExitStack() as stack:  # closes every writer, even if another one fails
            for run, writer in writers.items():
                stack.enter_context(self._one_sentence(self.log_dir / run))
                stack.callback(writer.close)


class MLflow(Tracker):
    """Log each training as a run of MLflow: its options as parameters, each epoch as metrics.

    Inside ``with mlflow.start_run():`` that run is used. Otherwise a run is started and ended, as
    FAILED if training raises. A resumed training continues the run that it started.

    Parameters
    ----------
    experiment : str, optional
    run_name : str, optional
    tracking_uri : str, optional
        Where MLflow keeps its runs; by default as in its own settings.
    parameters : mapping, optional
        Parameters to log in addition to the classes of model and optimizer, the learning rate, the
        batch size, the epochs and the seed.

    Raises
    ------
    BackendError
        MLflow is not installed.
    DataError
        In `fit`: MLflow cannot write its files or reach its server.

    Examples
    --------
    >>> from xbp.training import MLflow
    >>> tracker = MLflow("digits")  # trainer.fit(…, callbacks=[tracker]) # doctest: +SKIP
    """

    run_id: str | None = None

    def __init__(
        self,
        experiment: str | None = None,
        run_name: str | None = None,
        *,
        tracking_uri: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.library = needed("mlflow", "MLflow")
        self.experiment, self.run_name, self.tracking_uri = experiment, run_name, tracking_uri
        self.parameters = dict(parameters or {})

    def on_fit_begin(self, trainer: Training) -> None:
        super().on_fit_begin(trainer)
        self.run_id = None
        self.own = False  # whether this callback started the run
        self.handled = sys.exc_info()[1]  # an error that the caller of fit is handling

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            msg = f"MLflow cannot record this run ({error.strerror or error}); see its tracking_uri"
            raise DataError(msg) from None

    def begin(self, trainer: Training) -> None:
        with self._one_sentence():
            self._begin(trainer)

    def _begin(self, trainer: Training) -> None:
        mlflow, resumed = self.library, self.run_id is not None
        if mlflow.active_run() is None:
            if self.tracking_uri is not None:
                mlflow.set_tracking_uri(self.tracking_uri)
            if self.experiment is not None:
                mlflow.set_experiment(self.experiment)
            mlflow.start_run(run_id=self.run_id, run_name=None if resumed else self.run_name)
            self.own = True
        self.run_id = mlflow.active_run().info.run_id
        if not resumed:
            optimizer = trainer.optimizer
            options = {
                "model": type(trainer.model).__name__,
                "optimizer": type(optimizer).__name__,
                "lr": optimizer.rates_at(0)[0],
                "batch_size": trainer.batch_size,
                "epochs": trainer.last_epoch,
                "seed": trainer.seed,
            }
            mlflow.log_params(options | self.parameters)

    def write(self, epoch: int, record: Record) -> None:
        numbers = {name: value for name, value in record.items() if name != "epoch"}
        with self._one_sentence():
            self.library.log_metrics(numbers, step=epoch)

    def on_fit_end(self, trainer: Training) -> None:
        if self.own:
            self.own, failed = False, sys.exc_info()[1] is not self.handled
            with self._one_sentence():
                self.library.end_run("FAILED" if failed else "FINISHED")

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = None if state["run_id"] is None else str(state["run_id"])


def needed(module: str, what: str) -> Any:
    """A module of an optional package, or an error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        msg = f"{what} needs {package} ({error}); install it with: pip install {package}"
        raise BackendError(msg) from None
