"""LeNet-5 in its usual form, and its options."""

import hashlib
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.models import LeNet5

SMALL = np.random.default_rng(0).normal(size=(2, 1, 28, 28))


def kinds(model: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in model]


def test_the_default_keeps_its_names_and_its_weights_bit_for_bit() -> None:
    """Names and initial weights stay, so that files load and a seed gives equal results."""
    state = LeNet5(rng=0).state_dict()
    layers = ["0", "3", "7", "9", "11"]
    assert list(state) == [f"{layer}.{name}" for layer in layers for name in ("weight", "bias")]
    assert sum(array.size for array in state.values()) == 61_706
    digest = hashlib.sha256(b"".join(array.tobytes() for array in state.values())).hexdigest()
    assert digest == "559bde8982cfb91876675822018a0fe910f07b358a0b3c3e463860b3fc85aa96"


def test_activation_and_pooling_are_choices_that_change_no_weight() -> None:
    default, other = LeNet5(rng=0), LeNet5(activation="tanh", pool="average", rng=0)
    assert kinds(other) == [
        {"ReLU": "Tanh", "MaxPool2d": "AvgPool2d"}.get(kind, kind) for kind in kinds(default)
    ]
    assert kinds(default).count("ReLU") == 4 and kinds(default).count("MaxPool2d") == 2
    for name, array in default.state_dict().items():
        assert np.array_equal(array, other.state_dict()[name])
    assert LeNet5(26, rng=0)(SMALL.astype("float32")).shape == (2, 26)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"activation": "sine"}, "activation must be one of 'relu', 'tanh', got 'sine'"),
        ({"pool": "median"}, "pool must be one of 'max', 'average', got 'median'"),
        ({"variant": "1989"}, "variant must be one of '1998', got '1989'"),
        ({"variant": 1998}, "variant must be one of '1998', got 1998"),
        ({"variant": "1998", "activation": "tanh"}, "of its own.*leave"),
        ({"variant": "1998", "pool": "average"}, "of its own.*leave"),
        ({"variant": "1998", "num_classes": 26}, "ten classes.*leave"),
    ],
)
def test_a_bad_choice_gets_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(xbp.errors.InputError, match=sentence) as error:
        LeNet5(**arguments)
    assert "\n" not in str(error.value)
