"""Analytic against numeric derivatives."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import name_of
from xbp.backend import Backend, asarray, backend_of, dtype_name, library_of, to_numpy
from xbp.errors import InputError
from xbp.nested import tree_leaves, tree_map
from xbp.nn.backward import run_forward
from xbp.nn.statistics import buffers_kept
from xbp.nn.watch import watched
from xbp.testing.helpers import check_instance, check_unchanged, copies, numbered, shown
from xbp.testing.tolerances import LAMBDA, roundoff

Host: TypeAlias = "NDArray[Any]"

STEPS = ((1e-4, 1e-6), (2e-6, 1e-4), (1e-7, 1e-3))
"""Pairs of a step h and the relative error of a derivative that differences must resolve to decide.
With the first h the truncation error, h⁴ f⁽⁵⁾/30, is below the rounding error, some u f/h, and both
are near 1e-12. The second is for kinks within the first step, and jumps of f″; the third for
networks with tens of thousands of ReLUs, some with their kinks within the second step."""

NOISE = LAMBDA * np.sqrt(64) * roundoff("float64")
"""The rounding error of L relative to the sum of its terms' magnitudes: λ√k u for results of k = 64
successive roundings (`xbp.testing.tolerances`)."""

DIRECTIONS = 2
"""Random directions. An error of the gradient is missed if it is nearly orthogonal to all: below a
thousandth of its length along both of two with probability 6e-7."""

IMAGINARY = 1e-20
"""The complex step. Its square vanishes beside 1, without truncation error and cancellation."""


def check_gradients(
    subject: Any, *inputs: Any, rng: int = 0, most: int = 200, tolerance: float = 0.0
) -> None:
    """Check a layer's or a loss's gradients against numeric derivatives, in float64.

    For a layer f the scalar L = Σ r ∘ f(x), with fixed random r, is differentiated with respect
    to x and to every parameter; for a loss, its value with respect to the prediction. Each array
    is moved along random directions s, and ∇L·s must equal the derivative of L(x + ts) at t = 0 by
    central differences of fourth order,

        (8 [L(x + s) - L(x - s)] - [L(x + 2s) - L(x - 2s)]) / 12,

    and, if f can be evaluated at complex numbers and is analytic there (recognized by an equal
    derivative), by the complex step Im L(x + ihs) / h with h = 1e-20, which is exact to rounding
    (Squire & Trapp 1998). Entries are checked one by one only if a direction fails or is
    undecided.

    The check also requires that a gradient has the shape and dtype of its array, and that parameter
    gradients accumulate.

    Parameters
    ----------
    subject : Layer or Loss
        A layer is copied and converted to float64; the original is not touched.
    *inputs : arrays
        For a layer x, or a tuple of arrays if it takes one; for a loss prediction (or a tuple) and
        target. They decide the backend; lists and numbers become arrays on the current one.
        Integers remain integers, without a gradient, for a layer that takes them (tokens,
        positions); else they become floats.
    rng : int, default 0
        Seed of r, of the directions, and of the layer's random masks.
    most : int, default 200
        The most entries of an array, drawn at random, that are checked one by one.
    tolerance : float, default 0
        A relative error allowed in addition to that of the numeric derivative.

    Raises
    ------
    AssertionError
        A gradient is wrong (the message names the array, its worst entry and both derivatives); an
        entry lies on a kink of the function, or is not finite; the layer changes its input in
        place, or its output is not reproducible.
    InputError
        `subject` is no layer or loss, or is a class; there are too many or too few inputs; the
        forward does not return (output, backward), or the loss (value, gradient); an input, a
        parameter or an output is complex, as derivatives here are those of real functions.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> check_gradients(nn.Linear(3, 2, rng=0), np.ones((4, 3)))
    >>> check_gradients(nn.CrossEntropyLoss(), np.zeros((1, 3)), np.array([2]))
    """
    check_instance("check_gradients", subject)
    if not inputs:
        msg = "check_gradients needs inputs, as in check_gradients(layer, x)"
        raise InputError(msg)
    first, *rest = (tree_map(_array, item) for item in inputs)
    for name, part in zip(numbered("the input", first), tree_leaves(first), strict=True):
        _check_real(subject, name, part)
    function = (_Layer if hasattr(subject, "forward") else _Loss)(
        subject, backend_of(tree_leaves(first)[0]), first, rest, rng
    )
    gradients = function.gradients()
    middle = function(function.values)
    assert np.isfinite(middle[0]), f"{shown(subject)}: its forward is not finite for this input"
    for name, array in function.values.items():
        assert np.all(np.isfinite(array)), (
            f"{shown(subject)}: {name} is not finite; choose other values"
        )
    generator = np.random.default_rng(rng)
    for name, array in function.values.items():
        gradient = gradients[name]
        assert gradient.shape == array.shape and gradient.dtype == array.dtype, (
            f"{shown(subject)}: the gradient of {name} has shape {gradient.shape} and dtype "
            f"{gradient.dtype} in place of {array.shape} and {array.dtype}"
        )
        assert np.all(np.isfinite(gradient)), (
            f"{shown(subject)}: the gradient of {name} is not finite at entry "
            f"{_entry(int(np.argmin(np.isfinite(gradient))), array.shape)}"
        )
        check = _Check(function, name, array, gradient, middle, tolerance)
        for _ in range(DIRECTIONS if array.size else 0):
            found = check.along(generator.normal(size=array.shape))
            if found.wrong or not found.decided:
                check.entries(most, generator, found)


def _array(item: Any) -> Any:
    return item if library_of(item) else asarray(item)


def _check_real(subject: Any, name: str, array: Any) -> None:
    dtype = dtype_name(array.dtype)
    if dtype.startswith("complex"):
        msg = (
            f"{shown(subject)}: {name} is {dtype}, and check_gradients knows real functions alone; "
            "give real and imaginary parts as arrays of their own"
        )
        raise InputError(msg)


# --- the functions -------------------------------------------------------------------------------


class _Layer:
    """L = Σ r ∘ f(x) as a function of the values of all variables."""

    def __init__(self, layer: Any, place: Backend, x: Any, rest: list[Any], rng: int) -> None:
        self.original, self.place, self.rng = layer, place, rng
        if rest:
            msg = (
                f"check_gradients got {1 + len(rest)} inputs for {shown(layer)}, and a layer takes "
                "one; give a tuple if it takes that"
            )
            raise InputError(msg)
        for name, parameter in self.named(layer):
            _check_real(layer, f"parameter {name}", parameter.data)
        self.layer = copy.deepcopy(layer).astype("float64").to(place)
        self.inputs = numbered("the input", x)
        self.shape = tree_map(lambda array: None, x)
        hosts = dict(zip(self.inputs, map(to_numpy, tree_leaves(x)), strict=True))
        self.fixed = {name: host for name, host in hosts.items() if host.dtype.kind in "biu"}
        parameters = {name: to_numpy(p.data).copy() for name, p in self.named(self.layer)}
        self.values: dict[str, Host] = {}
        self._set_values(hosts, parameters)
        if self.fixed:
            try:
                self.forward(self.layer, self.values)
            except InputError:  # it wants floats
                self.fixed = {}
                self._set_values(hosts, parameters)
        self.complex: Any = None

    def _set_values(self, inputs: dict[str, Host], parameters: dict[str, Host]) -> None:
        moving = {
            name: x.astype(np.float64) for name, x in inputs.items() if name not in self.fixed
        }
        self.values = moving | parameters

    @staticmethod
    def named(layer: Any) -> list[tuple[str, Any]]:
        return list(layer.named_parameters())

    def forward(self, layer: Any, values: dict[str, Host]) -> tuple[Any, Any]:
        for name, parameter in self.named(layer):
            parameter.data = self.place.asarray(values[name].copy())
        given = values | self.fixed
        parts = iter(self.place.asarray(given[name].copy()) for name in self.inputs)
        self.x = tree_map(lambda _: next(parts), self.shape)
        return run_forward(layer, self.x, training=True, rng=self.rng)

    def weights(self, y: Any) -> list[Host]:
        generator = np.random.default_rng(self.rng)
        return [generator.normal(size=tuple(part.shape)) for part in tree_leaves(y)]

    def __call__(self, values: dict[str, Host]) -> tuple[Any, float]:
        """L and the sum of its terms' magnitudes; complex if a value is."""
        layer = self.layer
        if any(array.dtype.kind == "c" for array in values.values()):
            if self.complex is None:
                self.complex = copy.deepcopy(layer).astype("complex128")
            layer = self.complex
            values = {name: array.astype(complex) for name, array in values.items()}
        y, _ = self.forward(layer, values)
        terms = [to_numpy(p) * r for p, r in zip(tree_leaves(y), self.weights(y), strict=True)]
        return sum(np.sum(t) for t in terms), float(sum(np.sum(np.abs(t)) for t in terms))

    def gradients(self) -> dict[str, Host]:
        named, kept = self.named(self.layer), list(self.layer.named_buffers())
        state = [to_numpy(buffer.data).copy() for _, buffer in kept]
        with watched(self.layer):
            y, backward = self.forward(self.layer, self.values)
        for (name, buffer), value in zip(kept, state, strict=True):
            assert np.array_equal(to_numpy(buffer.data), value, equal_nan=True), (
                f"{self.original!r}: its forward changes {name}; a forward leaves no trace, and "
                "the backward changes what a layer keeps"
            )
        given = self.values | self.fixed
        inputs, outputs = [given[name] for name in self.inputs], copies(y)
        check_unchanged(self.original, "forward", "input", inputs, self.x)
        for part in tree_leaves(y):
            _check_real(self.original, "the output", part)
        r = iter(self.place.asarray(part) for part in self.weights(y))
        dy = tree_map(lambda _: next(r), y)
        for _, parameter in named:
            parameter.zero_grad()
        incoming = copies(dy)
        with buffers_kept(self.layer):
            dx = tree_leaves(backward(dy))
        check_unchanged(self.original, "backward", "input", inputs, self.x)
        check_unchanged(self.original, "backward", "gradient", incoming, dy)
        if len(dx) != len(self.inputs) or any(
            part is None for name, part in zip(self.inputs, dx, strict=True) if name in self.values
        ):
            got = ", ".join(type(part).__name__ for part in dx)
            msg = (
                f"the backward of {self.original!r} must return ∂L/∂x, an array for "
                f"{' and for '.join(self.inputs)}; it returned {got}"
            )
            raise InputError(msg)
        once = {name: to_numpy(p.grad).copy() for name, p in named if p.grad is not None}
        for name, _ in named:
            assert name in once, (
                f"{self.original!r}: its backward gives parameter {name} no gradient"
            )
        again, backward = self.forward(self.layer, self.values)
        for old, new in zip(outputs, copies(again), strict=True):
            assert np.array_equal(old, new, equal_nan=True), (
                f"{self.original!r}: its forward gives another output when it is run again with "
                "the same input, parameters and rng"
            )
        backward(dy)
        for name, parameter in named:
            assert np.allclose(
                to_numpy(parameter.grad), 2 * once[name], rtol=1e-12, atol=0, equal_nan=True
            ), f"{self.original!r}: a second backward does not add to the gradient of {name}"
        found = {n: to_numpy(p) for n, p in zip(self.inputs, dx, strict=True) if n in self.values}
        return found | once


class _Loss:
    """A loss's value as a function of its prediction."""

    def __init__(self, loss: Any, place: Backend, x: Any, rest: list[Any], rng: int) -> None:
        self.original, self.place, self.rest = loss, place, rest
        try:
            inspect.signature(loss).bind(x, *rest)
        except TypeError as error:
            msg = (
                f"check_gradients cannot call {name_of(loss)} with {1 + len(rest)} inputs "
                f"({error}); give a layer and its input, or a loss, a prediction and a target"
            )
            raise InputError(msg) from None
        self.shape = tree_map(lambda array: None, x)
        hosts = (to_numpy(part).astype(np.float64) for part in tree_leaves(x))
        self.values = dict(zip(numbered("the prediction", x), hosts, strict=True))

    def _both(self, values: dict[str, Host]) -> tuple[Any, Any]:
        parts = (self.place.asarray(values[name].copy()) for name in self.values)
        result = self.original(tree_map(lambda _: next(parts), self.shape), *self.rest)
        if not isinstance(result, tuple) or len(result) != 2 or callable(result[1]):
            kind = type(result).__name__
            msg = (
                f"{self.original!r} must return (value, gradient), as losses do; it returned {kind}"
            )
            raise InputError(msg)
        return result

    def __call__(self, values: dict[str, Host]) -> tuple[Any, float]:
        value = self._both(values)[0]
        return to_numpy(value)[()], float(np.abs(to_numpy(value)))

    def gradients(self) -> dict[str, Host]:
        gradients = tree_leaves(self._both(self.values)[1])
        if len(gradients) != len(self.values):
            msg = (
                f"{self.original!r} must return a gradient for {' and for '.join(self.values)}; it "
                f"returned {len(gradients)}"
            )
            raise InputError(msg)
        return dict(zip(self.values, map(to_numpy, gradients), strict=True))


# --- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """Analytic and numeric derivative along a direction, and those from its two sides."""

    analytic: float
    numeric: float
    allowed: float
    decided: bool
    sides: tuple[float, float]
    length: float
    blur: float  # what is allowed, relative to the derivative

    @property
    def error(self) -> float:
        return abs(self.analytic - self.numeric)

    @property
    def wrong(self) -> bool:
        return self.decided and not self.error <= self.allowed


@dataclass
class _Check:
    function: Any
    name: str
    array: Host
    gradient: Host
    middle: tuple[float, float]  # L, and the sum of its terms' magnitudes
    tolerance: float
    analytic: bool = field(default=True, init=False)  # until the complex step proves otherwise

    def along(self, direction: Host) -> _Found:
        blur = np.inf
        for step, coarsest in STEPS:
            s = step * np.maximum(1.0, np.abs(self.array)) * direction
            found = self._difference(s, coarsest)
            if found.decided:
                break
            blur = found.blur
        # A kink at x itself remains, however small the step.
        remains = step == STEPS[-1][0] and not found.blur < blur / 4
        return replace(found, decided=False) if remains else found

    def value(self, array: Host) -> tuple[Any, float]:
        return self.function({**self.function.values, self.name: array})  # type: ignore[no-any-return]

    def _difference(self, s: Host, coarsest: float) -> _Found:
        x, g = self.array, self.gradient
        middle, magnitude = self.middle
        odd, even, linear = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
        for k in (0, 1):
            up, down = x + (k + 1) * s, x - (k + 1) * s
            right, left = self.value(up)[0], self.value(down)[0]
            odd[k], even[k] = float(right - left), float(right + left - 2 * middle)
            linear[k] = float(np.sum(g * (up - down)))  # from x + s as rounded
        # Of a smooth L, odd - linear is e + c for s and 2e + 8c for 2s, where e is the error of
        # the gradient and c a third derivative; even is 4 times as large for 2s. A kink is not.
        first, second = odd[0] - linear[0], odd[1] - linear[1]
        error, third = (8 * first - second) / 6, (second - 2 * first) / 6
        bend = even[1] - 4 * even[0]
        size = float(np.sum(np.abs(g * s)))
        noise = NOISE * (magnitude + float(np.sum(np.abs(g * x))))
        allowed = 4 * noise + 4 * abs(third) + abs(bend) * (abs(bend) > 16 * noise)
        scale = max(size, abs(odd[0]))
        found = _Found(
            analytic=linear[0] / 2,
            numeric=(linear[0] + error) / 2,
            allowed=allowed / 2 + self.tolerance * scale,
            decided=allowed <= coarsest * scale + 8 * noise,
            sides=((odd[0] - even[0]) / 2, (odd[0] + even[0]) / 2),
            length=float(np.max(np.abs(s))),
            blur=allowed / scale if scale else 0.0,
        )
        return self._refined(s, found) if found.decided else found

    def _refined(self, s: Host, found: _Found) -> _Found:
        """The numeric derivative by the complex step, if that agrees with differences."""
        if not self.analytic:
            return found
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # numpy warns of lost imaginary parts
                value = self.value(self.array + 1j * IMAGINARY * s)[0]
            numeric = float(value.imag) / IMAGINARY
        except Exception:
            self.analytic = False
            return found
        size = float(np.sum(np.abs(self.gradient * s)))
        self.analytic = abs(numeric - found.numeric) <= found.allowed + NOISE * size
        if not self.analytic:
            return found
        analytic = float(np.sum(self.gradient * s))
        # g may be a difference of larger terms, of the size of L's change over a unit of x.
        terms = size + float(np.max(np.abs(s))) * self.middle[1]
        allowed = NOISE * terms + self.tolerance * size
        return replace(found, analytic=analytic, numeric=numeric, allowed=allowed)

    def entries(self, most: int, rng: np.random.Generator, along: _Found) -> None:
        """Check entries one by one; raise if one is wrong, or if only the direction `along` was."""
        wrong: dict[tuple[int, ...], _Found] = {}
        subject = shown(self.function.original)
        chosen = list(_entries(self.array.shape, most, rng))
        for entry in chosen:
            direction = np.zeros(self.array.shape)
            direction[entry] = 1.0
            found = self.along(direction)
            left, right = (side / found.length for side in found.sides)
            assert found.decided, (
                f"{subject}: entry {entry} of {self.name} lies on a kink (one-sided derivatives "
                f"{left:.6g} and {right:.6g}); choose other values"
            )
            if found.wrong:
                wrong[entry] = found
        if wrong:
            worst = max(wrong, key=lambda entry: wrong[entry].error / wrong[entry].length)
            result = wrong[worst]
            analytic, numeric = result.analytic / result.length, result.numeric / result.length
            msg = (
                f"{subject}: the gradient of {self.name} is wrong, worst at entry {worst}: "
                f"analytic {analytic:.10g}, numeric {numeric:.10g}, "
                f"off by {result.error / result.length:.3g}"
            )
            raise AssertionError(msg)
        if along.wrong:
            msg = (
                f"{subject}: the gradient of {self.name} is wrong along a random direction: "
                f"analytic {along.analytic:.10g}, numeric {along.numeric:.10g}; none of "
                f"{len(chosen)} entries is to blame alone"
            )
            raise AssertionError(msg)


def _entry(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def _entries(
    shape: tuple[int, ...], most: int, rng: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    size = int(np.prod(shape))
    chosen = np.arange(size) if size <= most else rng.choice(size, most, replace=False)
    for flat in chosen:
        yield _entry(int(flat), shape)
