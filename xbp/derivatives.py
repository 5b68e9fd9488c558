"""Derivatives beyond the gradient of a loss: for the input, of each sample, Jacobians, H v.

All of them run forwards and backwards of a model in inference, and leave the gradients of its
parameters as they were.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from xbp.arguments import described
from xbp.backend import Array, Namespace, array_namespace, on_device_of, to_numpy
from xbp.errors import InputError
from xbp.nn.backward import run_forward
from xbp.nn.conv import Conv2d
from xbp.nn.layer import Layer
from xbp.nn.linear import Linear
from xbp.nn.losses import Loss
from xbp.nn.parameter import Parameter
from xbp.nn.sequential import is_sequential
from xbp.primitives.images import pad2d, windows

__all__ = [
    "hessian_vector",
    "input_gradient",
    "jacobian",
    "jacobian_columns",
    "jacobian_vector",
    "per_sample_gradients",
]


def input_gradient(model: Layer, loss: Loss, x: Array, target: Array) -> tuple[Array, Array]:
    """The loss, and ∂L/∂x: how it changes with the data.

    Parameters
    ----------
    model : Layer
    loss : Loss
    x, target : array

    Returns
    -------
    value : 0-d array
    gradient : array of the shape of `x`

    Examples
    --------
    A step uphill for the loss, as in an adversarial example (Goodfellow et al. 2015):

    >>> import numpy as np
    >>> from xbp import nn
    >>> model, loss = nn.Linear(2, 2, dtype="float64", rng=0), nn.CrossEntropyLoss()
    >>> x, y = np.array([[1.0, 2.0]]), np.array([0])
    >>> value, gradient = input_gradient(model, loss, x, y)
    >>> bool(input_gradient(model, loss, x + 0.1 * np.sign(gradient), y)[0] > value)
    True
    """
    with gradients_kept(model):
        y, backward = run_forward(model, x)
        value, gradient = loss(y, target)
        return value, backward(gradient)


def jacobian(layer: Layer, x: Array, *, by_sample: bool = False) -> Array:
    """∂y/∂x, one backward for each entry of the output.

    Parameters
    ----------
    layer : Layer
    x : array
    by_sample : bool, default False
        Whether each row of y depends on the row of x alone, as it does in inference for every layer
        of xbp. Then the Jacobians of all samples take as many backwards as one.

    Returns
    -------
    array (*shape of y, *shape of x); by sample (N, *shape of y[0], *shape of x[0])

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> jacobian(nn.Tanh(), np.zeros(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    >>> jacobian(nn.Linear(3, 2, rng=0), np.ones((5, 3), np.float32), by_sample=True).shape
    (5, 2, 3)
    """
    with gradients_kept(layer), on_device_of(x):
        xp = array_namespace(x)
        y, backward = run_forward(layer, x)
        shape = tuple(y.shape[1:]) if by_sample else tuple(y.shape)
        rows = []
        for index in _indices(shape):
            dy = xp.zeros_like(y)
            dy[(slice(None), *index) if by_sample else (*index, ...)] = 1.0
            rows.append(backward(dy))
        if not by_sample:
            return xp.reshape(xp.stack(rows), (*shape, *x.shape))
        return xp.reshape(xp.stack(rows, axis=1), (x.shape[0], *shape, *x.shape[1:]))


def jacobian_vector(layer: Layer, x: Array, v: Array) -> tuple[Array, float]:
    """J v, the derivative of the output along v, by differences, with an estimate of the error.

    A backward gives Jᵀδ. The exact J v would need all rows of J, one backward for each entry of the
    output: ``jacobian``. This takes eight forwards in float64 instead,

        J v = (8 [f(x + hv) - f(x - hv)] - [f(x + 2hv) - f(x - 2hv)]) / 12h + O(h⁴),

    for a step h and for h/2. The second is returned, and the largest difference of the two
    estimates its error where f is smooth. A kink (ReLU) between the points makes it large.

    Parameters
    ----------
    layer : Layer
        It is copied and converted to float64; the original is not touched.
    x : array
        Of floating-point numbers.
    v : array of the shape of `x`

    Returns
    -------
    product : array of the shape of y
        In float64.
    error : float
        An estimate of the largest error of an entry.

    Raises
    ------
    InputError
        v has another shape, is not finite, or is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> product, error = jacobian_vector(nn.Tanh(), np.zeros(2), np.array([1.0, -3.0]))
    >>> product.round(9).tolist(), error < 1e-9
    ([1.0, -3.0], True)
    """
    if tuple(v.shape) != tuple(x.shape):
        msg = f"v needs the shape of x, {tuple(x.shape)}, got {described(v)}"
        raise InputError(msg)
    layer = copy.deepcopy(layer).astype("float64")
    xp = array_namespace(x)
    x, v = xp.astype(x, xp.float64), xp.astype(v, xp.float64)
    found, error = _along(lambda step: {"y": layer(x + step * v)}, [v])
    return found["y"], error


def jacobian_columns(layer: Layer, x: Array, *, by_sample: bool = False) -> tuple[Array, float]:
    """∂y/∂x as `jacobian`, column by column: a `jacobian_vector` for each entry of the input.

    For outputs of many entries and inputs of few. With `by_sample` all samples share the forwards.

    Parameters
    ----------
    layer, x, by_sample
        As for `jacobian`.

    Returns
    -------
    jacobian : array (*shape of y, *shape of x); by sample (N, *shape of y[0], *shape of x[0])
        In float64.
    error : float
        An estimate of the largest error of an entry.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer, x = nn.Linear(2, 500, rng=0), np.ones((5, 2), np.float32)
    >>> columns, error = jacobian_columns(layer, x, by_sample=True)
    >>> columns.shape, error < 1e-9
    ((5, 500, 2), True)
    """
    with on_device_of(x):
        xp = array_namespace(x)
        columns, errors = [], []
        shape = tuple(x.shape[1:]) if by_sample else tuple(x.shape)
        for index in _indices(shape):
            v = xp.zeros_like(x, dtype=xp.float64)
            v[(slice(None), *index) if by_sample else (*index, ...)] = 1.0
            column, error = jacobian_vector(layer, x, v)
            columns.append(column)
            errors.append(error)
        return xp.reshape(xp.stack(columns, axis=-1), (*columns[0].shape, *shape)), max(errors)


def _along(
    function: Callable[[float], dict[str, Array]], directions: Iterable[Array]
) -> tuple[dict[str, Array], float]:
    """The derivative of a function of a step at 0, and an estimate of its largest error.

    The step is at most `STEP` in an entry of the directions.

    Raises
    ------
    InputError
        All directions are 0, or one is not finite.
    """
    directions = list(directions)
    xp = array_namespace(directions[0])
    size = max(float(to_numpy(xp.max(xp.abs(array)))) for array in directions)
    if not (size > 0 and math.isfinite(size)):
        msg = "v must be finite, and not 0"
        raise InputError(msg)

    def difference(h: float) -> dict[str, Array]:
        one, minus, two, less = (function(k * h) for k in (1, -1, 2, -2))
        return {
            name: (8 * (one[name] - minus[name]) - (two[name] - less[name])) / (12 * h)
            for name in one
        }

    with on_device_of(directions[0]):
        h = STEP / size
        coarse, fine = difference(h), difference(h / 2)
        error = max(float(to_numpy(xp.max(xp.abs(fine[name] - coarse[name])))) for name in fine)
    return fine, error


def _indices(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All places of an array, in row-major order."""
    if not shape:
        yield ()
        return
    for first in range(shape[0]):
        for rest in _indices(shape[1:]):
            yield (first, *rest)


def per_sample_gradients(model: Layer, loss: Loss, x: Array, target: Array) -> dict[str, Array]:
    """The gradient that each sample would have as a batch of its own.

    For `Linear` and `Conv2d` in a Sequential these are products of the layer's input and ∂L/∂y,
    sample by sample, after one backward for all: ∂ℓ_n/∂W = δ_nᵀ x_n. Any other layer with
    parameters runs once for each sample.

    Parameters
    ----------
    model : Layer
        In inference: batch normalization uses its running statistics.
    loss : Loss
    x : array (N, …)
    target : array (N, …)

    Returns
    -------
    dict of str to array (N, *shape of the parameter)

    Raises
    ------
    InputError
        As many targets as samples are needed.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> model = nn.Linear(2, 1, dtype="float64", rng=0)
    >>> x, t = np.array([[1.0, 0.0], [0.0, 2.0]]), np.zeros((2, 1))
    >>> {name: g.shape for name, g in per_sample_gradients(model, nn.MSELoss(), x, t).items()}
    {'weight': (2, 1, 2), 'bias': (2, 1)}
    """
    if x.shape[0] != target.shape[0]:
        got = f"got {target.shape[0]} for {described(x)}"
        msg = f"per_sample_gradients needs a target a sample, {got}"
        raise InputError(msg)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with gradients_kept(model), on_device_of(x):
        xp, steps = array_namespace(x), []
        for layer in _flat(model):
            y, backward = run_forward(layer, x)
            steps.append((layer, x, backward))
            x = y
        parts = [loss(x[n : n + 1, ...], target[n : n + 1, ...])[1] for n in range(x.shape[0])]
        delta = xp.concat(parts, axis=0)
        found: dict[str, Array] = {}
        for layer, given, backward in reversed(steps):
            for parameter, gradient in _of_layer(xp, layer, given, delta):
                name = names[id(parameter)]
                found[name] = found[name] + gradient if name in found else gradient
            delta = backward(delta)
    return {name: found[name] for name in names.values() if name in found}


def _flat(model: Layer) -> Iterator[Layer]:
    """The layers of nested Sequentials, in order."""
    if not is_sequential(model):
        yield model
        return
    for layer in model.layers:
        yield from _flat(layer)


def _of_layer(
    xp: Namespace, layer: Layer, x: Array, delta: Array
) -> Iterator[tuple[Parameter, Array]]:
    """Each parameter of a layer, and its gradients (N, …)."""
    if type(layer) is Linear:
        yield from _of_linear(xp, layer, x, delta)
    elif type(layer) is Conv2d:
        yield from _of_convolution(xp, layer, x, delta)
    elif parameters := layer.parameters():
        rows: list[list[Array]] = []
        for n in range(x.shape[0]):
            for parameter in parameters:
                parameter.zero_grad()
            _, backward = run_forward(layer, x[n : n + 1, ...])
            backward(delta[n : n + 1, ...])
            rows.append([_or_zeros(parameter) for parameter in parameters])
        for parameter, gradients in zip(parameters, zip(*rows, strict=True), strict=True):
            yield parameter, xp.stack(gradients)


def _or_zeros(parameter: Parameter) -> Array:
    if parameter.grad is None:
        return array_namespace(parameter.data).zeros_like(parameter.data)
    return parameter.grad


def _of_linear(
    xp: Namespace, layer: Linear, x: Array, delta: Array
) -> Iterator[tuple[Parameter, Array]]:
    """∂ℓ_n/∂W = δ_nᵀ x_n and ∂ℓ_n/∂b = Σ δ_n, over the rows of a sample."""
    x = xp.reshape(x, (x.shape[0], -1, x.shape[-1]))
    delta = xp.reshape(delta, (x.shape[0], -1, delta.shape[-1]))
    if layer.weight.trainable:
        yield layer.weight, xp.matmul(xp.matrix_transpose(delta), x)
    if layer.bias is not None and layer.bias.trainable:
        yield layer.bias, xp.sum(delta, axis=1)


def _of_convolution(
    xp: Namespace, layer: Conv2d, x: Array, delta: Array
) -> Iterator[tuple[Parameter, Array]]:
    """∂ℓ_n/∂W = δ_n U_nᵀ for each place of the kernel, as a product of (out, OH·OW) and (in, …)."""
    options = layer.operation().options
    kernel, (n, _, oh, ow), groups = layer.weight.shape[2:], delta.shape, layer.groups
    out, channels = layer.weight.shape[:2]
    padded = pad2d(x, options["padding"])
    d = xp.reshape(delta, (n, groups, out // groups, oh * ow))
    dW = xp.empty((n, *layer.weight.shape), dtype=x.dtype, device=x.device)
    dilation = options.get("dilation", (1, 1))
    for i, j, rows, columns in windows(
        (kernel[0], kernel[1]), options["stride"], (oh, ow), dilation
    ):
        seen = xp.reshape(padded[:, :, rows, columns], (n, groups, channels, oh * ow))
        share = xp.matmul(d, xp.matrix_transpose(seen))
        dW[:, :, :, i, j] = xp.reshape(share, (n, out, channels))
    if layer.weight.trainable:
        yield layer.weight, dW
    if layer.bias is not None and layer.bias.trainable:
        yield layer.bias, xp.sum(delta, axis=(2, 3))


def hessian_vector(
    model: Layer, loss: Loss, x: Array, target: Array, v: Mapping[str, Array]
) -> tuple[dict[str, Array], float]:
    """H v, the derivative of the gradient along v, by differences, with an estimate of the error.

    With g the gradient of the loss with respect to all parameters p,

        H v = (8 [g(p + hv) - g(p - hv)] - [g(p + 2hv) - g(p - 2hv)]) / 12h + O(h⁴),

    computed in float64, for a step h and for h/2. The second is returned; the largest difference of
    the two estimates its error, of truncation and of rounding alike, where the loss is smooth. A
    kink (ReLU) between the points makes it large.

    Parameters
    ----------
    model : Layer
        It is copied and converted to float64; the original is not touched.
    loss : Loss
    x, target : array
    v : mapping of str to array
        A direction for each parameter, by the names of `named_parameters`.

    Returns
    -------
    product : dict of str to array
        In float64.
    error : float
        An estimate of the largest error of an entry.

    Raises
    ------
    InputError
        A name or a shape does not fit, or v is 0.

    Examples
    --------
    For a linear model with squared error, H is constant: here 2 x² = 18.

    >>> import numpy as np
    >>> from xbp import nn
    >>> model = nn.Linear(1, 1, bias=False, rng=0)
    >>> x, t = np.array([[3.0]]), np.array([[1.0]])
    >>> product, error = hessian_vector(model, nn.MSELoss(), x, t, {"weight": np.array([[1.0]])})
    >>> round(float(product["weight"][0, 0]), 6), error < 1e-6
    (18.0, True)
    """
    model = copy.deepcopy(model).astype("float64")
    xp = array_namespace(x)
    if xp.isdtype(x.dtype, "real floating"):
        x = xp.astype(x, xp.float64)
    own = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
    if {name: tuple(array.shape) for name, array in v.items()} != shapes:
        msg = f"v needs an array for each parameter: {shapes}"
        raise InputError(msg)
    start = {name: parameter.data for name, parameter in own.items()}
    along = {name: xp.astype(array, xp.float64) for name, array in v.items()}

    def gradient(step: float) -> dict[str, Array]:
        for name, parameter in own.items():
            parameter.data = start[name] + step * along[name]
            parameter.zero_grad()
        y, backward = run_forward(model, x)
        backward(loss(y, target)[1])
        return {name: _or_zeros(parameter) for name, parameter in own.items()}

    return _along(gradient, along.values())


STEP = 1e-3
"""The largest change of an entry. Then h⁴ and the rounding error u/h are both near 1e-12."""


@contextmanager
def gradients_kept(model: Layer) -> Iterator[None]:
    """Within the block the parameters have no gradients; afterwards those from before."""
    parameters = model.parameters()
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.zero_grad()
    try:
        yield
    finally:
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad
