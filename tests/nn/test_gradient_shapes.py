"""Gradients with another shape than the output, refused by each backward in one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import Backend
from xbp.errors import InputError
from xbp.testing import cases

X = np.ones((3, 2))
LAYERS = {
    "Linear": lambda: nn.Linear(2, 2, dtype="float64", rng=0),
    "Tanh": nn.Tanh,  # which would broadcast
    "Sequential": lambda: nn.Sequential(nn.Tanh(), nn.Sigmoid()),
}
WRONG: dict[str, Any] = {
    "a row": np.ones((1, 2)),
    "a column": np.ones((3, 1)),
    "transposed": np.ones((2, 3)),
    "more axes": np.ones((1, 3, 2)),
    "none": np.ones((0, 2)),
    "0-d": np.ones(()),
}
NO_ARRAYS: dict[str, Any] = {"a number": 1.0, "a list": [[1.0, 1.0]] * 3, "None": None}


@pytest.mark.parametrize("way", [lambda b: b, nn.for_parameters], ids=["all", "parameters"])
@pytest.mark.parametrize("wrong", [*WRONG, *NO_ARRAYS])
@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_of_another_shape_is_refused(
    name: str, wrong: str, way: Any, backend: Backend
) -> None:
    layer = LAYERS[name]().to(backend)
    _, backward = layer.forward(backend.asarray(X))
    dy = backend.asarray(WRONG[wrong]) if wrong in WRONG else NO_ARRAYS[wrong]
    with pytest.raises(InputError, match=r"as the gradient of an output of shape \(3, 2\)"):
        way(backward)(dy)


@pytest.mark.parametrize(
    "line",
    [line for line in cases.LAYERS if not line.title.endswith("with states")],  # no public layers
    ids=lambda line: line.title or line.name,
)
def test_every_layer_refuses_a_gradient_of_another_shape(line: Any) -> None:
    """A gradient with one row, which most formulas would broadcast."""
    case = next(iter(line.cases()))
    y, backward = case.make().forward(*case.inputs(), training=True, rng=0)
    with pytest.raises(InputError, match="as the gradient of an output of shape"):
        backward(np.ones((1, *y.shape[1:])))


@pytest.mark.parametrize("dx", [None, np.ones((1, 2)), (X, X)], ids=["None", "shape", "two"])
def test_the_layer_before_says_what_a_backward_of_ones_own_returned(dx: Any) -> None:
    class Own(nn.Layer):
        def forward(
            self, x: Any, *, training: bool = False, rng: Any = None
        ) -> tuple[Any, nn.Backward]:
            return x, lambda dy: dx

    model = nn.Sequential(LAYERS["Linear"](), Own())
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))
    with pytest.raises(InputError, match=r"as the gradient of an output of shape \(3, 2\)"):
        trainer.fit(X, X, epochs=1)


def test_a_loss_whose_target_has_an_axis_more_is_noticed() -> None:
    """y of shape (3, 1) minus t of shape (3,) would be a matrix (3, 3) without an error."""
    model = nn.Sequential(nn.Linear(2, 1, dtype="float64", rng=0), nn.Sigmoid())
    y, backward = model.forward(X, training=True)
    with pytest.raises(InputError, match=r"ndarray of shape \(3, 3\) as the gradient"):
        backward(2 * (y - np.ones(3)))
