"""Parity accepts differences of rounding, and finds and names each fault."""

from __future__ import annotations

import linecache
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import initializers, nn, optim, primitives
from xbp.backend import array_namespace
from xbp.testing import check_parity, findings

pytest.importorskip("array_api_strict")
STRICT = ["array_api_strict"]
X = np.random.default_rng(0).normal(size=(4, 3))


class Scale(nn.Layer):
    """y = s ∘ x, with a fault on all backends except numpy; `fault` changes one array."""

    def __init__(self, **faults: Any) -> None:
        self.faults = faults
        self.scale = nn.Parameter(xbp.asarray([1.0, 2.0, 3.0]))

    def spoil(self, name: str, array: Any) -> Any:
        xp = array_namespace(array)
        if xp.__name__ == "numpy" or name not in self.faults:
            return array
        return self.faults[name](xp, array)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)

        def backward(dy: Any) -> Any:
            self.scale.add_grad(self.spoil("parameter", xp.sum(dy * x, axis=0)))
            return self.spoil("dx", dy * self.scale.data)

        return self.spoil("y", self.scale.data * x), backward


def by(factor: float) -> Any:
    return lambda xp, array: array * factor


def test_what_only_rounds_passes() -> None:
    backends = xbp.available_backends()
    check_parity(Scale, X, backends=backends)
    found = findings(Scale, X, backends=backends)
    assert {(f.backend, f.dtype) for f in found} == {
        (name, dtype) for name in backends for dtype in ("float32", "float64")
    }
    assert {(f.quantity, f.direction) for f in found} == {
        ("the initial scale", "bits"),
        ("the output", "forward"),
        ("the gradient of the input", "backward"),
        ("the gradient of scale", "backward"),
    }
    assert all(f.passed and f.units < 0.2 for f in found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["y", "dx", "parameter"])
def test_an_error_of_1e_5_is_found(name: str, dtype: str) -> None:
    """In float32 the error is 170 roundings; a well-conditioned layer has a few."""
    what = {"y": "the output", "dx": "the gradient of the input", "parameter": ".* of scale"}[name]
    with pytest.raises(AssertionError, match=f"{what} is .* from the truth, where rounding exp"):
        check_parity(lambda: Scale(**{name: by(1 + 1e-5)}), X, backends=STRICT, dtypes=[dtype])


@pytest.mark.parametrize(
    "make",
    [lambda e: Linear(1 + e), lambda e: Linear(1, 1 + e)],
    ids=["forward", "backward"],
)
def test_an_error_in_a_sum_of_hundreds_is_found(make: Any) -> None:
    """λ√n u Σ|terms| is 8 · 14 · 6e-8 = 7e-6 times a sum that is some times larger than y."""
    x = np.random.default_rng(0).normal(size=(30, 200))
    check_parity(lambda: make(0), x, backends=STRICT)
    with pytest.raises(AssertionError, match="from the truth"):
        check_parity(lambda: make(1e-4), x, backends=STRICT, dtypes=["float32"])


class Linear(nn.Linear):
    def __init__(self, forward: float, backward: float = 1.0) -> None:
        super().__init__(200, 100, dtype="float64", rng=0)
        self.factors = forward, backward

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        y, backward = super().forward(x)
        if array_namespace(x).__name__ == "numpy":
            return y, backward
        return y * self.factors[0], lambda dy: backward(dy) * self.factors[1]


def in_float32(xp: Any, array: Any) -> Any:
    return xp.astype(xp.astype(array, xp.float32), xp.float64)


@pytest.mark.parametrize("name", ["y", "dx", "parameter"])
def test_float32_passed_off_as_float64_is_found(name: str) -> None:
    with pytest.raises(AssertionError, match="from the truth"):
        check_parity(lambda: Scale(**{name: in_float32}), X, backends=STRICT, dtypes=["float64"])


def test_what_does_not_round_must_be_exact() -> None:
    """Rearranging entries is exact, so a single rounding is an error."""

    class Reversed(nn.Layer):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            xp = self.check_input(x)
            y = xp.flip(x)
            if xp.__name__ != "numpy":
                y = y * (1 + 1e-7)
            return y, xp.flip

    with pytest.raises(AssertionError, match="the output is"):
        check_parity(Reversed, X, backends=STRICT, dtypes=["float32"])


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ({"dx": lambda xp, dx: dx[:, :2]}, r"input has shape \(4, 2\) in place of \(4, 3\)"),
        ({"y": lambda xp, y: xp.astype(y, xp.float64)}, "the output is float64 in place of float"),
        (
            {"dx": lambda xp, dx: xp.asarray(dx, device=xp.Device("CPU_DEVICE"))},
            r"the gradient of the input is on array_api_strict \(.*CPU.*\) in place of .*device1",
        ),
        ({"dx": lambda xp, dx: np.zeros((4, 3))}, r"is on numpy \(cpu\) in place of array_api"),
        ({"y": by(np.inf)}, "is not finite in other places than the truth"),
        ({"y": lambda xp, y: 2 * y if y[0, 0] > 9 else y}, r"waits .* \(test_parity.py, line \d+"),
        ({"y": lambda xp, y: y + "1"}, r"the run fails with TypeError.* \(test_parity.py, line"),
    ],
)
def test_everything_else_that_can_differ_is_named(faults: Any, sentence: str) -> None:
    def make() -> Scale:
        return Scale(**faults)

    with pytest.raises(AssertionError, match=sentence) as error:
        check_parity(make, X, backends=STRICT, dtypes=["float32"])
    assert "on array_api_strict in float32" in str(error.value)
    # The other backends are unaffected, and `findings` raises nothing.
    found = findings(make, X, backends=["numpy", *STRICT], dtypes=["float32"])
    assert {f.backend for f in found if not f.passed} == set(STRICT)


CELL = """
from xbp import nn
import numpy as np

class Tanh(nn.Layer):
    def forward(self, x, *, training=False, rng=None):
        y = np.tanh(x)
        return y, lambda dy: (1 - y * y) * dy
"""


def test_a_mistake_in_a_notebook_is_a_line_of_its_cell() -> None:
    file = "/nowhere/ipykernel_1/2.py"
    linecache.cache[file] = (len(CELL), None, CELL.splitlines(keepends=True), file)
    names: dict[str, Any] = {}
    exec(compile(CELL, file, "exec"), names)
    with pytest.raises(AssertionError, match=r"TypeError.* \(line 7 of a cell\)"):
        check_parity(names["Tanh"], X, backends=STRICT, dtypes=["float32"])
    del linecache.cache[file]


def test_a_gradient_that_is_missing_is_named() -> None:
    class Forgetful(Scale):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x)

            def forget(dy: Any) -> Any:
                dx = backward(dy)
                if self.check_input(x).__name__ != "numpy":
                    self.scale.zero_grad()
                return dx

            return y, forget

    with pytest.raises(AssertionError, match="the gradient of scale exists on numpy only"):
        check_parity(Forgetful, X, backends=STRICT)


def test_initial_weights_that_differ_are_found() -> None:
    seeds = iter(range(99))
    with pytest.raises(AssertionError, match="the initial weight is not the same, bit for bit"):
        check_parity(lambda: nn.Linear(3, 2, rng=next(seeds)), X, backends=STRICT)


def test_random_masks_are_compared_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Dropout:
        return nn.Dropout(0.5)

    found = findings(make, X, backends=STRICT, rng=3)
    assert ("random draw 0", "bits") in {(f.quantity, f.direction) for f in found}
    assert all(f.passed for f in found)
    honest = xbp.random.random_bits

    def one_bit_off(like: Any, shape: Any, **keywords: Any) -> Any:
        bits = honest(like, shape, **keywords)
        return bits if isinstance(like, np.ndarray) else bits ^ 1  # this changes no mask

    monkeypatch.setattr(xbp.random, "random_bits", one_bit_off)
    with pytest.raises(AssertionError, match="random draw 0 is not the same, bit for bit"):
        check_parity(make, X, backends=STRICT, rng=3)


# --- other subjects ------------------------------------------------------------------------------


def test_losses_are_compared() -> None:
    found = findings(nn.MSELoss, X, X + 1, backends=STRICT)
    assert [(f.quantity, f.direction) for f in found[:2]] == [
        ("the value", "forward"),
        ("the gradient", "backward"),
    ]

    class Wrong(nn.MSELoss):
        def __call__(self, prediction: Any, target: Any) -> Any:
            value, gradient = super().__call__(prediction, target)
            return value, gradient * (1 if isinstance(target, np.ndarray) else 1 + 1e-5)

    with pytest.raises(AssertionError, match="the gradient is"):
        check_parity(Wrong, X, X + 1, backends=STRICT, dtypes=["float32"])


def test_functions_of_arrays_are_compared() -> None:
    check_parity(lambda: primitives.erf, X, backends=STRICT)
    bits = findings(
        lambda: lambda x: primitives.random_bits(x, (5,), key=(1, 2), counter=(0, 0, 0)), X
    )
    assert bits
    assert {f.direction for f in bits} == {"bits"}

    def pair(x: Any, y: Any) -> Any:
        strict = float(not isinstance(x, np.ndarray))
        return x + y, array_namespace(x).argmax(x + strict * y)

    check_parity(lambda: pair, X, 0 * X, backends=STRICT)
    with pytest.raises(AssertionError, match=r"the output\[1\] is not the same, bit for bit"):
        check_parity(lambda: pair, X, -2 * X, backends=STRICT)


def test_what_is_drawn_on_the_host_is_compared_bit_for_bit() -> None:
    def draw(seed: int) -> Any:
        return initializers.he_normal((3, 4), np.random.default_rng(seed))

    assert {f.direction for f in findings(lambda: lambda: draw(0))} == {"bits"}
    seeds = iter(range(99))
    with pytest.raises(AssertionError, match="the output is not the same, bit for bit"):
        check_parity(lambda: lambda: draw(next(seeds)), backends=STRICT)


class Decay(optim.Optimizer):
    """v ← g, p ← p - η v, with a fault on all backends except numpy."""

    def __init__(self, parameters: Any, state: float = 1.0, parameter: float = 1.0) -> None:
        super().__init__(parameters, 0.1)
        self.factors = state, parameter

    def update(self, xp: Any, p: Any, g: Any, state: Any, lr: Any, t: int) -> None:
        of_state, of_parameter = (1.0, 1.0) if xp.__name__ == "numpy" else self.factors
        state["v"] *= 0
        state["v"] += of_state * g
        p -= lr * g * of_parameter

    def state_names(self) -> tuple[str, ...]:
        return ("v",)


def test_optimizers_are_compared() -> None:
    w, *gradients = np.random.default_rng(0).normal(size=(4, 2, 3))
    found = findings(Decay, w, *gradients, backends=STRICT)
    assert {(f.quantity, f.direction) for f in found} == {
        ("the parameter after 3 steps", "state"),
        ("v of the parameter after 3 steps", "state"),
    }
    for rule in (optim.SGD, optim.Adam):
        check_parity(lambda parameters, rule=rule: rule(parameters, lr=0.1), w, *gradients)
    check_parity(Decay, (w, w[0]), (w, w[0]), backends=STRICT)
    for faults, what in (((1 + 1e-5, 1), "v of the parameter"), ((1, 1 + 1e-3), "the parameter")):
        with pytest.raises(AssertionError, match=f"the optimizer: .*, {what} after 3 steps is"):
            check_parity(
                lambda parameters, faults=faults: Decay(parameters, *faults),
                w,
                *gradients,
                backends=STRICT,
                dtypes=["float32"],
            )


class Cross(nn.Layer):
    """(a, b) ↦ (a ∘ b, a + b)."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        a, b = x
        xp = self.check_input(a)
        late = 1 if xp.__name__ == "numpy" else self.late
        return (a * b, a + b), lambda dy: (dy[0] * b + dy[1], late * dy[0] * a + dy[1])

    late = 1.0


def test_a_layer_may_take_and_give_tuples() -> None:
    found = findings(Cross, (X, X + 1), backends=STRICT)
    assert [f.quantity for f in found[:4]] == [
        *("the output[0]", "the output[1]"),
        *("the gradient of the input[0]", "the gradient of the input[1]"),
    ]
    assert all(f.passed for f in found)

    class Wrong(Cross):
        late = 1 + 1e-5

    with pytest.raises(AssertionError, match=r"the gradient of the input\[1\] is"):
        check_parity(Wrong, (X, X + 1), backends=STRICT, dtypes=["float32"])


def test_accelerators_are_candidates_not_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """On numpy, the result with accelerators is compared with the reference."""
    from xbp import accelerators, registry

    seen = []

    def make() -> Any:
        seen.append(accelerators.enabled())
        return nn.ReLU()

    monkeypatch.setattr(registry, "_allowed", True)
    check_parity(make, X, backends=["numpy"], dtypes=["float32"])
    assert seen.count(True) == 1  # the candidate's
    assert not seen[0]  # the truth's


def test_what_fails_on_numpy_itself_is_raised() -> None:
    with pytest.raises(xbp.errors.InputError, match=r"\(…, 3\)"):
        findings(lambda: nn.Linear(3, 2, rng=0), X[:, :2])
