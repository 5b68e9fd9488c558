"""Weights from PyTorch and to PyTorch, through files: names, shapes and outputs are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from xbp import nn  # noqa: E402
from xbp.training import load_weights, save_weights  # noqa: E402

LAYERS: list[tuple[str, tuple[Any, ...], tuple[int, ...], dict[str, Any]]] = [
    ("Linear", (5, 3), (4, 5), {}),
    ("Linear", (5, 3), (4, 5), {"bias": False}),
    ("Conv2d", (2, 3, (3, 2)), (2, 2, 7, 6), {"stride": (2, 1), "padding": (1, 2)}),
    ("Conv2d", (4, 6, 3), (2, 4, 7, 6), {"dilation": 2, "groups": 2, "padding": "same"}),
    ("Conv2d", (3, 3, 3), (2, 3, 7, 6), {"groups": 3, "bias": False}),
    ("Conv1d", (4, 6, 3), (2, 4, 7), {"stride": 2, "groups": 2}),
    ("ConvTranspose2d", (4, 6, 3, 2), (2, 4, 5, 4), {"groups": 2, "output_padding": 1}),
    ("PReLU", (3,), (2, 3, 4), {}),
    *(
        (name, (3, 4, layers), (2, 5, 3), {"bidirectional": directions, "bias": bias})
        for name in ("RNN", "LSTM", "GRU")
        for layers, directions, bias in ((1, False, True), (2, True, True), (1, True, False))
    ),
    ("RNN", (3, 4), (2, 5, 3), {"nonlinearity": "relu"}),
    ("BatchNorm1d", (3,), (4, 3), {}),
    ("BatchNorm2d", (3,), (2, 3, 4, 5), {"momentum": None, "affine": False}),
    ("LayerNorm", ((3, 5),), (2, 3, 5), {}),
    ("RMSNorm", (5,), (2, 3, 5), {}),
    ("GroupNorm", (2, 4), (2, 4, 5), {}),
]


def pair(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, nn.Layer]:
    torch.manual_seed(0)
    recurrent = {"batch_first": True} if name in ("RNN", "LSTM", "GRU") else {}
    theirs = getattr(torch.nn, name)(*arguments, **options, **recurrent)
    for key, array in theirs.state_dict().items():  # so that they all differ
        if array.is_floating_point():
            torch.nn.init.normal_(array)
        if key == "running_var":
            array.abs_()
    theirs.eval()
    seed = {} if name == "PReLU" or name.endswith("Norm") or "BatchNorm" in name else {"rng": 0}
    return theirs, getattr(nn, name)(*arguments, **options, **seed)


def compare(theirs: Any, ours: nn.Layer, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))
    expected = expected[0] if isinstance(expected, tuple) else expected
    # Float32 keeps 7 digits; sums of some tens of products in another order keep 5.
    largest = float(torch.max(torch.abs(expected)))
    np.testing.assert_allclose(ours(x), expected.numpy(), rtol=0, atol=1e-5 * largest)


def from_pytorch(theirs: Any, ours: nn.Layer, file: Path) -> None:
    safetensors_torch.save_file(theirs.state_dict(), file)
    ours.load_state_dict(load_weights(file))


def to_pytorch(theirs: Any, ours: nn.Layer, file: Path) -> None:
    save_weights(ours.state_dict(), file)
    theirs.load_state_dict(safetensors_torch.load_file(file))


@pytest.mark.parametrize("copy", [from_pytorch, to_pytorch])
@pytest.mark.parametrize(("name", "arguments", "shape", "options"), LAYERS)
def test_a_file_of_weights_gives_the_same_outputs(
    tmp_path: Path,
    copy: Callable[..., None],
    name: str,
    arguments: tuple[Any, ...],
    shape: tuple[int, ...],
    options: dict[str, Any],
) -> None:
    theirs, ours = pair(name, arguments, options)
    with pytest.raises(AssertionError):
        compare(theirs, ours, shape)
    copy(theirs, ours, tmp_path / "model.safetensors")
    compare(theirs, ours, shape)
