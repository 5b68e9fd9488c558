"""ResNet and VGG: their sizes, their outputs, their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng

import xbp
from xbp import data, nn, optim
from xbp.datasets.whitening import whitening
from xbp.errors import DataError, InputError
from xbp.models import VGG, FastCIFAR, ResNet
from xbp.models.registry import LEAST
from xbp.models.resnet import Subsample
from xbp.nn import Layer
from xbp.training import load_model, save_weights
from xbp.training.files.tensors import TensorFile, write_tensors


def size(model: Layer) -> int:
    return sum(parameter.data.size for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85")]
)
def test_as_many_parameters_as_in_the_paper(depth: int, millions: str) -> None:
    """He et al. 2016, table 6."""
    assert f"{size(ResNet(depth, rng=0)) / 1e6:.2f}" == millions
    assert sum(p.data.ndim in (2, 4) for p in ResNet(depth, rng=0).parameters()) == depth


def test_the_vggs_of_the_paper_without_its_large_layers() -> None:
    """Simonyan & Zisserman 2015, table 1: convolutions of configurations A, B, D and E."""
    for depth, convolutions in ((11, 8), (13, 10), (16, 13), (19, 16)):
        model = VGG(depth, width=2, rng=0)
        assert sum(p.data.ndim == 4 for p in model.parameters()) == convolutions
    # The 14,710,464 weights of its kernels, a scale and a shift for 4,224 channels, the last layer.
    assert size(VGG(16, rng=0)) == 14_710_464 + 2 * 4_224 + 5_130


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_it_is_what_it_is_in_pytorch(shortcut: str) -> None:
    """Forward, in inference and training, and all gradients, in float64."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    model = ResNet(8, 5, shortcut=shortcut, dtype="float64", rng=0)
    state = {k: torch.tensor(v) for k, v in model.state_dict().items()}
    for name, _ in model.named_parameters():
        state[name].requires_grad_(True)

    def convolution(x: Any, name: str, index: int, stride: int = 1) -> Any:
        kernel = state[f"{name}{index}.weight"]
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)
        bn = f"{name}{index + 1}."
        return functional.batch_norm(
            x, None, None, state[bn + "weight"], state[bn + "bias"], training=True
        )

    rng = np.random.default_rng(0)
    given, slope = rng.normal(size=(3, 3, 32, 32)), rng.normal(size=(3, 5))
    x = torch.tensor(given, requires_grad=True)
    h = functional.relu(convolution(x, "", 0))
    for place, stride in ((3, 1), (5, 2), (7, 2)):
        f = functional.relu(convolution(h, f"{place}.body.", 0, stride))
        f = convolution(f, f"{place}.body.", 3)
        if stride == 1:
            past = h
        elif shortcut == "A":
            past = functional.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 0, h.shape[1]))
        else:
            past = convolution(h, f"{place}.shortcut.", 0, stride)
        h = functional.relu(f + past)
    y = functional.linear(h.mean((2, 3)), state["11.weight"], state["11.bias"])
    y.backward(torch.tensor(slope))

    ours, backward = model.forward(given, training=True)
    dx = backward(slope)
    # Sums of some 10⁴ products of normal numbers in float64.
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=0, atol=1e-10)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            parameter.grad, state[name].grad.numpy(), rtol=0, atol=1e-9, err_msg=name
        )


def test_the_shortcut_has_zeros_as_further_channels() -> None:
    x = np.arange(2 * 2 * 4 * 6.0).reshape(2, 2, 4, 6)
    y, backward = Subsample(2, 4).forward(x)
    np.testing.assert_array_equal(y[:, :2], x[:, :, ::2, ::2])
    assert not y[:, 2:].any()
    dx = backward(np.ones_like(y))
    assert dx.sum() == 2 * 2 * 2 * 3 and dx[:, :, ::2, ::2].all()


MODELS: list[Layer] = [
    ResNet(8, 3, shortcut="B", rng=0),
    ResNet(20, 1, channels=1, rng=0),
    VGG(13, 3, width=2, rng=0),
    VGG(11, 1, channels=1, width=1, rng=0),
    FastCIFAR(3, widths=(2, 4, 3), rng=0),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_file_of_weights_makes_the_model_again(model: Layer, tmp_path: Path) -> None:
    optimizer = optim.SGD(model.parameters(), 0.1)
    x = np.random.default_rng(0).normal(size=(4, model.arguments.get("channels", 3), 32, 32))
    x = x.astype("float32")
    y, backward = model.forward(x, training=True)  # with running statistics
    backward(np.ones_like(y))
    optimizer.step()
    save_weights(model.state_dict(), tmp_path / "weights", model=model)
    loaded = load_model(tmp_path / "weights")
    assert type(loaded) is type(model) and loaded.arguments == model.arguments
    np.testing.assert_array_equal(loaded(x), model(x))


def test_the_first_layer_learns_a_shift_and_keeps_its_kernels() -> None:
    model = FastCIFAR(3, widths=(2, 2, 2), dtype="float64", rng=0)
    kernels, shift = model[0].weight.data.copy(), model[0].bias
    assert not shift.data.any() and shift.trainable
    y, backward = model.forward(default_rng(0).normal(size=(4, 3, 32, 32)), training=True)
    backward(np.ones_like(y) * default_rng(1).normal(size=y.shape))
    optim.SGD(model.parameters(), 0.1).step()
    assert shift.data.any() and np.array_equal(model[0].weight.data, kernels)


def test_a_mirrored_prediction_is_the_mean_of_both() -> None:
    model = FastCIFAR(3, widths=(2, 2, 2), dtype="float64", rng=0)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1))
    x = default_rng(0).normal(size=(5, 3, 32, 32))
    expected = (model(x) + model(x[..., ::-1].copy())) / 2
    for given in (x, data.Arrays(x)):
        found = trainer.predict(given, batch_size=2, mirror=True)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not np.allclose(trainer.predict(x), expected)
    flat = nn.Linear(4, 2, dtype="float64", rng=0)
    trainer = xbp.Trainer(flat, nn.CrossEntropyLoss(), optim.SGD(flat.parameters(), 0.1))
    with pytest.raises(InputError, match=r"need images \(N, C, H, W\)"):
        trainer.predict(np.ones((2, 4)), mirror=True)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_the_least_size_is_one(model: Layer) -> None:
    """A file with too large sizes is refused before the model is made."""
    assert 0 < LEAST[type(model).__name__](model.arguments) <= size(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 6 * 10**6 + 2), ("depth", "20"), ("num_classes", 10**9), ("channels", 10**9)],
)
def test_a_file_that_claims_more_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    model = ResNet(8, rng=0)
    save_weights(model.state_dict(), tmp_path / "weights", model=model)
    file = TensorFile(tmp_path / "weights")
    recipe = file.document["model"]
    recipe["arguments"][name] = value
    write_tensors(tmp_path / "weights", file.read(), file.document | {"model": recipe})
    with pytest.raises(DataError, match="cannot be made"):
        load_model(tmp_path / "weights")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: ResNet(21), "6n + 2"),
        (lambda: ResNet(2), "depth"),
        (lambda: ResNet(shortcut="C"), "shortcut"),
        (lambda: VGG(12), "11, 13, 16, 19"),
        (lambda: VGG([11]), "11, 13, 16, 19"),
        (lambda: VGG(width=0), "width"),
        (lambda: FastCIFAR(widths=(1, 2)), "three"),
        (lambda: FastCIFAR(widths=(1, 2, 0)), "widths"),
        (lambda: Subsample(3, 2), "out_channels"),
        (lambda: Subsample(3, 4)(np.zeros((1, 2, 4, 4))), "expects input (N, 3, H, W)"),
        (lambda: ResNet(8, rng=0)(np.zeros((1, 3, 4, 4), "float32")), "AvgPool2d"),
    ],
)
def test_mistakes(make: Any, part: str) -> None:
    with pytest.raises(InputError) as info:
        make()
    assert part in str(info.value)


def test_whitened_patches_are_uncorrelated() -> None:
    """Variances of 1, if eps is small beside the variances of the patches."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(40, 3, 9, 9)).cumsum(axis=2).cumsum(axis=1)
    model = FastCIFAR(widths=(2, 2, 2), dtype="float64", rng=0)
    model.whiten(mixed, eps=1e-12)
    y = np.asarray(model[0](mixed)).transpose(0, 2, 3, 1).reshape(-1, 24)
    half = y[:, :12]
    # Products of matrices of condition 10³ in float64.
    np.testing.assert_allclose(half.T @ half / len(half), np.eye(12), rtol=0, atol=1e-8)
    np.testing.assert_array_equal(y[:, 12:], -half)
    assert all(p is not model[0].weight for p in model.parameters())
    for wrong in (np.zeros((2, 1, 8, 8)), np.zeros((0, 3, 8, 8)), np.zeros(3)):
        with pytest.raises(InputError, match="whitening needs"):
            whitening(wrong, 0.1)


def test_a_convolution_begins_as_the_identity() -> None:
    conv = FastCIFAR(widths=(30, 2, 2), rng=0)[2]
    x = np.random.default_rng(0).normal(size=(1, 24, 5, 5)).astype("float32")
    # Two neighbours of up to 4, whose sum and difference a kernel rounds and adds.
    np.testing.assert_allclose(conv(x)[:, :24], x, rtol=0, atol=2e-6)
