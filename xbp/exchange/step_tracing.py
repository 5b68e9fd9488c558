"""Tracing of a training step: forward, loss, backward and update on ndonnx's arrays.

The layers' own backwards and the optimizer's own update rule are run once, so that the graph is the
step of `xbp.training`, with names in place of values for all that changes from step to step.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import EllipsisType
from typing import Any, NamedTuple
from unittest.mock import patch

import ndonnx
import numpy as np
from numpy.typing import NDArray

from xbp.backend import Array, array_namespace, brief, library_of, on_device_of, to_numpy
from xbp.errors import InputError
from xbp.exchange.export import NEW
from xbp.exchange.nodes import without_detours
from xbp.exchange.onnx_graph import INPUT, finished
from xbp.exchange.tracing import argument, culprit, no_values
from xbp.nn import for_parameters
from xbp.nn.backward import run_forward
from xbp.nn.layer import Layer
from xbp.optim import Optimizer
from xbp.random import RandomStream, words_of

TARGET, RATE, STEP = "target", "rate", "step"
LOSS, PREDICTION = "loss", "prediction"
RESERVED = frozenset({INPUT, TARGET, RATE, STEP, LOSS, PREDICTION})
ADVICE = "it must use functions of the Array API alone, and read no value of an array"
OF_MATH = ("sqrt", "exp", "log", "pow", "cos", "sin", "tanh", "expm1", "log1p")


class TracedStep(NamedTuple):
    """The onnx.ModelProto of a step, and the values of its inputs before the first one."""

    file: Any
    start: dict[str, NDArray[Any]]


def traced_step(
    model: Layer, loss: Any, optimizer: Optimizer, x: NDArray[Any], y: NDArray[Any], seed: int
) -> TracedStep:
    """The step for a batch of the shapes and dtypes of x and y.

    Raises
    ------
    InputError
        A layer, the loss, or the optimizer cannot be traced.
    """
    inputs = {INPUT: argument(x.shape, x.dtype), TARGET: argument(y.shape, y.dtype)}
    rates = np.asarray(optimizer.rates_at(optimizer.steps), np.float64)
    rates = rates if optimizer.param_groups[1:] else rates[0]
    start = {RATE: np.asarray(rates), STEP: np.asarray(optimizer.steps, np.int64)}
    inputs |= {name: argument(value.shape, value.dtype) for name, value in start.items()}
    twins, named = _twins(model, loss)
    model, loss, twin = copy.deepcopy((model, loss, optimizer), twins)
    for name, (parameter, value) in named.items():
        start[name], inputs[name] = value, twins[id(parameter)]
    names = {id(p): name for name, p in _parameters(model)}
    for index, parameter in enumerate(twin.parameters):
        parameter.zero_grad()
        twin.state[index] = {}
        for kind, value in _state(optimizer, index).items():
            name = f"{names.get(id(parameter), index)}.{kind}"
            start[name] = value
            twin.state[index][kind] = inputs[name] = argument(value.shape, value.dtype)
    ends = {name: array.unwrap_spox() for name, array in inputs.items()}
    with _recording():
        results = _step(model, loss, twin, inputs, seed)
    changed = {name: array.unwrap_spox() for name, array in inputs.items()}
    constants = {name for name in start if changed[name] is ends[name]} - {RATE, STEP}
    outputs = {name: array.unwrap_spox() for name, array in results.items()}
    outputs |= {
        f"{name}{NEW}": changed[name]
        for name in start
        if name not in constants and name not in (RATE, STEP)
    }
    weights = {name: start.pop(name) for name in constants}
    return TracedStep(finished(ends, outputs, weights), start)


def _twins(model: Layer, loss: Any) -> tuple[dict[int, Any], dict[str, tuple[Array, Any]]]:
    """ndonnx's arrays in place of those of model and loss, by the ids of these; and names."""
    twins: dict[int, Any] = {}
    named: dict[str, tuple[Array, Any]] = {}
    for name, parameter in _parameters(model):
        data = parameter.data
        twins[id(data)] = argument(data.shape, data.dtype)
        named[name] = data, to_numpy(data).copy()
    for value in vars(loss).values() if hasattr(loss, "__dict__") else ():
        if library_of(value) is not None and hasattr(value, "__setitem__"):
            twins[id(value)] = ndonnx.asarray(to_numpy(value))
    return twins, named


def _parameters(model: Layer) -> Iterator[tuple[str, Any]]:
    """Names and parameters, constants and buffers, each once, under its first name."""
    seen: set[int] = set()
    for name, parameter in model._all_names(""):
        if id(parameter.data) not in seen:
            seen.add(id(parameter.data))
            yield name + "_" * (name in RESERVED), parameter


def _state(optimizer: Optimizer, index: int) -> dict[str, NDArray[Any]]:
    """The state of a parameter: what it is, or before a first step what it will start from."""
    state, data = optimizer.state[index], optimizer.parameters[index].data
    if not state:
        (rule,) = (rule for rule, indices in optimizer.rules() if index in indices)
        with on_device_of(data):
            state = rule.start(array_namespace(data), data)
    return {kind: to_numpy(value).copy() for kind, value in state.items()}


def _step(
    model: Layer, loss: Any, optimizer: Optimizer, inputs: dict[str, Array], seed: int
) -> dict[str, Array]:
    """Make the step; the arrays of parameters and state are then those of the next one."""
    stream = RandomStream(seed)
    stream.advance_to(words_of(inputs[STEP]))
    part = model
    try:
        prediction, backward = run_forward(model, inputs[INPUT], training=True, rng=stream)
        part = loss
        value, gradient = loss(prediction, inputs[TARGET])
        part = model
        for_parameters(backward)(gradient)
    except Exception as error:
        who = culprit(model, error) if part is model else repr(part).partition("\n")[0]
        raise _refusal(who, error, ADVICE) from error
    try:
        coefficients = _coefficients(optimizer, inputs[RATE], inputs[STEP])
    except Exception as error:
        advice = (
            "its coefficients must be arithmetic of the rate and the step alone: take another "
            "optimizer, such as Adam"
        )
        raise _refusal(type(optimizer).__name__, error, advice) from error
    try:
        optimizer.step(coefficients)
    except Exception as error:
        raise _refusal(type(optimizer).__name__, error, ADVICE) from error
    return {LOSS: value, PREDICTION: prediction}


def _refusal(who: str, error: Exception, advice: str) -> InputError:
    return InputError(f"{who} cannot be exported to ONNX ({brief(error)}); {advice}")


def _coefficients(optimizer: Optimizer, rate: Array, step: Array) -> list[tuple[Array, ...]]:
    """The coefficients of each parameter's update, computed in the graph in float64."""
    found: list[tuple[Array, ...]] = [()] * len(optimizer.parameters)
    for group, (rule, indices) in enumerate(optimizer.rules()):
        own = rate[group] if rate.ndim else rate
        for index in indices:
            done = step + (optimizer.counts[index] - optimizer.steps)
            t = ndonnx.astype(done, ndonnx.float64) + 1.0
            dtype = optimizer.parameters[index].data.dtype
            found[index] = tuple(
                ndonnx.astype(ndonnx.asarray(number, dtype=ndonnx.float64), dtype)
                for number in rule.all_coefficients(own, t)
            )
    return found


# --- ndonnx in a step ------------------------------------------------------------------------


@contextmanager
def _recording() -> Iterator[None]:
    """Within the block, ndonnx's arrays are changed in place, and those of `math` are recorded.

    ndonnx has no in-place operators, so that Python would make ``p -= g`` a new array, and forget
    it. Views stay copies: a change through one is lost, and found by the comparison with xbp.
    """
    with ExitStack() as stack:
        stack.enter_context(without_detours())
        stack.enter_context(patch.object(ndonnx.Array, "__array__", no_values, create=True))
        stack.enter_context(patch.object(ndonnx.Array, "__setitem__", _assign))
        for name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod", "or", "and", "xor"):
            named = getattr(operator, f"__{name}__")
            change = _changed(named)
            stack.enter_context(patch.object(ndonnx.Array, f"__i{name}__", change, create=True))
        for name in OF_MATH:
            stack.enter_context(patch.object(math, name, _of_either(name)))
        yield


def _changed(operate: Any) -> Any:
    def change(self: Array, other: Any) -> Array:
        self[...] = operate(self, other)
        return self

    return change


def _assign(self: Array, key: Any, value: Any) -> None:
    """``self[key] = value``; a whole array is replaced, without a node."""
    if not isinstance(key, EllipsisType):
        _assign_part(self, key, value)
        return
    value = ndonnx.astype(ndonnx.asarray(value), self.dtype)
    if value.shape != self.shape:
        value = ndonnx.broadcast_to(value, self.shape)
    self._tyarray = value._tyarray


_assign_part = ndonnx.Array.__setitem__


def _of_either(name: str) -> Any:
    """A function of `math` that is recorded for arrays, as `Optimizer.coefficients` may use it."""
    of_numbers, of_arrays = getattr(math, name), getattr(ndonnx, name)

    def function(*args: Any) -> Any:
        recorded = any(isinstance(arg, ndonnx.Array) for arg in args)
        return of_arrays(*args) if recorded else of_numbers(*args)

    return function
