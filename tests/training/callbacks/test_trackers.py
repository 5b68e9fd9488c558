"""The files of trackers: CSV, event files of TensorBoard, runs of MLflow."""

from __future__ import annotations

import csv
import errno
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import BackendError, DataError, InputError
from xbp.training import Callback, Checkpoints, CSVLogger, LambdaCallback, MLflow, TensorBoard


def data() -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 48)
    return rng.normal(size=(48, 2)) + np.eye(3)[y][:, :2], y


def make_trainer() -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(2, 3, dtype="float64", rng=0))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0)


def fit(*callbacks: Callback, epochs: int = 3, **options: Any) -> xbp.History:
    """Three epochs of three steps."""
    options = {"validation_data": data(), "batch_size": 16} | options
    return make_trainer().fit(*data(), epochs=epochs, callbacks=callbacks, **options)


def stop_at(steps: int) -> Callback:
    """Stop after a step, counted over all epochs."""

    def stop(trainer: xbp.Trainer, step: int) -> None:
        if trainer.optimizer.steps == steps:
            trainer.stop("interrupted by Ctrl-C")

    return LambdaCallback(on_step_end=stop)


# --- CSV ---


def test_the_csv_file_is_the_historys(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("an older run\n")
    fit(CSVLogger(path)).to_csv(tmp_path / "expected.csv")
    assert path.read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_a_line_is_there_as_soon_as_its_epoch_is_over(tmp_path: Path) -> None:
    seen = []
    count = LambdaCallback(on_epoch_end=lambda *_: seen.append((tmp_path / "h.csv").read_text()))
    fit(CSVLogger(tmp_path / "h.csv"), count)
    assert [text.count("\n") for text in seen] == [2, 3, 4]


def test_another_separator(tmp_path: Path) -> None:
    history = fit(CSVLogger(tmp_path / "h.tsv", separator="\t"))
    with (tmp_path / "h.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [float(row["val_loss"]) for row in rows] == history["val_loss"]


COLUMNS = b"epoch,lr,loss,accuracy,val_loss,val_accuracy"

THERE = {
    "an empty file": b"",
    "a header": COLUMNS + b"\r\n",
    "a header without a line break": COLUMNS,
    "a line that was cut short": COLUMNS + b"\r\n1,0.1,0.9",
    "a last line without a line break": COLUMNS + b"\n1,0.1,0.9,0.5,0.8,0.5",
    "the mark of an editor": b"\xef\xbb\xbf" + COLUMNS + b"\r\n",
    "other columns, too": b"note," + COLUMNS + b"\r\nmine,1,1,1,1,1,1\r\n",
    "quoted names": b'"' + COLUMNS.replace(b",", b'","') + b'"\n',
}


@pytest.mark.parametrize("there", THERE.values(), ids=list(THERE))
def test_append_keeps_every_byte_and_adds_lines(there: bytes, tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_bytes(there)
    history = fit(CSVLogger(path, append=True), epochs=2)
    content = path.read_bytes()
    assert content.startswith(there)
    added = content[len(there) :].decode().strip().splitlines()[-2:]
    assert [float(line.split(",")[-2]) for line in added] == history["val_loss"]
    lines = content.decode("utf-8-sig").splitlines()
    assert len([line for line in lines if "val_loss" in line]) == 1
    assert added == lines[-2:]


NOT_THERE = {
    "fewer columns": (b"epoch,lr,loss\n1,1,1\n", "none for accuracy, val_loss, val_accuracy"),
    "another separator": (COLUMNS.replace(b",", b";") + b"\n", "none for epoch, lr"),
    "no text": (b"\xff\xfe\x00\n", "is no CSV file in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "is no CSV file in UTF-8"),
    "an empty line": (b"\n" + COLUMNS, "is no CSV file in UTF-8"),
    "prose": (b"Dear reader,\nall is well", "none for epoch"),
}


@pytest.mark.parametrize(("there", "sentence"), NOT_THERE.values(), ids=list(NOT_THERE))
def test_what_cannot_be_continued_is_refused_before_training(
    there: bytes, sentence: str, tmp_path: Path
) -> None:
    path, trainer = tmp_path / "h.csv", make_trainer()
    path.write_bytes(there)
    with pytest.raises(DataError, match=sentence):
        trainer.fit(*data(), 2, 16, data(), [CSVLogger(path, append=True)])
    assert trainer.optimizer.steps == 0
    assert path.read_bytes() == there


def test_a_first_epoch_that_was_stopped_leaves_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    fit(CSVLogger(path, append=True), stop_at(2))
    first = path.read_bytes()
    assert first.splitlines()[0] == COLUMNS
    fit(CSVLogger(path, append=True), epochs=2)
    assert path.read_bytes().startswith(first)
    assert path.read_bytes().count(b"\r\n") == 4


def test_what_callbacks_record_has_its_column(tmp_path: Path) -> None:
    def note(trainer: xbp.Trainer, epoch: int, record: dict[str, Any]) -> None:
        record["twice"] = np.asarray(2 * epoch)

    fit(LambdaCallback(on_epoch_end=note), CSVLogger(tmp_path / "h.csv"))
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text().splitlines()))
    assert [row["twice"] for row in rows] == ["2.0", "4.0", "6.0"]


@pytest.mark.parametrize("separator", ["", ",,", "\n", '"', 1, None])
def test_a_separator_is_one_character(separator: Any) -> None:
    with pytest.raises(InputError, match="separator must be one character"):
        CSVLogger("h.csv", separator)


def test_append_keeps_the_columns_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    fit(CSVLogger(path), epochs=1)
    fit(CSVLogger(path, append=True), epochs=1, validation_data=None)
    first, second = csv.DictReader(path.read_text().splitlines())
    assert second == first | {"val_loss": "", "val_accuracy": ""}
    path.write_text("epoch,loss,lr\n")
    with pytest.raises(DataError, match="has the columns epoch, loss, lr, and none for accuracy"):
        fit(CSVLogger(path, append=True), epochs=1, validation_data=None)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 6])
@pytest.mark.parametrize("append", [False, True])
def test_a_resumed_runs_file_is_that_of_an_uninterrupted_one(
    steps: int, append: bool, tmp_path: Path
) -> None:
    path, folder = tmp_path / "h.csv", tmp_path / "checkpoints"
    earlier = b"epoch,lr,loss,accuracy,val_loss,val_accuracy\r\n9,9,9,9,9,9\r\n" if append else b""
    path.write_bytes(earlier)
    fit(CSVLogger(path, append=append), epochs=3)
    expected = path.read_bytes()
    path.write_bytes(earlier)
    fit(CSVLogger(path, append=append), Checkpoints(folder, every=1), stop_at(steps), epochs=3)
    with path.open("a") as file:
        file.write("lines that came after the checkpoint\n")
    fit(CSVLogger(path, append=append), Checkpoints(folder, every=1), resume=folder, epochs=3)
    assert path.read_bytes() == expected


def test_a_file_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path) -> None:
    steps: list[int] = []
    count = LambdaCallback(on_step_end=lambda trainer, step: steps.append(step))
    with pytest.raises(DataError, match=r"cannot write .*nowhere.*No such file or directory"):
        fit(count, CSVLogger(tmp_path / "nowhere" / "h.csv"))
    assert steps == []


@pytest.mark.parametrize("room", [0, 5])
def test_a_line_that_does_not_fit_onto_the_disk_leaves_none(
    room: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """A full disk accepts a part of a line, or nothing."""
    path, opened = tmp_path / "h.csv", Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.tell, self.truncate = file, file.tell, file.truncate

        def write(self, line: bytes) -> int:
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(line[:room]))

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

    def full(self: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        file = opened(self, mode, *args, **keywords)
        return Full(file) if mode == "ab" and self.stat().st_size else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(DataError, match=r"cannot write .*h\.csv.*[Nn]o space left") as error:
            fit(CSVLogger(path))
    assert "\n" not in str(error.value)
    assert path.read_bytes().count(b"\n") == 2  # header and first epoch
    assert path.read_bytes().endswith(b"\r\n")


ENDLESS = """
import sys
sys.path.insert(0, sys.argv[2])
from test_trackers import fit
from xbp.training import CSVLogger
fit(CSVLogger(sys.argv[1]), epochs=10**6)
"""


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    command = [sys.executable, "-c", ENDLESS, str(path), str(Path(__file__).parent)]
    process = subprocess.Popen(command)
    while process.poll() is None and (not path.exists() or path.stat().st_size < 10_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert path.read_bytes().endswith(b"\r\n")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(float(row["val_loss"]) > 0 for row in rows)


# --- TensorBoard ---


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, from the records of all event files in a folder.

    A record is the length (uint64), its checksum (4 bytes), the data, their checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            content = content[16 + size :]
    return found


def test_tensorboard_gets_every_number_of_every_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    history = fit(TensorBoard(tmp_path))
    train, validation = scalars(tmp_path / "train"), scalars(tmp_path / "validation")
    assert list(train) == ["lr", "loss", "accuracy"]
    assert list(validation) == ["loss", "accuracy"]
    for run, prefix in ((train, ""), (validation, "val_")):
        for name, points in run.items():
            steps, values = zip(*points, strict=True)
            assert steps == (1, 2, 3)
            assert values == tuple(np.float32(history[prefix + name]))  # as in the files


def test_tensorboard_shows_an_epoch_when_it_is_over(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    seen = []
    count = LambdaCallback(on_epoch_end=lambda *_: seen.append(scalars(tmp_path / "train")))
    fit(TensorBoard(tmp_path), count)
    assert [len(found["loss"]) for found in seen] == [1, 2, 3]


def test_one_tensorboard_for_two_fits(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    trainer, board = make_trainer(), TensorBoard(tmp_path)
    for _ in range(2):
        trainer.fit(*data(), epochs=2, callbacks=[board])
    assert [step for step, _ in scalars(tmp_path / "train")["loss"]] == [1, 2, 3, 4]


def test_a_log_dir_that_is_a_file_gets_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "train").write_text("")
    with pytest.raises(DataError, match=r"cannot write to .*train"):
        fit(TensorBoard(tmp_path))


@pytest.mark.parametrize("name", ["file", "file/runs"])
def test_a_log_dir_that_cannot_be_made_is_found_before_the_first_step(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "file").write_text("")
    trainer = make_trainer()
    with pytest.raises(DataError, match=r"file.*' \((File exists|Not a directory)\)"):
        trainer.fit(*data(), callbacks=[TensorBoard(tmp_path / name)])
    assert trainer.optimizer.steps == 0


@pytest.mark.parametrize("method", ["close", "flush"])
def test_a_disk_that_fails_gets_one_sentence(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = pytest.importorskip("tensorboardX.event_file_writer").EventsWriter
    real, failed = getattr(writer, method), []

    def fail(self: Any) -> None:
        real(self)
        if method == "flush" and failed:
            return
        failed.append(self)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, method, fail)
    with pytest.raises(DataError, match=r"cannot write to .* \(No space left on device\)"):
        fit(TensorBoard(tmp_path))
    assert len(failed) == (2 if method == "close" else 1)  # each of them is closed


# --- MLflow ---


class FakeMLflow:
    """A stand-in for mlflow, with a record of calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.run: Any = None
        self.metrics: dict[int, dict[str, float]] = {}
        self.parameters: dict[str, Any] = {}

    def active_run(self) -> Any:
        return self.run

    def set_tracking_uri(self, uri: str) -> None:
        self.calls.append(("uri", uri))

    def set_experiment(self, name: str) -> None:
        self.calls.append(("experiment", name))

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> None:
        assert self.run is None
        self.calls.append(("start", run_id, run_name))
        self.run = SimpleNamespace(info=SimpleNamespace(run_id=run_id or "run 1"))

    def end_run(self, status: str) -> None:
        self.calls.append(("end", status))
        self.run = None

    def log_params(self, parameters: dict[str, Any]) -> None:
        assert self.run
        self.parameters |= parameters

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert self.run
        self.metrics[step] = metrics


@pytest.fixture
def mlflow(monkeypatch: Any) -> FakeMLflow:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_mlflow_gets_options_and_every_epoch(mlflow: FakeMLflow) -> None:
    history = fit(MLflow("digits", "first", tracking_uri="file:runs", parameters={"note": 7}))
    start = [("uri", "file:runs"), ("experiment", "digits"), ("start", None, "first")]
    assert mlflow.calls == [*start, ("end", "FINISHED")]
    assert mlflow.parameters == {
        **{"model": "Sequential", "optimizer": "SGD", "lr": 0.1, "batch_size": 16, "epochs": 3},
        **{"seed": 0, "note": 7},
    }
    records = [{"epoch": step, **numbers} for step, numbers in mlflow.metrics.items()]
    assert records == history.records


def test_a_training_that_fails_is_a_run_that_failed(mlflow: FakeMLflow) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fit(MLflow(), LambdaCallback(on_epoch_end=fail))
    assert mlflow.calls[-1] == ("end", "FAILED")
    try:
        raise KeyError("an error that has been caught")
    except KeyError:
        fit(MLflow())
    assert mlflow.calls[-1] == ("end", "FINISHED")


def test_a_run_of_the_users_own_is_used_and_left_open(mlflow: FakeMLflow) -> None:
    mlflow.start_run("mine")
    fit(MLflow("digits"))
    assert mlflow.calls == [("start", "mine", None)]
    assert len(mlflow.metrics) == 3
    assert mlflow.run.info.run_id == "mine"


def test_a_training_that_is_resumed_goes_on_in_its_run(mlflow: FakeMLflow, tmp_path: Path) -> None:
    fit(MLflow(run_name="first"), Checkpoints(tmp_path, every=1), stop_at(4))
    mlflow.parameters.clear()
    fit(MLflow(run_name="second"), Checkpoints(tmp_path, every=1), resume=tmp_path, epochs=4)
    assert [call for call in mlflow.calls if call[0] == "start"] == [
        ("start", None, "first"),
        ("start", "run 1", None),
    ]
    assert list(mlflow.metrics) == [1, 2, 3, 4]
    assert mlflow.parameters == {}  # MLflow refuses a second value of a parameter


def test_a_server_that_is_away_gets_one_sentence(mlflow: FakeMLflow) -> None:
    for method in ("start_run", "log_params", "log_metrics", "end_run"):
        mlflow.run = None
        with pytest.MonkeyPatch.context() as patch:

            def fail(*_: Any, **__: Any) -> None:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

            patch.setattr(mlflow, method, fail, raising=False)
            with pytest.raises(DataError, match=r"MLflow cannot record .* \(Connection refused"):
                fit(MLflow())


def test_mlflow_itself(tmp_path: Path, monkeypatch: Any) -> None:
    """MLflow itself accepts these calls."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # otherwise a database
    uri = (tmp_path / "runs").as_uri()
    history = fit(MLflow("digits", tracking_uri=uri))
    with pytest.raises(ZeroDivisionError):
        fit(MLflow("digits", tracking_uri=uri), LambdaCallback(on_epoch_end=lambda *_: 1 / 0))
    client = mlflow.MlflowClient(uri)
    failed, run = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.info.status, failed.info.status) == ("FINISHED", "FAILED")
    losses = client.get_metric_history(run.info.run_id, "val_loss")
    assert [point.value for point in losses] == history["val_loss"]
    assert run.data.params["optimizer"] == "SGD"


# --- optional packages ---


@pytest.mark.parametrize(
    ("make", "package"),
    [(lambda: TensorBoard("runs"), "tensorboardX"), (MLflow, "mlflow")],
    ids=["TensorBoard", "MLflow"],
)
def test_a_missing_package_gets_one_sentence(make: Any, package: str, monkeypatch: Any) -> None:
    for module in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=f"needs {package}.*pip install {package}") as error:
        make()
    assert "\n" not in str(error.value)
