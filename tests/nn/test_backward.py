"""The two parts of a backward: the parameters' gradients, and ∂L/∂x on request."""

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.nn.backward import TwoPartBackward


def test_each_gradient_goes_to_its_own_function_and_none_drops_it() -> None:
    said, got = list[Any](), list[Any]()

    def gradients(dy: Any, wants_dx: bool) -> tuple[Any, ...]:
        said.append(wants_dx)
        return (2 * dy if wants_dx else None), 3 * dy, 5 * dy

    backward = TwoPartBackward(gradients, None, got.append, check=said.append)
    assert (backward(1), said, got) == (2, [1, True], [5])
    assert nn.for_parameters(backward)(10) is None
    assert (said, got) == ([1, True, 10, False], [5, 50])


def test_a_gradient_without_a_function_to_take_it_is_an_error() -> None:
    backward = TwoPartBackward(lambda dy, wants_dx: (dy, dy, dy), None)
    with pytest.raises(ValueError, match=r"longer|shorter"):
        backward(1)


@pytest.mark.parametrize("backend", xbp.available_backends())
@pytest.mark.parametrize("parted", [False, True])
def test_a_users_layer_may_have_a_backward_in_two_parts_or_not(parted: bool, backend: str) -> None:
    class Twice(nn.Layer):
        def forward(
            self, x: Any, *, training: bool = False, rng: Any = None
        ) -> tuple[Any, nn.Backward]:
            def backward(dy: Any) -> Any:
                asked.append(True)
                return 2 * dy

            def gradients(dy: Any, wants_dx: bool) -> tuple[Any]:
                asked.append(wants_dx)
                return (2 * dy,)

            return 2 * x, TwoPartBackward(gradients) if parted else backward

    asked = list[bool]()
    with xbp.use_backend(backend):
        x = xbp.asarray(np.ones(3))
    for model in (Twice(), nn.Sequential(Twice()), nn.Sequential(Twice(), nn.Tanh())):
        asked.clear()
        y, backward = model.forward(x)
        assert backward(y).shape == (3,)
        nn.for_parameters(backward)(y)
        assert asked == [True, not parted]
