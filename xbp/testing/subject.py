"""The subject of a parity check: all results of a layer, loss, function or optimizer."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

import xbp.random
from xbp.arguments import described, name_of
from xbp.backend import dtype_name, is_floating, to_numpy, use_backend
from xbp.errors import InputError
from xbp.nested import tree_leaves, tree_map
from xbp.nn.backward import run_forward
from xbp.nn.parameter import Parameter
from xbp.nn.watch import watched
from xbp.testing.finding import Host, Quantities, Quantity
from xbp.testing.helpers import check_unchanged, copies, numbered, replaced, shown


def _unchanged(array: Any) -> Any:
    """The identity, for computations without artificial rounding errors."""
    return array


@dataclass
class Subject:
    """Computes everything that is compared, on one backend, in float32 or float64 arithmetic.

    Parameters are rounded to the dtype under test before they are converted to `arithmetic`, so
    that the float64 truth starts from the same numbers.
    """

    make: Callable[..., Any]
    inputs: list[Any]
    dtype: str
    rng: int

    def __call__(
        self, backend: str, arithmetic: str, wrap: Callable[[Any], Any] = _unchanged
    ) -> Quantities:
        draws: list[Any] = []
        random_bits = vars(xbp.random)["random_bits"]

        thread = threading.get_ident()

        def recorded(*arguments: Any, **keywords: Any) -> Any:
            bits = random_bits(*arguments, **keywords)
            if threading.get_ident() == thread:  # not draws of other threads
                draws.append(bits)
            return bits

        with use_backend(backend) as place, replaced(xbp.random, random_bits=recorded):

            def put(array: Host) -> Any:
                return wrap(place.asarray(as_dtype(array, arithmetic).copy()))

            inputs = [tree_map(put, item) for item in self.inputs]
            if takes_parameters(self.make):
                results = dict(self.optimizer(*inputs))
            elif hasattr(subject := self.make(), "forward"):
                if not inputs:
                    msg = "check_parity needs inputs, as in check_parity(make, x)"
                    raise InputError(msg)
                x = inputs[0] if len(inputs) == 1 else tuple(inputs)
                results = dict(self.layer(subject, x, arithmetic, put, wrap))
            elif callable(subject):
                results = dict(self.function(subject, *inputs))
            else:
                msg = (
                    f"check_parity: {name_of(self.make)} made {described(subject)}; return a layer"
                )
                raise InputError(msg)
        return {(f"random draw {i}", "bits"): bits for i, bits in enumerate(draws)} | results

    def on_host(self, rounded: Callable[[Host], Any] = _unchanged) -> dict[Quantity, Host]:
        """The truth, or with `rounded` a perturbed truth."""
        results = self("numpy", "float64", rounded)
        return {key: to_numpy(value).copy() for key, value in results.items()}

    def layer(
        self, layer: Any, x: Any, arithmetic: str, put: Callable[[Host], Any], wrap: Any
    ) -> Iterator[tuple[Quantity, Any]]:
        named, kept = list(layer.named_parameters()), list(layer.named_buffers())
        for name, parameter in (*named, *kept):
            yield (f"the initial {name}", "bits"), parameter.data
        layer.astype(self.dtype).astype(arithmetic)
        for _, parameter in (*named, *kept):
            if is_floating(parameter.data):
                parameter.data = wrap(parameter.data)
        looked_at = wrap is _unchanged and isinstance(tree_leaves(x)[0], np.ndarray)
        before = copies(x) if looked_at else []
        with watched(layer) if looked_at else nullcontext():
            y, backward = run_forward(layer, x, training=True, rng=self.rng)
        check_unchanged(layer, "forward", "input", before, x)
        noise = np.random.default_rng([self.rng, 1])

        def incoming(part: Any) -> Any:  # a float32, exact in every arithmetic
            return put(noise.normal(size=tuple(part.shape)).astype(np.float32).astype(float))

        dy = tree_map(incoming, y)
        given = copies(dy) if looked_at else []
        dx = backward(dy)
        check_unchanged(layer, "backward", "input", before, x)
        check_unchanged(layer, "backward", "gradient", given, dy)
        shapes = [getattr(part, "shape", None) for part in tree_leaves(dx)]
        wanted = [part.shape if is_floating(part) else None for part in tree_leaves(x)]
        assert not looked_at or shapes == wanted, (
            f"{shown(layer)}: its backward must return ∂L/∂x, of the shape of the input, "
            f"{' and '.join(map(_shape, wanted))}; it returned "
            f"{' and '.join(map(described, tree_leaves(dx)))}"
        )
        for name, part in zip(numbered("the output", y), tree_leaves(y), strict=True):
            yield (name, "forward"), part
        for name, part in zip(numbered("the input", x), tree_leaves(dx), strict=True):
            if part is None:  # of integers
                continue
            yield (f"the gradient of {name}", "backward"), part
        for name, parameter in named:
            if parameter.grad is not None:
                yield (f"the gradient of {name}", "backward"), parameter.grad
        for name, buffer in kept:
            direction = "state" if is_floating(buffer.data) else "bits"
            yield (f"{name} after the backward", direction), buffer.data

    def function(self, function: Any, *inputs: Any) -> Iterator[tuple[Quantity, Any]]:
        result = function(*inputs)
        if _is_loss(result, inputs):
            yield ("the value", "forward"), result[0]
            for name, part in zip(
                numbered("the gradient", result[1]), tree_leaves(result[1]), strict=True
            ):
                yield (name, "backward"), part
            return
        for name, array in zip(numbered("the output", result), tree_leaves(result), strict=True):
            if not inputs and isinstance(array, np.ndarray):  # drawn on the host, for any backend
                array = xbp.asarray(as_dtype(array, self.dtype))
            exact = not inputs or dtype_name(array.dtype) not in ("float32", "float64")
            yield (name, "bits" if exact else "forward"), array

    def optimizer(self, start: Any, *gradients: Any) -> Iterator[tuple[Quantity, Any]]:
        parameters = [Parameter(array) for array in tree_leaves(start)]
        optimizer = self.make(parameters)
        for gradient in gradients:
            for parameter, g in zip(parameters, tree_leaves(gradient), strict=True):
                parameter.zero_grad()
                parameter.add_grad(g)
            optimizer.step()
        after = f"after {len(gradients)} steps"
        states = getattr(optimizer, "state", [{}] * len(parameters))
        names = numbered("the parameter", start)
        for name, parameter, state in zip(names, parameters, states, strict=True):
            yield (f"{name} {after}", "state"), parameter.data
            for key, array in state.items():
                yield (f"{key} of {name} {after}", "state"), array


def takes_parameters(make: Callable[..., Any]) -> bool:
    """Whether `make` requires an argument, and so makes an optimizer."""
    try:
        signature = inspect.signature(make)
    except ValueError:  # some builtins have no signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.default is p.empty and p.kind in positional for p in signature.parameters.values())


def _is_loss(result: Any, inputs: tuple[Any, ...]) -> bool:
    """A 0-d value and a gradient of the first input's shape, or of the shapes of its parts."""
    return (
        isinstance(result, tuple)
        and len(result) == 2
        and getattr(result[0], "ndim", None) == 0
        and _shapes(result[1]) == _shapes(inputs[0])
    )


def _shapes(tree: Any) -> Any:
    return tree_map(lambda part: getattr(part, "shape", ()), tree)


def as_dtype(array: Host, dtype: str) -> Host:
    return array.astype(dtype) if array.dtype.kind == "f" else array


def _shape(shape: Any) -> str:
    return "None for integers" if shape is None else str(tuple(shape))
