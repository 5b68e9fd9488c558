"""What MLflow is given, and trackers whose package is missing."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training.callbacks.fitting import fit, stop_at

from xbp.errors import BackendError, DataError
from xbp.training import Checkpoints, LambdaCallback, MLflow, TensorBoard


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
