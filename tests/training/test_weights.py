from pathlib import Path

import numpy as np
import pytest

import xbp
from xbp.errors import DataError
from xbp.training import load_weights, save_weights


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


def test_files_that_are_not_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no such thing")
    for path, sentence in [
        (tmp_path / "bad.safetensors", "no safetensors file"),
        (tmp_path / "none.safetensors", "does not exist"),
        (tmp_path, "no safetensors file"),
    ]:
        with pytest.raises(DataError, match=sentence):
            load_weights(path)
    with pytest.raises(DataError, match="cannot write"):
        save_weights({"w": np.zeros(1)}, tmp_path / "nowhere" / "w.safetensors")
