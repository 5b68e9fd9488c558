"""The gradient check accepts correct gradients, and finds, locates and sizes each kind of fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.testing import check_gradients, gradients


class Scale(nn.Layer):
    """y = s ∘ x, with a fault to choose."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.scale = nn.Parameter(xbp.asarray([1.0, 2.0, 3.0]))

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        s, fault = self.scale.data, self.fault

        def backward(dy: Any) -> Any:
            grad = xp.sum(dy * x, axis=0)
            if fault == "parameter":
                grad = grad * 1.001
            if fault == "nan":
                grad = grad * xp.asarray([1.0, float("nan"), 1.0])
            if fault == "overwrites":
                self.scale.grad = grad
            elif fault != "forgets":
                self.scale.add_grad(grad)
            dx = dy * s
            if fault == "input":
                dx = dx * 1.001
            if fault == "digits":
                dx = dx * (1 + 1e-8)
            if fault == "entry":
                dx[2, 1] *= 1 + 1e-6
            if fault == "dtype":
                dx = xp.astype(dx, xp.float32)
            return dx[0, ...] if fault == "shape" else dx

        return s * x, backward


X = np.random.default_rng(0).normal(size=(4, 3))


def test_right_gradients_pass() -> None:
    check_gradients(Scale(), X)
    check_gradients(nn.MSELoss(), X, X + 1)
    check_gradients(nn.Linear(3, 2, rng=0), [[1, 2, 3]])
    check_gradients(nn.Flatten(), np.zeros((0, 3)))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("parameter", r"the gradient of scale is wrong, worst at entry \(\d,\)"),
        ("nan", r"the gradient of scale is not finite at entry \(1,\)"),
        ("input", "the gradient of the input is wrong"),
        ("digits", "the gradient of the input is wrong"),
        (
            "entry",
            r"input is wrong, worst at entry \(2, 1\): analytic .*, numeric .*, off by 1\.\d",
        ),
        ("overwrites", "does not add"),
        ("forgets", "gives parameter scale no gradient"),
        ("dtype", "dtype float32 in place of"),
        ("shape", r"has shape \(3,\)"),
    ],
)
def test_wrong_gradients_fail(fault: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_gradients(Scale(fault), X)


def test_the_error_is_given_in_numbers() -> None:
    x = np.ones((1, 3))
    r = np.random.default_rng(0).normal(size=(1, 3))
    with pytest.raises(AssertionError) as error:
        check_gradients(Scale("parameter"), x)
    worst = int(np.argmax(np.abs(r)))
    assert f"worst at entry ({worst},): analytic {1.001 * r[0, worst]:.10g}, numeric " in str(
        error.value
    )
    assert f"off by {abs(0.001 * r[0, worst]):.3g}" in str(error.value)


def test_one_wrong_entry_of_hundreds_is_found() -> None:
    """A fault that a random direction finds, outside of the single entries that are checked."""

    class Wrong(nn.Flatten):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x)

            def wrong(dy: Any) -> Any:
                dx = backward(dy) + 0.0  # Flatten gives a view of dy
                dx[0, 17] *= 1.01
                return dx

            return y, wrong

    x = np.random.default_rng(0).normal(size=(1, 400))
    with pytest.raises(AssertionError, match="is wrong along a random direction: analytic"):
        check_gradients(Wrong(), x, most=10)
    with pytest.raises(AssertionError, match=r"worst at entry \(0, 17\)"):
        check_gradients(Wrong(), x, most=400)


def test_a_tolerance_can_be_allowed() -> None:
    check_gradients(Scale("digits"), X, tolerance=1e-6)
    with pytest.raises(AssertionError, match="is wrong"):
        check_gradients(Scale("input"), X, tolerance=1e-6)


# --- kinks ---------------------------------------------------------------------------------------


def test_a_kink_is_named() -> None:
    with pytest.raises(AssertionError, match=r"entry \(0, 1\) of the input lies on a kink"):
        check_gradients(nn.ReLU(), np.array([[1.0, 0.0, -1.0]]))
    with pytest.raises(AssertionError, match=r"\(one-sided derivatives -0\.5 and 0\.5\)"):
        check_gradients(nn.L1Loss(), np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]]))


def test_a_kink_among_many_entries_is_seen() -> None:
    x = np.random.default_rng(0).uniform(0.1, 1, (30, 60))
    x[3, 50] = 0.0
    with pytest.raises(AssertionError, match=r"entry \(3, 50\) of the input lies on a kink"):
        check_gradients(nn.ReLU(), x, most=1800)


@pytest.mark.parametrize("distance", [3e-4, 1e-4, 3e-5, 1e-5, 1e-6, 3e-7])
def test_a_kink_nearby_is_no_kink(distance: float) -> None:
    """The first step crosses it, and the second or the third does not."""
    x = np.array([[1.0, distance, -distance, 0.5]])
    check_gradients(nn.ReLU(), x)

    class Wrong(nn.LeakyReLU):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x)
            return y, lambda dy: backward(dy) * 1.001

    with pytest.raises(AssertionError, match="is wrong"):
        check_gradients(Wrong(), x)


@pytest.mark.parametrize(
    ("subject", "inputs"),
    [
        (nn.ELU(), ([[0.0, 1.0, -1.0]],)),
        (nn.ELU(), ([[0.0]],)),
        (nn.HuberLoss(), ([[1.0, 3.0, 0.0]], [[0.0, 0.5, 0.2]])),
    ],
)
def test_where_only_the_second_derivative_jumps_is_no_kink(subject: Any, inputs: Any) -> None:
    check_gradients(subject, *inputs)


# --- how the numeric derivative is found ---------------------------------------------------------


def numeric(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each direction, whether the complex step was used."""
    believed = []
    refined = gradients._Check._refined

    def spied(self: Any, s: Any, found: Any) -> Any:
        result = refined(self, s, found)
        believed.append(result is not found)
        return result

    monkeypatch.setattr(gradients._Check, "_refined", spied)
    return believed


@pytest.mark.parametrize(
    ("layer", "analytic"),
    [
        (nn.Tanh(), True),
        (nn.Linear(3, 2, rng=0), True),
        (nn.Softmax(), True),
        (nn.Sigmoid(), False),  # computed from |x|, which is silently wrong at complex numbers
        (nn.GELU(), False),  # refuses them
    ],
)
def test_the_complex_step_is_used_where_it_is_right(
    monkeypatch: pytest.MonkeyPatch, layer: Any, analytic: bool
) -> None:
    believed = numeric(monkeypatch)
    check_gradients(layer, X)
    assert believed
    assert set(believed) == {analytic}


def test_with_the_complex_step_thirteen_digits_count() -> None:
    class Almost(nn.Tanh):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x)
            return y, lambda dy: backward(dy) * (1 + 1e-11)

    with pytest.raises(AssertionError, match="is wrong"):
        check_gradients(Almost(), X)


def test_without_it_eight_digits_count() -> None:
    class Almost(nn.Sigmoid):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x)
            return y, lambda dy: backward(dy) * (1 + 1e-8)

    with pytest.raises(AssertionError, match="is wrong"):
        check_gradients(Almost(), X)
    check_gradients(Almost(), X, tolerance=1e-6)


class Norm(nn.Layer):
    """f(x) = |x| at real numbers, but conj(x) x is not analytic: Im f is 0 at complex ones."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        conjugate = xp.conj(x) if xp.isdtype(x.dtype, "complex floating") else x
        return conjugate * x, lambda dy: 2 * x * dy


def test_a_function_that_is_not_analytic_is_not_misjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    believed = numeric(monkeypatch)
    check_gradients(Norm(), X)
    assert not any(believed)


def test_a_few_evaluations_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of evaluations does not grow with the number of entries."""
    calls = []
    forward = nn.Linear.forward

    def counted(self: Any, x: Any, **keywords: Any) -> Any:
        calls.append(1)
        return forward(self, x, **keywords)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    check_gradients(nn.Linear(300, 50, rng=0), np.random.default_rng(0).normal(size=(20, 300)))
    arrays, gradients_twice, middle = 3, 2, 1
    assert len(calls) == arrays * gradients.DIRECTIONS * 5 + gradients_twice + middle


# --- subjects ------------------------------------------------------------------------------------


class Cross(nn.Layer):
    """(a, b) ↦ (a ∘ b, a + b)."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        a, b = x
        return (a * b, a + b), lambda dy: (dy[0] * b + dy[1], self.factor * dy[0] * a + dy[1])


def test_a_layer_may_take_and_give_tuples() -> None:
    check_gradients(Cross(), (X, X[:2, ...].repeat(2, axis=0)))
    with pytest.raises(AssertionError, match=r"the gradient of the input\[1\] is wrong"):
        check_gradients(Cross(1.001), (X, X + 1))


def test_a_gradient_that_must_vanish_may_be_rounding() -> None:
    """Biases before a softmax: the sum of the gradient is 0, so a shared bias has gradient 0."""

    class Common(nn.Layer):
        def __init__(self) -> None:
            self.bias = nn.Parameter(xbp.asarray([0.3]))

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            xp = self.check_input(x)
            y, backward = nn.Softmax().forward(x + self.bias.data)

            def through(dy: Any) -> Any:
                dx = backward(dy) + 0.0  # Flatten gives a view of dy
                self.bias.add_grad(xp.reshape(xp.sum(dx), (1,)))
                return dx

            return y, through

    check_gradients(Common(), X)


def test_a_forward_that_is_not_finite_is_named() -> None:
    with pytest.raises(AssertionError, match="its forward is not finite"):
        check_gradients(nn.Tanh(), np.array([[np.nan]]))


def test_other_backends_are_followed() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        x = xbp.asarray(X)
    check_gradients(nn.Linear(3, 2, rng=0), x)
    with pytest.raises(AssertionError, match="wrong"):
        check_gradients(Scale("parameter"), x)


def test_the_layer_itself_is_not_touched() -> None:
    layer = nn.Linear(3, 2, rng=0)
    before = layer.state_dict()
    check_gradients(layer, X)
    assert layer.weight.grad is None
    assert all(np.array_equal(before[k], v) for k, v in layer.state_dict().items())
    assert layer.weight.data.dtype == np.float32
