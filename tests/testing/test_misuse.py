"""Wrong arguments of checks, and layers that cannot be checked: one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xbp import nn
from xbp.errors import InputError
from xbp.testing import check_gradients, check_parity

X = np.random.default_rng(0).normal(size=(4, 3))


def linear() -> nn.Linear:
    return nn.Linear(3, 2, rng=0)


def layer(both: Callable[[Any], tuple[Any, Any]]) -> type[nn.Layer]:
    """A class whose forward is `both`."""

    class Own(nn.Layer):
        def forward(
            self, x: Any, *, training: bool = False, rng: Any = None
        ) -> tuple[Any, nn.Backward]:
            return both(x)

    return Own


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "parity of no input": (lambda: check_parity(linear), "needs inputs"),
    "parity of no backend": (lambda: check_parity(linear, X, backends=[]), "got none"),
    "parity of a name": (lambda: check_parity(linear, X, backends="numpy"), "got 'numpy'"),
    "parity of None": (lambda: check_parity(linear, None), "this NoneType"),
    "parity of text": (lambda: check_parity(linear, "x"), "this str|array of str"),
    "parity of a masked array": (
        lambda: check_parity(linear, np.ma.masked_array(X, X > 0)),
        "masked entries",
    ),
    "parity of what makes nothing": (lambda: check_parity(lambda: None, X), "made None"),
    "gradients of what makes a layer": (
        lambda: check_gradients(linear, X),
        "give a layer and its input",
    ),
    "gradients of two inputs": (lambda: check_gradients(linear(), X, X), "a layer takes one"),
    "gradients without a target": (
        lambda: check_gradients(nn.MSELoss(), X),
        "'target'.*a loss, a prediction and a target",
    ),
    "gradients of a forward": (
        lambda: check_gradients(lambda x: (x, lambda dy: dy), X),
        r"must return \(value, gradient\)",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_one_sentence(name: str) -> None:
    call, reason = CALLS[name]
    with pytest.raises(InputError, match=reason):
        call()


def changes_its_input(x: Any) -> tuple[Any, Any]:
    x *= 2
    return x, lambda dy: 2 * dy


def changes_its_input_later(x: Any) -> tuple[Any, Any]:
    def backward(dy: Any) -> Any:
        x[...] = 2 * dy
        return x

    return 2 * x, backward


def changes_its_gradient(x: Any) -> tuple[Any, Any]:
    def backward(dy: Any) -> Any:
        dy *= 2
        return dy

    return 2 * x, backward


IN_PLACE: dict[str, tuple[Any, str]] = {
    "the input": (changes_its_input, "its forward changes its input in place"),
    "the input, later": (changes_its_input_later, "its backward changes its input in place"),
    "the gradient": (changes_its_gradient, "its backward changes its gradient in place"),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_layer_may_not_change_what_it_is_given(name: str) -> None:
    make, reason = IN_PLACE[name]
    given = X.copy()
    with pytest.raises(AssertionError, match=reason):
        check_gradients(layer(make)(), given)
    with pytest.raises(AssertionError, match=reason):
        check_parity(layer(make), given, backends=["numpy"])
    np.testing.assert_array_equal(given, X)


@pytest.mark.parametrize(
    "wrong",
    [lambda dy: None, lambda dy: dy[:1, :], lambda dy: (dy, dy), lambda dy: [[1.0]]],
    ids=["None", "a row", "two", "a list"],
)
def test_parity_looks_at_the_shape_of_a_gradient_on_numpy_too(wrong: Any) -> None:
    with pytest.raises(AssertionError, match=r"of the shape of the input, \(4, 3\)"):
        check_parity(layer(lambda x: (x, wrong)), X, backends=["numpy"])


def test_a_forward_must_repeat_itself() -> None:
    """Otherwise its changing differences would look like a kink."""
    calls = [0]

    def counting(x: Any) -> tuple[Any, Any]:
        calls[0] += 1
        scale = calls[0]
        return scale * x, lambda dy: scale * dy

    with pytest.raises(AssertionError, match="another output when it is run again"):
        check_gradients(layer(counting)(), X)


def test_an_infinite_input_has_no_derivative() -> None:
    with pytest.raises(AssertionError, match="the input is not finite"):
        check_gradients(nn.Tanh(), np.array([1.0, np.inf]))
