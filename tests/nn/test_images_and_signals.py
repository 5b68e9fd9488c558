"""Layers of images and signals against PyTorch in float64, with options drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xbp import nn
from xbp.errors import InputError

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


def adaptive_avg_pool2d(r: Rng) -> Drawn:
    return ((r.number(1, 9), r.number(1, 9) if r.yes() else None),), {}, (2, 3, *r.pair(1, 12))


def upsample(r: Rng) -> Drawn:
    """Downwards, too."""
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
    """And weights go there and back."""
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


IMAGES = np.ones((1, 2, 3, 4))
REFUSED: list[tuple[Callable[[], Any], str]] = [
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
        lambda: nn.Conv2d(1, 1, 3, dilation=3, rng=0)(np.ones((1, 1, 6, 9), np.float32)),
        "Conv2d(1, 1, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(3, 3), "
        "bias=True) does not fit into images of 6 × 9 pixels",
    ),
    (
        lambda: nn.MaxPool2d(3, padding="same"),
        "padding must be an integer of at least 0, got 'same'",
    ),
]


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
