import ast
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.errors import DataError, InputError
from xbp.models.registry import REGISTERED, recipe_of
from xbp.training import load_model, load_weights, save_weights
from xbp.training.files.tensors import write_tensors


def test_weights_come_back_exactly(tmp_path: Path) -> None:
    model = xbp.models.LeNet5(rng=0)
    save_weights(model.state_dict(), tmp_path / "model.safetensors")
    other = xbp.models.LeNet5(rng=1)
    other.load_state_dict(load_weights(tmp_path / "model.safetensors"))
    for name, value in model.state_dict().items():
        assert np.array_equal(value, other.state_dict()[name])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_transposed_weight_is_saved_as_it_reads(tmp_path: Path) -> None:
    """safetensors 0.8.0 alone would store the wrong bytes: issue 825 there."""
    weight = np.arange(6.0).reshape(2, 3).T
    save_weights({"w": weight, "strided": weight[::2]}, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert np.array_equal(loaded["w"], weight)
    assert np.array_equal(loaded["strided"], weight[::2])


@pytest.mark.parametrize("order", ["C", "F", "transposed", "strided", "reversed", "big-endian"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 4), (2, 3, 4, 5)])
def test_every_memory_order_is_saved_as_it_reads(order: str, shape: tuple, tmp_path: Path) -> None:
    value = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    array = {
        "C": lambda: value,
        "F": lambda: np.asfortranarray(value),
        "transposed": lambda: value.T,
        "strided": lambda: np.repeat(value, 2, axis=0)[::2] if shape else value,
        "reversed": lambda: np.flip(value),
        "big-endian": lambda: value.astype(">f4"),
    }[order]()
    save_weights({"w": array}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(load_weights(tmp_path / "w.safetensors")["w"], array)
    assert load_weights(tmp_path / "w.safetensors")["w"].shape == array.shape


def test_there_is_one_door_to_the_format() -> None:
    """Any other way of writing has the fault of issue 825."""
    doors = []
    for path in Path(xbp.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            module = getattr(node, "module", None) or ""
            if "safetensors" in (module.partition(".")[0], *(n.partition(".")[0] for n in names)):
                doors.append(path.name)
    assert set(doors) == {"tensors.py"}


def test_what_the_format_lacks_is_refused(tmp_path: Path) -> None:
    for name, value in [("w", np.zeros(1, np.complex128)), ("__metadata__", np.zeros(1))]:
        with pytest.raises(InputError, match=f"'{name}' of dtype .* cannot be saved"):
            save_weights({name: value}, tmp_path / "w.safetensors")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({"w": np.ones(3)}, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="does not have its checksum"):
        load_weights(path)


def test_files_that_are_not_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no such thing")
    for path, sentence in [
        (tmp_path / "bad.safetensors", "no safetensors file"),
        (tmp_path / "none.safetensors", "does not exist"),
        (tmp_path, "is a folder, where a safetensors file was expected"),
    ]:
        with pytest.raises(DataError, match=sentence):
            load_weights(path)
    with pytest.raises(DataError, match="cannot write"):
        save_weights({"w": np.zeros(1)}, tmp_path / "nowhere" / "w.safetensors")


class Counting(nn.Sequential):
    """A user's model with a counter among its buffers."""

    arguments: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 2, rng=0), nn.BatchNorm1d(2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_model_comes_back(
    dtype: str, checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTERED, "Counting", Counting)
    model = Counting().astype(dtype)
    state = {name: np.asarray(value) + 1 for name, value in model.state_dict().items()}
    path = tmp_path / "a.safetensors"
    if checkpoint:
        arrays = {f"model.{name}": value for name, value in state.items()}
        arrays["optimizer.0.m"] = np.ones(3, np.float16)
        write_tensors(path, arrays, {"format": "xbp checkpoint", "model": recipe_of(model)})
    else:
        save_weights(state, path, model=model)
    loaded = load_model(path).state_dict()
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(loaded[name], value, strict=True)


def test_a_model_that_the_weights_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTERED, "Counting", Counting)
    state = Counting().state_dict()
    path = tmp_path / "a.safetensors"
    half = state | {"0.bias": np.ones(2, np.float16)}
    for wrong, said in [(half, "weights of .'float16', 'float32'."), ({**state, "0.bias": np.ones(
            3, np.float32)}, "does not fit the model")]:  # fmt: skip
        save_weights(wrong, path, model=Counting())
        with pytest.raises(DataError, match=said):
            load_model(path)
