"""Arguments of the checks: tokens, complex numbers, compiled code, classes, too few backends."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import array_namespace
from xbp.errors import InputError
from xbp.testing import OnlyReferenceWarning, check_gradients, check_parity, parity

X = np.random.default_rng(0).normal(size=(4, 3))


class Embedding(nn.Layer):
    """y_n = W[x_n]."""

    def __init__(self, wrong: float = 1.0) -> None:
        self.weight = nn.Parameter(xbp.asarray(np.arange(10.0).reshape(5, 2)))
        self.wrong = wrong

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Any, nn.Backward]:
        xp = self.check_input(x, integers=True)
        weight, add_grad = self.weight.lend()
        labels = xp.arange(weight.shape[0], dtype=x.dtype, device=x.device)
        hot = xp.astype(xp.expand_dims(x, axis=1) == labels, weight.dtype)

        def backward(dy: Any) -> Any:
            add_grad(self.wrong * xp.matmul(hot.T, dy))

        return xp.matmul(hot, weight), backward


def test_tokens_stay_integers() -> None:
    for tokens in (np.array([1, 4, 0]), [1, 4, 0]):
        check_gradients(Embedding(), tokens)
        with pytest.raises(AssertionError, match="gradient of weight is wrong"):
            check_gradients(Embedding(1.5), tokens)


def test_integers_become_floats_for_a_layer_of_numbers() -> None:
    check_gradients(nn.Linear(3, 2, rng=0), [[1, 2, 3]])
    check_gradients(nn.MSELoss(), [[1, 2]], [[3, 4]])


def test_what_is_said_of_integers_and_of_floats() -> None:
    with pytest.raises(
        InputError, match=r"a layer of tokens calls check_input\(x, integers=True\)"
    ):
        nn.Linear(3, 2, rng=0)(np.ones((1, 3), int))
    with pytest.raises(InputError, match="needs integers, such as tokens, got float64"):
        Embedding()(np.ones(3))
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), pytest.raises(xbp.errors.BackendError):
        Embedding().to("numpy")(xbp.asarray([1]))


class Turned(nn.Layer):
    """Complex numbers in the parameter, the input, or the output."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.factor = nn.Parameter(np.ones(1) * (1j if where == "parameter" else 1))

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Any, nn.Backward]:
        array_namespace(x)

        def backward(dy: Any) -> Any:
            self.factor.add_grad(np.sum(dy * x)[None])
            return self.factor.data * dy

        return self.factor.data * x * (1j if self.where == "output" else 1), backward


@pytest.mark.parametrize("where", ["parameter", "input", "output"])
def test_complex_functions_are_refused(where: str) -> None:
    with pytest.raises(InputError, match="check_gradients knows real functions alone"):
        check_gradients(Turned(where), X * (1j if where == "input" else 1))


def test_a_complex_layer_does_not_lose_its_imaginary_parts() -> None:
    with pytest.raises(InputError, match="is complex, and cannot become float32"):
        Turned("parameter").astype("float32")


class Doubled(nn.Layer):
    """With a wrong gradient."""

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Any, nn.Backward]:
        return 2 * x, lambda dy: dy


class Single(nn.Layer):
    """With an output of another dtype."""

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Any, nn.Backward]:
        return np.asarray(x, np.float32), lambda dy: np.asarray(dy, x.dtype)


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_gradients(nn.Sequential(nn.Tanh(), nn.ReLU()), X + 1j),
        lambda: check_gradients(nn.Sequential(nn.Tanh(), nn.ReLU()), X, X),
        lambda: check_gradients(nn.Sequential(nn.Tanh(), nn.ReLU()), X * np.nan),
        lambda: check_gradients(nn.Sequential(nn.Tanh(), Doubled()), X),
        lambda: check_parity(lambda: nn.Sequential(nn.Tanh(), Single()), X, backends=["numpy"]),
    ],
)
def test_what_is_said_of_a_container_is_on_one_line(check: Callable[[], object]) -> None:
    with pytest.raises((InputError, AssertionError), match=r"Sequential\( \(0\): Tanh") as caught:
        check()
    sentence, _, _ = str(caught.value).partition("\nassert ")  # added where pytest rewrites xbp
    assert "\n" not in sentence


GIVEN: dict[str, tuple[Any, str]] = {
    "a class": (nn.Linear, "got the class Linear"),
    "a loss class": (nn.MSELoss, "got the class MSELoss"),
    "a number": (3, "got 3"),
    "nothing": (None, "got None"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_gradients_of_what_is_no_layer(name: str) -> None:
    subject, sentence = GIVEN[name]
    with pytest.raises(InputError, match=sentence):
        check_gradients(subject, X, X)


def test_gradients_without_inputs() -> None:
    with pytest.raises(InputError, match="needs inputs"):
        check_gradients(nn.ReLU())


def test_a_loss_returns_both() -> None:
    with pytest.raises(InputError, match=r"must return \(value, gradient\)"):
        check_gradients(lambda y, t: np.sum((y - t) ** 2), X, 0 * X)


class Silent(nn.Layer):
    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Any, nn.Backward]:
        return x, lambda dy: None


def test_a_backward_returns_a_gradient() -> None:
    with pytest.raises(InputError, match=r"must return ∂L/∂x, .* returned NoneType"):
        check_gradients(Silent(), X)


MADE: dict[str, tuple[Any, str]] = {
    "a layer": (nn.ReLU(), r"as lambda: ReLU\(\); got ReLU"),
    "a network": (nn.Sequential(nn.ReLU()), r"as lambda: Sequential\("),
    "a loss": (nn.MSELoss(), "got MSELoss"),
    "an optimizer": (optim.SGD([nn.Parameter(np.ones(1))], 0.1), "got SGD"),
    "a class that needs arguments": (nn.Linear, r"as lambda: Linear\(…\); got Linear"),
    "an array": (X, "got ndarray"),
}


@pytest.mark.parametrize("name", MADE)
def test_parity_of_what_is_made_already(name: str) -> None:
    make, sentence = MADE[name]
    with pytest.raises(InputError, match=sentence) as caught:
        check_parity(make, X)
    assert "\n" not in str(caught.value)


# --- which backends were compared ---


def test_the_backends_that_were_compared_are_returned() -> None:
    pytest.importorskip("array_api_strict")
    assert check_parity(nn.ReLU, X, backends=["numpy", "array_api_strict"]) == (
        *("numpy", "array_api_strict"),
    )


def test_a_comparison_of_numpy_with_itself_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "available_backends", lambda: ["numpy"])
    with pytest.warns(OnlyReferenceWarning, match="compared numpy with itself") as caught:
        assert check_parity(nn.ReLU, X) == ("numpy",)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_parity(nn.ReLU, X, backends=["numpy"])  # intended


def compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A compiled function like Numba's: checks cannot look into it, and it computes in float32."""

    def call(x: Any) -> Any:
        plain = np.asarray(x).view(np.ndarray)
        return function(plain.astype("float32")).astype(plain.dtype)

    return call


def test_code_whose_roundings_are_not_seen_is_given_a_tolerance() -> None:
    def make() -> Any:
        return compiled(lambda x: np.tanh(x) / 3)

    with pytest.raises(AssertionError, match="rtol=… allows for them"):
        check_parity(lambda: noisy(make()), X, backends=["numpy"], dtypes=["float32"])
    options: dict[str, Any] = {"backends": ["numpy"], "dtypes": ["float32"]}
    check_parity(lambda: noisy(make()), X, rtol=1e-6, **options)
    check_parity(lambda: noisy(make()), X, atol=1e-6, **options)
    with pytest.raises(AssertionError, match="from the truth"):
        check_parity(lambda: noisy(make()), X, rtol=1e-9, **options)


def noisy(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A layer whose compiled code differs between float32 and float64."""
    return lambda x: function(x) * (1 if x.dtype == "float64" else np.float32(1 + 2e-7))
