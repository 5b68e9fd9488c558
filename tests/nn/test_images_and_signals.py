"""Layers of images and signals against PyTorch in float64, with options drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nn.cases import LAYERS

from xbp import nn
from xbp.errors import InputError
from xbp.testing.cases import Case

Drawn = tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]
"""Arguments, options, and the shape of an input."""


class Rng:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def number(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def pair(self, least: int, most: int) -> tuple[int, int]:
        return self.number(least, most), self.number(least, most)

    def yes(self) -> bool:
        return bool(self.number(0, 1))


def conv2d(r: Rng) -> Drawn:
    groups = r.number(1, 4)
    kernel, dilation = r.pair(1, 4), r.pair(1, 3)
    stride, padding = ((1, 1), "same") if r.yes() else (r.pair(1, 3), r.pair(0, 3))
    channels = groups * r.number(1, 3), groups * r.number(1, 3)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    size = (d * (k - 1) + r.number(1, 6) for d, k in zip(dilation, kernel, strict=True))
    shape = (r.number(1, 3), channels[0], *size)
    return (*channels, kernel), options | {"bias": r.yes()}, shape


def conv1d(r: Rng) -> Drawn:
    """Options of `conv2d` along one axis."""
    (c, o, kernel), options, (n, _, length, _) = conv2d(r)
    for name in ("stride", "padding", "dilation"):
        if isinstance(options[name], tuple):
            options[name] = options[name][0]
    return (c, o, kernel[0]), options, (n, c, length)


def conv_transpose2d(r: Rng) -> Drawn:
    groups, kernel, stride, dilation = r.number(1, 4), r.pair(1, 4), r.pair(1, 3), r.pair(1, 3)
    channels = groups * r.number(1, 3), groups * r.number(1, 3)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(r.number(0, length // 2) for length in reach)
    most = [max(steps) - 1 for steps in zip(stride, dilation, strict=True)]
    options = {"padding": padding, "output_padding": tuple(r.number(0, many) for many in most)}
    options |= {"groups": groups, "bias": r.yes(), "dilation": dilation, "stride": stride}
    return (*channels, kernel), options, (r.number(1, 3), channels[0], *r.pair(1, 5))


def pool1d(r: Rng) -> Drawn:
    kernel = r.number(1, 4)
    arguments = kernel, r.number(1, 4) if r.yes() else None, r.number(0, kernel // 2)
    return arguments, {}, (2, 3, r.number(4, 9))


def adaptive_avg_pool2d(r: Rng) -> Drawn:
    return ((r.number(1, 9), r.number(1, 9) if r.yes() else None),), {}, (2, 3, *r.pair(1, 12))


def upsample(r: Rng) -> Drawn:
    """Resizing, to smaller sizes too."""
    options: dict[str, Any] = {"size": r.pair(1, 9)}
    if r.yes():
        factors = [0.5, 0.7, 1.0, 1.3, 2.0, 2.5, 3.0]
        options = {"scale_factor": (factors[r.number(0, 6)], factors[r.number(0, 6)])}
    if r.yes():
        options |= {"mode": "bilinear", "align_corners": [None, False, True][r.number(0, 2)]}
    return (), options, (2, 3, *r.pair(2, 9))


def zero_pad2d(r: Rng) -> Drawn:
    return (tuple(r.number(-2, 3) for _ in range(4)),), {}, (2, 3, *r.pair(5, 7))


DRAWN: list[tuple[str, Callable[[Rng], Drawn]]] = [
    ("Conv1d", conv1d),
    ("ConvTranspose2d", conv_transpose2d),
    ("MaxPool1d", pool1d),
    ("AvgPool1d", pool1d),
    ("AdaptiveAvgPool2d", adaptive_avg_pool2d),
    ("Upsample", upsample),
    ("ZeroPad2d", zero_pad2d),
    ("Conv2d", conv2d),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("name", "draw"), DRAWN, ids=[name for name, _ in DRAWN])
def test_outputs_and_gradients_are_those_of_pytorch(
    name: str, draw: Callable[[Rng], Drawn], seed: int
) -> None:
    """Outputs, gradients, and weights in both directions."""
    torch = pytest.importorskip("torch")
    arguments, options, shape = draw(Rng(seed))
    theirs, ours = getattr(torch.nn, name)(*arguments, **options).double(), getattr(nn, name)
    seeded = {"dtype": "float64", "rng": 0} if theirs.state_dict() else {}
    layer = ours(*arguments, **options, **seeded)
    layer.load_state_dict(theirs.state_dict())
    back = {name: torch.asarray(array) for name, array in layer.state_dict().items()}
    theirs.load_state_dict(back)
    x, rng = np.random.default_rng(seed).normal(size=shape), np.random.default_rng(1)
    given = torch.tensor(x, requires_grad=True)
    expected = theirs(given)
    y, backward = layer.forward(x, training=True)
    assert layer.output_shape(shape) == y.shape
    dy = rng.normal(size=y.shape)
    expected.backward(torch.tensor(dy))
    found = [y, backward(dy), *(p.grad for p in layer.parameters())]
    truth = [expected.detach(), given.grad, *(p.grad for p in theirs.parameters())]
    for array, tensor in zip(found, truth, strict=True):
        # Sums of some hundreds of terms of order 1, in another order.
        np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=1e-10)


OPERATIONS = [case for case in LAYERS if isinstance(case.make(), nn.OperationLayer)]


@pytest.mark.parametrize("case", OPERATIONS, ids=str)
def test_a_layer_knows_the_shape_of_its_output(case: Case) -> None:
    layer, (x, *_) = case.make(), case.inputs()
    assert layer.output_shape(x.shape) == layer(x).shape


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.7, 1.3, 3.0, 7.0, 1e4])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_no_row_is_read_beyond_the_last(mode: str, factor: float) -> None:
    """Images of ones stay ones, for all sizes."""
    for height in (1, 2, 3, 10, 30):
        x = np.ones((1, 1, height, 1))
        if height * factor >= 1 and height * factor <= 1e5:
            assert np.all(nn.Upsample(scale_factor=(factor, 1), mode=mode)(x) == 1)


IMAGES = np.ones((1, 2, 3, 4))
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.Conv1d(2, 3, (3, 3)), "kernel_size must be an integer, got (3, 3)"),
    (
        lambda: nn.Conv1d(2, 3, 3, dtype="float64", rng=0)(IMAGES),
        "Conv1d(2, 3, kernel_size=(3,), stride=(1,), padding=(0,), bias=True) expects signals "
        "(N, 2, L), got shape (1, 2, 3, 4)",
    ),
    (
        lambda: nn.Conv1d(4, 3, 5, dtype="float64", rng=0)(IMAGES[0]),
        "Conv1d(4, 3, kernel_size=(5,), stride=(1,), padding=(0,), bias=True) expects signals "
        "(N, 4, L), got shape (2, 3, 4)",
    ),
    (
        lambda: nn.MaxPool1d(5)(IMAGES[0]),
        "MaxPool1d(kernel_size=(5,), stride=(5,), padding=(0,)) does not fit into signals of "
        "length 4",
    ),
    (
        lambda: nn.AvgPool1d(3, 1, 2),
        "padding (2,) is more than half of kernel_size (3,)",
    ),
    (
        lambda: nn.ConvTranspose2d(2, 3, 3, bias=False).output_shape((1, 2, 5)),
        "ConvTranspose2d(2, 3, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), bias=False, "
        "output_padding=(0, 0)) expects images of shape (N, 2, H, W), got shape (1, 2, 5)",
    ),
    (
        lambda: nn.ConvTranspose2d(2, 3, 3, output_padding=1),
        "output_padding (1, 1) must be smaller than stride (1, 1) or dilation (1, 1)",
    ),
    (
        lambda: nn.ConvTranspose2d(2, 3, 3, padding="same"),
        "padding must be an integer of at least 0, got 'same'",
    ),
    (
        lambda: nn.ConvTranspose2d(2, 3, 1, padding=2, dtype="float64", rng=0)(IMAGES),
        "ConvTranspose2d(2, 3, kernel_size=(1, 1), stride=(1, 1), padding=(2, 2), bias=True, "
        "output_padding=(0, 0)) leaves nothing of images of 3 × 4 pixels",
    ),
    (lambda: nn.AdaptiveAvgPool2d(0), "output_size must be an integer of at least 1, got 0"),
    (
        lambda: nn.AdaptiveAvgPool2d((1, 2, 3)),
        "output_size must be an integer or a pair (height, width), got (1, 2, 3)",
    ),
    (
        lambda: nn.AdaptiveAvgPool2d(1)(IMAGES[0]),
        "AdaptiveAvgPool2d(output_size=(1, 1)) expects images of shape (N, C, H, W), got shape "
        "(2, 3, 4)",
    ),
    (
        lambda: nn.AdaptiveAvgPool2d(1)(IMAGES[:, :, :0]),
        "AdaptiveAvgPool2d(output_size=(1, 1)) has nothing to average in images of 0 × 4 pixels",
    ),
    (nn.Upsample, "give one of size and scale_factor, got size=None, scale_factor=None"),
    (
        lambda: nn.Upsample(4, 2.0),
        "give one of size and scale_factor, got size=4, scale_factor=2.0",
    ),
    (lambda: nn.Upsample(0), "size must be an integer of at least 1, got 0"),
    (
        lambda: nn.Upsample(scale_factor=-1),
        "scale_factor must be a finite number above 0, got -1",
    ),
    (
        lambda: nn.Upsample(scale_factor=(1, 2, 3)),
        "scale_factor must be a number or a pair (height, width), got (1, 2, 3)",
    ),
    (
        lambda: nn.Upsample(4, mode="bicubic"),
        "mode must be one of 'nearest', 'bilinear', got 'bicubic'",
    ),
    (
        lambda: nn.Upsample(4, align_corners=True),
        'align_corners is of mode="bilinear", got True with mode="nearest"',
    ),
    (
        lambda: nn.Upsample(scale_factor=0.3)(IMAGES),
        "Upsample(scale_factor=(0.3, 0.3), mode='nearest') makes no pixels of images of 3 × 4 "
        "pixels",
    ),
    (
        lambda: nn.ZeroPad2d((1, 2)),
        "padding must be an integer or (left, right, top, bottom), got (1, 2)",
    ),
    (
        lambda: nn.ZeroPad2d(-2)(IMAGES),
        "ZeroPad2d(padding=(-2, -2, -2, -2)) leaves nothing of images of 3 × 4 pixels",
    ),
    (lambda: nn.Conv2d(4, 6, 3, groups=4), "groups=4 must divide in_channels=4 and out_channels=6"),
    (lambda: nn.Conv2d(3, 6, 3, groups=2), "groups=2 must divide in_channels=3 and out_channels=6"),
    (lambda: nn.Conv2d(3, 6, 3, groups=0), "groups must be an integer of at least 1, got 0"),
    (lambda: nn.Conv2d(3, 6, 3, dilation=0), "dilation must be an integer of at least 1, got 0"),
    (lambda: nn.Conv2d(3, 6, 3, 1, 0, 2), "bias must be True or False, got 2"),
    (
        lambda: nn.Conv2d(3, 6, 3, padding="full"),
        "padding must be one of 'valid', 'same', got 'full'",
    ),
    (
        lambda: nn.Conv2d(3, 6, 3, 2, "same"),
        'padding="same" takes a stride of 1, got stride=2',
    ),
    (
        lambda: nn.Conv1d(1, 1, 3, dilation=3, rng=0)(np.ones((1, 1, 6), np.float32)),
        "Conv1d(1, 1, kernel_size=(3,), stride=(1,), padding=(0,), dilation=(3,), "
        "bias=True) does not fit into signals of length 6",
    ),
    (
        lambda: nn.Conv2d(1, 1, 3, dilation=3, rng=0)(np.ones((1, 1, 6, 9), np.float32)),
        "Conv2d(1, 1, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(3, 3), "
        "bias=True) does not fit into images of 6 × 9 pixels",
    ),
    (
        lambda: nn.MaxPool2d(3, padding="same"),
        "padding must be an integer of at least 0, got 'same'",
    ),
]


CASES_OF_NAMES = (("valid", 4, 2), ("same", 4, 1), ("same", 4, 3), ("same", 3, 2))
"""Padding, size of the kernel, dilation."""


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("kind", "shape"), [("Conv1d", (2, 3, 9)), ("Conv2d", (2, 3, 8, 9))])
def test_valid_is_no_padding_and_same_keeps_the_size(kind: str, shape: tuple[int, ...]) -> None:
    """As in PyTorch: of an odd number of zeros the larger half comes last."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=shape)
    for padding, kernel, dilation in CASES_OF_NAMES:
        ours = getattr(nn, kind)(
            *(3, 2, kernel, 1, padding), dilation=dilation, dtype="float64", rng=0
        )
        options = {"padding": padding, "dilation": dilation, "dtype": torch.float64}
        theirs = getattr(torch.nn, kind)(3, 2, kernel, **options)
        state = {name: torch.asarray(value) for name, value in ours.state_dict().items()}
        theirs.load_state_dict(state)
        expected = theirs(torch.asarray(x)).detach().numpy()
        np.testing.assert_allclose(ours(x), expected, rtol=0, atol=1e-13)  # sums of 48 products
        assert ours.output_shape(x.shape) == expected.shape


@pytest.mark.parametrize(
    ("padding", "kernel", "dilation", "zeros"),
    [
        ("valid", 4, 2, (0, 0)),
        ("same", 3, 2, (2, 2)),
        ("same", 4, 1, (1, 2)),
        ("same", 6, 1, (2, 3)),  # 5 zeros in all
        ("same", 2, 5, (2, 3)),
    ],
)
@pytest.mark.parametrize(("kind", "shape"), [("Conv1d", (2, 3, 13)), ("Conv2d", (2, 3, 14, 13))])
def test_a_name_stands_for_so_many_zeros(
    kind: str,
    shape: tuple[int, ...],
    padding: str,
    kernel: int,
    dilation: int,
    zeros: tuple[int, int],
) -> None:
    x, axes = np.random.default_rng(0).normal(size=shape), len(shape) - 2
    named, plain = (
        getattr(nn, kind)(3, 2, kernel, 1, p, dilation=dilation, dtype="float64", rng=0)
        for p in (padding, 0)
    )
    expected = plain(np.pad(x, [(0, 0), (0, 0), *[zeros] * axes]))
    np.testing.assert_allclose(named(x), expected, rtol=0, atol=1e-13)  # sums of 108 products
    assert named.output_shape(shape) == expected.shape


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_wrong_options_are_refused_in_one_sentence(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == sentence


def test_options_are_shown_where_they_are_given() -> None:
    assert "dilation" not in repr(nn.Conv2d(2, 2, 3)) and "groups" not in repr(nn.Conv2d(2, 2, 3))
    layer = nn.Conv2d(2, 4, 3, padding="same", dilation=(1, 2), groups=2)
    assert repr(layer) == (
        "Conv2d(2, 4, kernel_size=(3, 3), stride=(1, 1), padding='same', dilation=(1, 2), "
        "groups=2, bias=True)"
    )


def test_a_transposed_convolution_is_the_transpose_of_a_convolution() -> None:
    """⟨y, conv(z)⟩ = ⟨convᵀ(y), z⟩ in integers, and ∂L/∂x of convᵀ is the output of conv."""
    window = {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2, "bias": False}
    conv = nn.Conv2d(4, 6, (3, 2), **window, dtype="float64", rng=0)
    transpose = nn.ConvTranspose2d(6, 4, (3, 2), **window, dtype="float64", rng=0)
    rng = np.random.default_rng(0)
    weight = rng.integers(-5, 6, conv.weight.shape).astype(float)
    conv.load_state_dict({"weight": weight})
    transpose.load_state_dict({"weight": weight})
    z = rng.integers(-5, 6, (2, 4, 7, 6)).astype(float)
    y = rng.integers(-5, 6, conv(z).shape).astype(float)
    back, backward = transpose.forward(y, training=True)
    assert back.shape == z.shape
    assert np.sum(y * conv(z)) == np.sum(back * z)
    np.testing.assert_array_equal(backward(z), conv(z))


def test_a_signal_is_an_image_of_one_row() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 9))
    signal = nn.Conv1d(2, 4, 3, padding="same", dtype="float64", rng=0)
    image = nn.Conv2d(2, 4, (1, 3), padding="same", dtype="float64", rng=0)
    np.testing.assert_array_equal(signal(x), image(x[:, :, None])[:, :, 0])
