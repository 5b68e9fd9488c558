"""The layers of a model, their output shapes and numbers of parameters."""

import pytest

import xbp
from xbp import nn
from xbp.backend import why_unavailable
from xbp.errors import InputError
from xbp.nn.summary import summary


class TestSummary:
    def test_shared_parameters_count_once(self):
        linear = nn.Linear(3, 3, rng=0)
        model = nn.Sequential(linear, nn.Sequential(nn.ReLU(), linear))
        found = summary(model, (3,))
        assert [(row.name, row.parameters) for row in found] == [("0", 12), ("1.0", 0), ("1.1", 0)]

    @pytest.mark.parametrize("name", ["numpy", "array_api_strict"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_follows_the_model(self, name, dtype):
        """Where new arrays are born does not matter; where the model lives does."""
        if why_unavailable(name):
            pytest.skip(why_unavailable(name))
        model = xbp.models.LeNet5(rng=0, dtype=dtype).to(name)
        assert sum(row.parameters for row in summary(model, (1, 28, 28))) == 61706

    def test_one_layer(self):
        assert summary(nn.ReLU(), (2, 3)) == [("", "ReLU", (2, 3), 0)]

    @pytest.mark.parametrize("shape", [3, (0,), (2.5,), (1, 1)])
    def test_wrong_shape(self, shape):
        with pytest.raises(InputError):
            summary(nn.Sequential(nn.Conv2d(1, 1, 3, rng=0)), shape)


def test_a_summary_is_shown_as_a_table() -> None:
    model = nn.Sequential(nn.Conv2d(1, 40, 3, rng=0), nn.Flatten(), nn.Linear(1440, 2, rng=0))
    found = nn.summary(model, (1, 8, 8))
    assert repr(found).splitlines() == [
        "   layer    output      parameters",
        "0  Conv2d   40 × 6 × 6         400",
        "1  Flatten  1440                 0",
        "2  Linear   2                2,882",
        "                             3,282",
    ]
    assert repr(nn.summary(nn.ReLU(), (3,))).splitlines()[1] == "   ReLU   3                0"
