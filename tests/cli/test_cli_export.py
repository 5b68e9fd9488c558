"""``xbp export``: its file and its output, and one sentence for each mistake."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("ndonnx")

from console import runner  # noqa: E402

import xbp  # noqa: E402
from xbp import nn, optim  # noqa: E402
from xbp.training import Checkpoints, save_weights  # noqa: E402


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    return runner(monkeypatch, capsys, "export")


def outputs(path: Path, x: Any) -> Any:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def normal(*shape: int) -> Any:
    return np.random.default_rng(7).normal(size=shape).astype("float32")


def test_the_model_of_a_folder_is_exported_and_compared(command: Any, tmp_path: Path) -> None:
    model, file = xbp.models.LeNet5(7, activation="tanh", rng=0), tmp_path / "lenet5.onnx"
    save_weights(model.state_dict(), tmp_path / "model.safetensors", model=model)
    code, out, err = command(tmp_path, "--onnx", file)
    assert (code, err) == (0, "")
    shapes, nodes, difference, wrote = out.splitlines()
    assert shapes == "input (N, 1, 28, 28), output (N, 7), float32, ONNX operators of version 21"
    assert nodes.startswith("nodes: 2 Conv, 4 Tanh, 2 MaxPool, ")
    assert difference.startswith("in onnxruntime outputs differ from xbp's by ")
    assert wrote == f"wrote {file}"
    x = normal(5, 1, 28, 28)
    # Float32 keeps 7 digits; sums of 400 products in another order keep 5.
    np.testing.assert_allclose(outputs(file, x), model(x), rtol=0, atol=1e-5)


def test_weights_alone_are_enough(command: Any, tmp_path: Path) -> None:
    model, file = xbp.models.MLP(4, 5, 3, activation=nn.SiLU, rng=0), tmp_path / "mlp.onnx"
    save_weights(model.state_dict(), tmp_path / "w.safetensors", model=model)
    code, out, _ = command(tmp_path / "w.safetensors", "--onnx", file, "--batch-size", 2)
    assert code == 0
    assert "input (2, 4), output (2, 3)" in out
    np.testing.assert_allclose(outputs(file, normal(2, 4)), model(normal(2, 4)), rtol=0, atol=1e-6)


def test_a_training_in_the_middle_is_exported_too(command: Any, tmp_path: Path) -> None:
    model, folder, file = xbp.models.MLP(4, 2, rng=0), tmp_path / "run", tmp_path / "mlp.onnx"
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1), rng=0)
    x = normal(8, 4)
    trainer.fit(x, x[:, :2], epochs=2, callbacks=[Checkpoints(folder)], verbose=False)
    code, _, _ = command(folder, "--onnx", file)
    assert code == 0
    np.testing.assert_allclose(outputs(file, x), model(x), rtol=0, atol=1e-6)


def test_without_onnxruntime_it_says_that_nothing_was_compared(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = xbp.models.MLP(4, 2, rng=0)
    save_weights(model.state_dict(), tmp_path / "model.safetensors", model=model)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, _ = command(tmp_path, "--onnx", tmp_path / "mlp.onnx")
    assert code == 0
    assert "not compared, for onnxruntime is missing; pip install onnxruntime" in out


def test_each_mistake_gets_one_sentence(command: Any, tmp_path: Path) -> None:
    own = nn.Linear(2, 3, rng=0)
    save_weights(own.state_dict(), tmp_path / "own.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("text", encoding="utf-8")
    for source, target, part in (
        ("no", "a.onnx", "'"),
        ("empty", "a.onnx", "holds no model.safetensors"),
        ("own.safetensors", "a.onnx", "does not say which model"),
        ("text.safetensors", "a.onnx", "text.safetensors"),
        ("own.safetensors", "no/a.onnx", "cannot be written"),
        ("own.safetensors", "empty", "is a folder"),
    ):
        code, out, err = command(tmp_path / source, "--onnx", tmp_path / target)
        assert (code, out) == (2, "")
        assert err.startswith("Error: ") and err.count("\n") == 1
        assert part in err
    assert not (tmp_path / "a.onnx").exists()
