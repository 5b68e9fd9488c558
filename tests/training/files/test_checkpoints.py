"""Checkpoints: interrupted training ends with the bits of uninterrupted training."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nightly import NIGHTLY
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import DataError, InputError, NonFiniteError
from xbp.staging import staging
from xbp.training import Callback, Checkpoints, Convergence, EarlyStopping, load_model
from xbp.training.files.checkpoints import checkpoints_in
from xbp.training.files.tensors import TensorFile, write_tensors

EPOCHS, BATCH, STEPS_PER_EPOCH = 4, 8, 5  # the last batch of an epoch has 4 samples


def data(n: int = 36) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, (x @ np.array([1.0, -2.0, 0.5]) > 0).astype(np.int64) + (x[:, 0] > 1)


def frozen() -> nn.Layer:
    """A layer with a constant scale, like running statistics."""

    class Scale(nn.Layer):
        def __init__(self) -> None:
            self.scale = nn.Parameter(xbp.asarray([1.5], dtype="float32"), trainable=False)

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            scale = self.scale.data
            if training:  # changed by training, outside of the optimizer
                self.scale.data[...] = scale * 1.01
                scale = self.scale.data * 1.0
            return x * scale, lambda dy: dy * scale

    return Scale()


class LrCut(Callback):
    """A callback that multiplies the rate in each epoch and counts steps, to show repetitions."""

    def on_fit_begin(self, trainer: xbp.Trainer) -> None:
        self.total = np.zeros(2)

    def on_epoch_begin(self, trainer: xbp.Trainer, epoch: int) -> None:
        trainer.optimizer.lr = trainer.optimizer.lr * 0.7

    def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
        self.total += [1, step]

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"].copy()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum, step schedule": lambda p: optim.SGD(
        p, lr=optim.StepLR(0.1, 7, 0.5), momentum=0.9, weight_decay=1e-3
    ),
    "adam, one cycle": lambda p: optim.Adam(p, lr=optim.OneCycleLR(0.05, EPOCHS * 5)),
    "amsgrad": lambda p: optim.Adam(p, lr=0.05, amsgrad=True),
    "rmsprop, centered": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


class Killed(BaseException):
    """An exception that no handler in the library catches, like SIGKILL."""


class KillAt(Callback):
    call_order = 3

    def __init__(self, step: int) -> None:
        self.left = step

    def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def make(optimizer: str = "adam, one cycle", seed: int = 0) -> xbp.Trainer:
    model = nn.Sequential(
        nn.Linear(3, 6, rng=1), frozen(), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3, rng=2)
    )
    made = OPTIMIZERS[optimizer](model.parameters())
    return xbp.Trainer(
        model, nn.CrossEntropyLoss(), made, ["accuracy", "f1", batch_error], rng=seed
    )


def batch_error(prediction: Any, target: Any) -> Any:
    return nn.CrossEntropyLoss()(prediction, target)[0]


def fit(trainer: xbp.Trainer, *callbacks: Callback, epochs: int = EPOCHS, **options: Any) -> None:
    x, y = data()
    trainer.fit(
        *(x, y, epochs, BATCH), validation_data=(x[:20], y[:20]), callbacks=callbacks, **options
    )


def result(trainer: xbp.Trainer) -> dict[str, Any]:
    """All results that must repeat, as bytes."""
    state = {**trainer.model.state_dict(), **trainer.optimizer.state_dict()}
    return {
        **{name: np.asarray(value).tobytes() for name, value in state.items()},
        "records": json.dumps(trainer.history.records),
        "stopped": trainer.history.stopped,
        "lr": trainer.optimizer.lr,
    }


def interrupted(
    folder: Path, step: int, optimizer: str, *callbacks: Any, every: int = 1
) -> tuple[dict[str, Any], list[Callback]]:
    """Training that is killed after `step` steps and resumed by an equal program."""
    with pytest.raises(Killed):
        fit(make(optimizer), *(c() for c in callbacks), Checkpoints(folder, every), KillAt(step))
    # The seed is in the file, if there is one already.
    trainer = make(optimizer, seed=5 if checkpoints_in(folder) else 0)
    again = [c() for c in callbacks]
    fit(trainer, *again, Checkpoints(folder, every), resume=folder)
    return result(trainer), again


@pytest.fixture(params=["numpy", "array_api_strict"])
def exact(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param != "numpy":
        pytest.importorskip(request.param)
    with xbp.use_backend(request.param):
        yield


@pytest.mark.usefixtures("exact")
class TestExactResume:
    @pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS)[:-1])
    def test_killed_at_any_step(self, optimizer: str, tmp_path: Path) -> None:
        whole = make(optimizer)
        fit(whole)
        turn = sorted(OPTIMIZERS).index(optimizer)
        for step in (4, 5, 13) if NIGHTLY else ((4, 13), (5, 13))[turn % 2]:
            got, _ = interrupted(tmp_path / f"{step}", step, optimizer)
            assert got == result(whole), step

    @pytest.mark.parametrize("every", [None, 3])
    def test_killed_between_checkpoints(self, every: Any, tmp_path: Path) -> None:
        """Steps after the last checkpoint are made again."""
        whole = make()
        fit(whole)
        for step in (2, 8, 14):
            got, _ = interrupted(tmp_path / f"{step}", step, "adam, one cycle", every=every)
            assert got == result(whole), step

    def test_killed_twice(self, tmp_path: Path) -> None:
        whole = make()
        fit(whole)
        for step in (7, 1, 4):
            with pytest.raises(Killed):
                fit(make(), Checkpoints(tmp_path, 2), KillAt(step), resume=tmp_path)
        trainer = make()
        fit(trainer, Checkpoints(tmp_path, 2), resume=tmp_path)
        assert result(trainer) == result(whole)

    def test_callbacks_go_on_too(self, tmp_path: Path) -> None:
        """Early stopping with its best weights, a rate that falls each epoch, a sum of steps."""
        callbacks = (lambda: EarlyStopping(patience=1, min_delta=0.2), LrCut)
        whole, own = make("sgd"), [c() for c in callbacks]
        fit(whole, *own)
        assert "has not improved" in whole.history.stopped
        ended = whole.optimizer.steps
        for step in (3, 5, 7, ended - 1, ended):
            got, again = interrupted(tmp_path / f"{step}", step, "sgd", *callbacks)
            assert got == result(whole), step
            assert again[1].total.tolist() == own[1].total.tolist()
        fit(make("sgd"), *(c() for c in callbacks), Checkpoints(tmp_path / "stopped"))
        trainer = make("sgd")
        fit(trainer, *(c() for c in callbacks), resume=tmp_path / "stopped")
        assert result(trainer) == result(whole)  # it was stopped, and stays stopped

    def test_convergence_goes_on_too(self, tmp_path: Path) -> None:
        whole = make()
        fit(whole, Convergence(0.1))
        got, _ = interrupted(tmp_path, 7, "adam, one cycle", lambda: Convergence(0.1))
        assert got == result(whole)
        assert "changed by less" in got["stopped"]

    def test_what_is_not_finite_is_found_and_not_kept(self, tmp_path: Path) -> None:
        class Poison(Callback):
            def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
                if trainer.optimizer.steps == 7:
                    trainer.model[0].weight.data[...] = math.nan  # type: ignore[index]

        trainer = make()
        with pytest.raises(NonFiniteError, match="epoch 2, step 3"):
            fit(trainer, Checkpoints(tmp_path, 1, keep=2), Poison())
        names = [path.name for path in checkpoints_in(tmp_path)]
        assert names == ["step-00000006.safetensors", "step-00000007.safetensors"]

    def test_ctrl_c_loses_no_step(self, tmp_path: Path) -> None:
        whole = make()
        fit(whole)

        class Press(Callback):
            def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
                if trainer.optimizer.steps == 8:
                    signal.raise_signal(signal.SIGINT)

        first = make()
        fit(first, Checkpoints(tmp_path), Press())
        assert "Ctrl-C" in first.history.stopped
        assert checkpoints_in(tmp_path)[-1].name == "step-00000008.safetensors"
        trainer = make()
        fit(trainer, Checkpoints(tmp_path), resume=tmp_path)
        assert result(trainer) == result(whole)


class TestResume:
    def test_a_folder_without_checkpoints_means_the_beginning(self, tmp_path: Path) -> None:
        trainer = make()
        fit(trainer, Checkpoints(tmp_path / "new"), resume=tmp_path / "new")
        assert len(trainer.history) == EPOCHS
        with pytest.raises(DataError, match="does not exist"):
            fit(make(), resume=tmp_path / "no.safetensors")

    def test_a_finished_run_is_finished(self, tmp_path: Path) -> None:
        whole = make()
        fit(whole, Checkpoints(tmp_path))
        trainer = make()
        fit(trainer, Checkpoints(tmp_path), resume=tmp_path)
        assert result(trainer) == result(whole)
        assert trainer.history.seconds == whole.history.seconds

    def test_more_epochs(self, tmp_path: Path) -> None:
        whole = make("sgd")
        fit(whole, epochs=6)
        fit(make("sgd"), Checkpoints(tmp_path), epochs=2)
        trainer = make("sgd")
        fit(trainer, Checkpoints(tmp_path), resume=tmp_path, epochs=6)
        assert result(trainer) == result(whole)

    def test_the_second_fit_of_a_trainer(self, tmp_path: Path) -> None:
        whole = make("sgd")
        fit(whole, epochs=1)
        fit(whole, epochs=2)
        first = make("sgd")
        fit(first, Checkpoints(tmp_path), epochs=1)
        with pytest.raises(Killed):
            fit(first, Checkpoints(tmp_path / "2", 2), KillAt(7), epochs=2)
        trainer = make("sgd")
        fit(trainer, Checkpoints(tmp_path / "2", 2), resume=tmp_path / "2", epochs=2)
        assert result(trainer) == result(whole)
        assert [record["epoch"] for record in trainer.history.records] == [2, 3]

    def test_a_transposed_weight_goes_on_exactly(self, tmp_path: Path) -> None:
        def transposed() -> xbp.Trainer:
            trainer = make("adam, one cycle")
            weight = trainer.model[0].weight  # type: ignore[index]
            weight.data = np.asfortranarray(weight.data)
            return trainer

        whole = transposed()
        fit(whole)
        with pytest.raises(Killed):
            fit(transposed(), Checkpoints(tmp_path, 1), KillAt(7))
        trainer = transposed()
        fit(trainer, resume=tmp_path)
        assert result(trainer) == result(whole)

    def test_another_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            fit(make(), Checkpoints(tmp_path, 1), KillAt(7))
        x, y = data()
        valid = (x[:20], y[:20])
        dropout, relu, wide = make(), make(), make()
        dropout.model[3].p = 0.4  # type: ignore[index]
        relu.model.layers = (*relu.model.layers[:2], nn.ReLU(), *relu.model.layers[3:])
        wide.model.layers = (*wide.model.layers[:4], nn.Linear(6, 4, rng=0))
        wide.optimizer.parameters[-2:] = wide.model.layers[-1].parameters()
        loss = make()
        loss.loss = nn.CrossEntropyLoss("sum")
        for trainer, options, sentence in [
            (make(), {"batch_size": 9}, "batch_size is 9, where it was 8"),
            (make(), {"x": x + 1}, r"x is float32 \(36, 3\) with SHA-256 .* where it was"),
            (make(), {"y": y[::-1]}, "y is int64"),
            (make(), {"validation_data": None}, "the validation x is not part of both"),
            (make(), {"validation_data": data(21)}, r"the validation x is float32 \(21, 3\)"),
            (make("sgd"), {}, "the optimizer is SGD.* where it was Adam"),
            (make("amsgrad"), {}, "amsgrad=True.* where it was .*amsgrad=False"),
            (dropout, {}, r"Dropout\(p=0.4\), where it was \(3\): Dropout\(p=0.3\)"),
            (relu, {}, r"ReLU\(\), where it was \(2\): Tanh"),
            (wide, {}, r"Linear\(6, 4, bias=True\), where it was .*Linear\(6, 3"),
            (loss, {}, r"the loss is .*sum"),
            (make(), {"callbacks": [EarlyStopping()]}, r"callbacks \[\].*\['EarlyStopping'\]"),
        ]:
            arguments = {"x": x, "y": y, "epochs": EPOCHS, "batch_size": BATCH}
            arguments |= {"validation_data": valid} | options
            before = trainer.model.state_dict()
            with pytest.raises(InputError, match=sentence) as error:
                trainer.fit(**arguments, resume=tmp_path)
            assert str(error.value).isprintable()
            assert all(np.array_equal(before[k], v) for k, v in trainer.model.state_dict().items())
            assert trainer.optimizer.steps == 0

    def test_what_does_not_fit_is_refused_before_it_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(Killed):
            fit(make(), Checkpoints(tmp_path, 1), KillAt(7))
        path = checkpoints_in(tmp_path)[-1]
        file = TensorFile(path)
        arrays, document = file.read(), file.document
        position = document["position"]
        wide = {"model.0.weight": arrays["model.0.weight"].astype(np.float64)}
        left = {name: value for name, value in arrays.items() if name != "optimizer.0.m"}
        monkeypatch.setattr(TensorFile, "read", lambda file: pytest.fail("it was read"))
        for changed, where, sentence in [
            (
                arrays | wide,
                {},
                r"'model.0.weight' is float64 \(6, 3\), where float32 \(6, 3\) was",
            ),
            (arrays | {"optimizer.0.m": np.zeros((9, 9))}, {}, r"float64 \(9, 9\), where float32"),
            (arrays | {"optimizer.9.m": np.zeros(2)}, {}, "'optimizer.9.m' is float64"),
            (arrays | {"odd": np.zeros(2)}, {}, "'odd' is float64 .* where nothing was expected"),
            (arrays | {"epoch.loss.values": np.zeros(3)}, {}, "'epoch.loss.values' is float64"),
            (left | {"model.0.bias": np.zeros(1)}, {}, "'model.0.bias' is float64"),
            (
                {n: v for n, v in arrays.items() if n != "model.1.scale"},
                {},
                "lacks 'model.1.scale'",
            ),
            (arrays, {"steps": 8}, "its optimizer stands at another step"),
            (arrays, {"epochs_done": 2}, "its history does not fit its epochs"),
            (arrays, {"steps_done": -1}, "its steps_done must be an integer of at least 0, got -1"),
        ]:
            write_tensors(path, changed, document | {"position": position | where})
            with pytest.raises(DataError, match=sentence) as error:
                fit(make(), resume=path)
            assert str(error.value).isprintable()
        beyond = arrays | {f"epoch.loss.{n}": np.zeros(5, k) for n, k in
                           [("values", float), ("sizes", np.int64)]}  # fmt: skip
        write_tensors(path, beyond, document | {"position": position | {"steps_done": 5}})
        with pytest.raises(DataError, match="step 5 of an epoch of 5 steps"):
            fit(make(), resume=path)

    def test_another_backend_may_go_on(self, tmp_path: Path) -> None:
        pytest.importorskip("array_api_strict")
        whole = make()
        fit(whole)
        with pytest.raises(Killed):
            fit(make(), Checkpoints(tmp_path, 1), KillAt(7))
        with xbp.use_backend("array_api_strict"):
            trainer = make()
            fit(trainer, resume=tmp_path)
        got, expected = trainer.model.state_dict(), whole.model.state_dict()
        for name in expected:  # 13 steps in float32
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-5)


class TestFolder:
    def test_the_last_ones_and_the_best_are_kept(self, tmp_path: Path) -> None:
        trainer = make("sgd")
        fit(trainer, Checkpoints(tmp_path, 2, keep=2, monitor="val_loss"))
        names = [path.name for path in checkpoints_in(tmp_path)]
        assert names == [
            "best.safetensors",
            "step-00000018.safetensors",
            "step-00000020.safetensors",
        ]
        best = TensorFile(tmp_path / "best.safetensors")
        losses = trainer.history["val_loss"]
        assert best.document["history"]["records"][-1]["val_loss"] == min(losses)
        assert sorted(path.name for path in tmp_path.iterdir()) == names  # and nothing else

    def test_the_best_stays_the_best_when_resumed(self, tmp_path: Path) -> None:
        whole = make("sgd")
        fit(whole, Checkpoints(tmp_path / "whole", monitor="val_accuracy"))
        expected = TensorFile(tmp_path / "whole" / "best.safetensors").document
        for step in (6, 12, 19):
            folder = tmp_path / f"{step}"
            with pytest.raises(Killed):
                fit(make("sgd"), Checkpoints(folder, monitor="val_accuracy"), KillAt(step))
            fit(make("sgd"), Checkpoints(folder, monitor="val_accuracy"), resume=folder)
            got = TensorFile(folder / "best.safetensors").document
            assert got["history"]["records"] == expected["history"]["records"]

    def test_killed_between_the_best_and_the_last(self, tmp_path: Path) -> None:
        fit(make("sgd"), Checkpoints(tmp_path / "a", monitor="loss", mode="max"), epochs=1)
        (tmp_path / "a" / "step-00000005.safetensors").unlink()
        trainer = make("sgd")
        fit(trainer, Checkpoints(tmp_path / "a", monitor="loss", mode="max"), resume=tmp_path / "a")
        assert trainer.optimizer.steps == 20
        best = TensorFile(tmp_path / "a" / "best.safetensors").document
        assert len(best["history"]["records"]) == 1  # as the loss always falls

    def test_checkpoints_of_another_run_are_not_mixed_in(self, tmp_path: Path) -> None:
        fit(make(), Checkpoints(tmp_path), epochs=2)
        with pytest.raises(DataError, match="checkpoints of another run, such as step-00000010"):
            fit(make(), Checkpoints(tmp_path))
        first = tmp_path / "step-00000005.safetensors"
        with pytest.raises(DataError, match=r"not the last checkpoint.*step 10"):
            fit(make(), Checkpoints(tmp_path), resume=first)
        trainer = make()
        fit(trainer, Checkpoints(tmp_path / "elsewhere"), resume=first)
        assert len(trainer.history) == EPOCHS

    def test_what_a_killed_process_left_is_cleared_away(self, tmp_path: Path) -> None:
        with staging(tmp_path) as folder:
            leftover = Path(f"{folder}x")  # unlocked, like the folder of a dead process
            leftover.mkdir()
        (leftover / "step-00000005.safetensors").write_bytes(b"half")
        fit(make(), Checkpoints(tmp_path), epochs=1)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000005.safetensors"]

    def test_a_folder_that_cannot_be_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot hold checkpoints"):
            fit(make(), Checkpoints(tmp_path / "file"))

    @pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
    def test_permissions_are_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        write_tensors(path, {"w": np.zeros(2)}, {})
        path.chmod(0o640)
        write_tensors(path, {"w": np.ones(2)}, {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert TensorFile(path).read()["w"].tolist() == [1, 1]


class TestFullDisk:
    """The previous checkpoint stays complete, and the error gives the reason."""

    def refused(self, folder: Path, why: str) -> None:
        with pytest.raises(DataError, match=f"cannot write .*step-00000010.*{why}") as error:
            fit(make(), Checkpoints(folder), resume=folder)
        assert str(error.value).isprintable()
        assert [path.name for path in folder.iterdir()] == ["step-00000005.safetensors"]
        whole, trainer = make(), make()
        fit(whole)
        fit(trainer, resume=folder)
        assert result(trainer) == result(whole)

    def test_no_space_in_the_middle_of_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fit(make(), Checkpoints(tmp_path), epochs=1)

        def write_half(path: Path, content: bytes) -> None:
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", write_half)
        self.refused(tmp_path, "No space left on device")

    def test_no_space_when_the_system_writes_it_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fit(make(), Checkpoints(tmp_path), epochs=1)

        def fail(number: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
        self.refused(tmp_path, "No space left on device")

    def test_a_limit_of_the_system(self, tmp_path: Path) -> None:
        """The operating system itself stops the write in the middle of the file."""
        resource = pytest.importorskip("resource")
        fit(make(), Checkpoints(tmp_path), epochs=1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            self.refused(tmp_path, "File too large")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestModels:
    @pytest.mark.parametrize(
        "make_model",
        [
            lambda: xbp.models.LeNet5(12, activation="tanh", pool="average", rng=0),
            lambda: xbp.models.LeNet5(variant="1998", dtype="float64", rng=0),
            lambda: xbp.models.MLP(np.int64(3), 4, 2, activation=nn.Tanh, dropout=0.5, rng=0),
            lambda: xbp.models.MLP(3, 4, 5, 1, activation=[nn.Sigmoid, nn.GELU], dropout=[0, 0.1],
                                   output_activation=nn.Sigmoid, bias=False, rng=0),
        ],
    )  # fmt: skip
    def test_a_file_says_which_model_it_is_of(self, make_model: Any, tmp_path: Path) -> None:
        model = make_model()
        xbp.training.save_weights(model.state_dict(), tmp_path / "m.safetensors", model=model)
        loaded = load_model(tmp_path / "m.safetensors")
        assert type(loaded) is type(model)
        assert repr(loaded) == repr(model)
        expected = model.state_dict()
        for name, value in loaded.state_dict().items():
            np.testing.assert_array_equal(value, expected[name], strict=True)

    def test_a_checkpoint_says_so_too(self, tmp_path: Path) -> None:
        model = xbp.models.MLP(3, 4, 3, rng=0)
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters()), rng=0)
        trainer.fit(*data(), callbacks=[Checkpoints(tmp_path, notes={"why": np.int64(7)})])
        (path,) = tmp_path.iterdir()
        x, _ = data()
        assert np.array_equal(load_model(path)(x), model(x))
        assert TensorFile(path).document["notes"] == {"why": 7}

    @pytest.mark.parametrize(
        ("recipe", "sentence"),
        [
            (None, "does not say which model"),
            ({"model": "os.system", "arguments": {}}, "'os.system', not one of FastCIFAR, GPT"),
            ({"model": "LeNet5", "arguments": {"num_classes": 10**12}}, "more weights than"),
            ({"model": "LeNet5", "arguments": {"num_classes": 3, "x": 1}}, "TypeError"),
            ({"model": "MLP", "arguments": {"sizes": [10**6] * 9}}, "more weights than the file"),
            ({"model": "MLP", "arguments": {"sizes": [2, 2]}}, "KeyError: 'output_activation'"),
            ({"model": "MLP", "arguments": {"sizes": [2, 2], "output_activation": "eval",
                                            "activation": []}}, "KeyError: 'eval'"),
            ({"model": "MLP", "arguments": {"sizes": [2, 1], "output_activation": None,
                                            "activation": []}}, "does not fit"),
            ({"model": "MLP", "arguments": {"sizes": 3}}, "TypeError"),
            ({"model": [], "arguments": {}}, "not one of"),
            ("MLP", "does not say"),
        ],
    )  # fmt: skip
    def test_a_file_names_no_other_model(self, recipe: Any, sentence: str, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        write_tensors(path, {"0.weight": np.zeros((300, 1))}, {"model": recipe})
        with pytest.raises(DataError, match=sentence) as error:
            load_model(path)
        assert str(error.value).isprintable()
