"""Analytic against numeric derivatives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.backend import asarray, backend_of, library_of, to_numpy

Host: TypeAlias = "NDArray[np.float64]"

STEP = float(np.finfo(np.float64).eps) ** (1 / 3)
"""h of the central difference: it balances the error of truncation, h²|f‴|/6, against that of
rounding, ε|f|/h; both are then about 4e-11 for f and f‴ of order 1."""

TOLERANCE = 1e-7
"""Three orders above that error, for larger f and f‴; five below a derivative that is 1 % off."""

KINK = 1e-2
"""One-sided differences differ by h|f″|, about 6e-6, where f is smooth."""


def check_gradients(
    subject: Any, *inputs: Any, rng: int = 0, most: int = 200, tolerance: float = TOLERANCE
) -> None:
    """Check a layer's or a loss's gradients against central differences, in float64.

    For a layer f the scalar L = Σ r ∘ f(x), with fixed random r, is differentiated with respect
    to x and to every parameter; for a loss, its value with respect to the prediction. Where an
    array has more than `most` entries, that many are drawn at random. The check also demands that
    a gradient has the shape and dtype of its array, and that parameter gradients add up.

    Parameters
    ----------
    subject : Layer or Loss
        A layer is copied and converted to float64; the original is not touched.
    *inputs : arrays
        For a layer x; for a loss prediction and target. They decide the backend; lists and
        numbers become arrays on the current one.
    rng : int, default 0
        Seed of r, of the entries drawn, and of the layer's random masks.
    most : int, default 200
        How many entries of each array are checked.
    tolerance : float
        Largest error allowed, relative to the larger of 1, |L| and the largest numeric
        derivative of that array.

    Raises
    ------
    AssertionError
        A gradient is wrong, naming the array, its worst entry and both derivatives; or an entry
        lies on a kink of the function, where there is no derivative to compare with.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> check_gradients(nn.Linear(3, 2, rng=0), np.ones((4, 3)))
    >>> check_gradients(nn.CrossEntropyLoss(), np.zeros((1, 3)), np.array([2]))
    """
    first, *rest = (item if library_of(item) else asarray(item) for item in inputs)
    place = backend_of(first)
    if hasattr(subject, "forward"):
        layer = copy.deepcopy(subject).astype("float64").to(place)
        values = {"the input": to_numpy(first).astype(np.float64)}
        values |= {name: to_numpy(p.data).copy() for name, p in layer.named_parameters()}
        run = _layer_function(layer, place, rng)
    else:
        values = {"the prediction": to_numpy(first).astype(np.float64)}
        run = _loss_function(subject, place, rest)
    value, gradients = run(values, True)
    generator = np.random.default_rng(rng)
    for name, array in values.items():
        gradient = gradients[name]
        assert gradient.shape == array.shape and gradient.dtype == array.dtype, (
            f"{subject!r}: the gradient of {name} has shape {gradient.shape} and dtype "
            f"{gradient.dtype} in place of {array.shape} and {array.dtype}"
        )
        entries = list(_entries(array.shape, most, generator))
        numeric = {e: _derivative(subject, run, values, name, e, value) for e in entries}
        scale = max([1.0, abs(value), *(abs(d) for d in numeric.values())])
        error, worst = max(((abs(gradient[e] - numeric[e]), e) for e in entries), default=(0, ()))
        assert error <= tolerance * scale, (
            f"{subject!r}: the gradient of {name} is wrong, worst at entry {worst}: analytic "
            f"{gradient[worst]:.10g}, numeric {numeric[worst]:.10g}"
        )


Run: TypeAlias = "Callable[[dict[str, Host], bool], tuple[float, dict[str, Any]]]"
"""From the values of all variables to L and, if asked for, its gradients."""


def _layer_function(layer: Any, place: Any, rng: int) -> Run:
    weights: list[Host] = []  # r, drawn when the output's shape is known

    def run(values: dict[str, Host], with_gradients: bool) -> tuple[float, dict[str, Any]]:
        parameters = dict(layer.named_parameters())
        for name, parameter in parameters.items():
            parameter.assign(values[name])
        x = place.asarray(values["the input"])
        y, backward = layer.forward(x, training=True, rng=rng)
        if not weights:
            weights.append(np.random.default_rng(rng).normal(size=tuple(y.shape)))
        value = float(np.sum(to_numpy(y) * weights[0]))
        if not with_gradients:
            return value, {}
        dy = place.asarray(weights[0])
        layer_zero_grad(parameters)
        gradients = {"the input": to_numpy(backward(dy))}
        once = {name: to_numpy(p.grad) for name, p in parameters.items() if p.grad is not None}
        for name in parameters:
            assert name in once, f"{layer!r}: its backward gives parameter {name} no gradient"
        layer.forward(x, training=True, rng=rng)[1](dy)
        for name, parameter in parameters.items():
            assert np.allclose(to_numpy(parameter.grad), 2 * once[name], rtol=1e-12, atol=0), (
                f"{layer!r}: a second backward does not add to the gradient of {name}"
            )
        return value, gradients | once

    return run


def layer_zero_grad(parameters: dict[str, Any]) -> None:
    """Forget all gradients."""
    for parameter in parameters.values():
        parameter.zero_grad()


def _loss_function(loss: Any, place: Any, rest: list[Any]) -> Run:
    def run(values: dict[str, Host], with_gradients: bool) -> tuple[float, dict[str, Any]]:
        value, gradient = loss(place.asarray(values["the prediction"]), *rest)
        return float(to_numpy(value)), {"the prediction": to_numpy(gradient)}

    return run


def _derivative(
    subject: Any, run: Run, values: dict[str, Host], name: str, entry: Any, value: float
) -> float:
    """∂L/∂entry by a central difference; both one-sided ones must agree with it."""
    array = values[name].copy()
    h = STEP * max(1.0, abs(float(array[entry])))
    up, down = array[entry] + h, array[entry] - h
    array[entry] = up
    right = run({**values, name: array}, False)[0]
    array[entry] = down
    left = run({**values, name: array}, False)[0]
    derivative = (right - left) / float(up - down)
    jump = abs((right - value) - (value - left)) / h
    assert jump <= KINK * max(1.0, abs(derivative)), (
        f"{subject!r}: entry {entry} of {name} lies on a kink (one-sided derivatives "
        f"{(value - left) / h:.6g} and {(right - value) / h:.6g}); choose other values"
    )
    return derivative


def _entries(shape: tuple[int, ...], most: int, rng: np.random.Generator) -> Iterator[Any]:
    size = int(np.prod(shape))
    chosen = np.arange(size) if size <= most else rng.choice(size, most, replace=False)
    for flat in chosen:
        yield tuple(int(i) for i in np.unravel_index(int(flat), shape))
