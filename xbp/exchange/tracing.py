"""Tracing: one call of a model on ndonnx's arrays, which add a node for each operation."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn
from unittest.mock import patch

import ndonnx
from numpy.typing import NDArray

from xbp.backend import Array, brief, dtype_name, to_numpy
from xbp.errors import InputError
from xbp.exchange.nodes import without_detours
from xbp.exchange.onnx_graph import BATCH, INPUT, OUTPUT, finished
from xbp.nn.layer import Layer
from xbp.nn.operation import OperationChain
from xbp.primitives.chain import chain


def traced(
    model: Layer, x: NDArray[Any], batch_size: int | None, weights_as_inputs: bool = False
) -> tuple[Any, dict[str, NDArray[Any]]]:
    """``model(x)`` as an onnx.ModelProto, for x of this shape and dtype with any batch size.

    Returns it with the values of its inputs other than x.

    Raises
    ------
    InputError
        A layer cannot be traced.
    """
    try:
        return _traced(model, x, BATCH if batch_size is None else batch_size, weights_as_inputs)
    except _CannotBeTracedError as error:
        advice = "it must use functions of the Array API alone, and read no value of an array"
        if batch_size is None and _works(model, x):
            advice = "it must know the size of the batch: give batch_size (--batch-size)"
        msg = f"{error.layer} cannot be exported to ONNX ({brief(error.reason)}); {advice}"
        raise InputError(msg) from error.reason


class _CannotBeTracedError(Exception):
    def __init__(self, layer: str, reason: Exception) -> None:
        self.layer, self.reason = layer, reason


def _works(model: Layer, x: NDArray[Any]) -> bool:
    """Whether the model can be traced with the batch size of x."""
    try:
        _traced(model, x, len(x))
    except _CannotBeTracedError:
        return False
    return True


def _traced(
    model: Layer, x: NDArray[Any], batch: int | str, weights_as_inputs: bool = False
) -> tuple[Any, dict[str, NDArray[Any]]]:
    inputs = {INPUT: argument((batch, *x.shape[1:]), x.dtype)}
    weights, twins = {}, {}
    for name, p in model._all_names(""):
        if id(p.data) not in twins:  # a shared parameter has its first name
            name += "_" * (name in (INPUT, OUTPUT))
            twins[id(p.data)] = inputs[name] = argument(p.shape, p.data.dtype)
            weights[name] = to_numpy(p.data)
    twin = copy.deepcopy(model, twins)  # the same layers, with ndonnx arrays as parameters
    try:
        with without_detours(), patch.object(ndonnx.Array, "__array__", no_values, create=True):
            y = twin(inputs[INPUT])
        end = y.unwrap_spox()
    except Exception as error:
        raise _CannotBeTracedError(culprit(twin, error), error) from error
    constants, others = ({}, weights) if weights_as_inputs else (weights, {})
    ends = {name: array.unwrap_spox() for name, array in inputs.items()}
    return finished(ends, {OUTPUT: end}, constants), others


def argument(shape: tuple[int | str, ...], dtype: Any) -> Array:
    return ndonnx.argument(shape=shape, dtype=getattr(ndonnx, dtype_name(dtype)))


def no_values(*_: Any, **__: Any) -> NoReturn:
    """Stands in for ``__array__``, without which numpy would make an array of objects."""
    msg = "values are asked for, where there are only shapes"
    raise TypeError(msg)


def culprit(model: Layer, error: Exception) -> str:
    """The innermost layer in which an error arose, and its name in the model."""
    names = {id(layer): name for name, layer in _layers(model)}
    found: Layer = model
    joined: Any = None  # the innermost chain of operation layers
    for frame, _ in traceback.walk_tb(error.__traceback__):
        layer: Any = frame.f_locals.get("self")
        if isinstance(layer, OperationChain):
            joined = layer
        elif frame.f_code is chain.reference.__code__:
            layer = joined.layers[frame.f_locals["index"]]
        found = layer if id(layer) in names else found
    name, shown = names[id(found)], repr(found).partition("\n")[0].removesuffix("(")
    return f"{shown} at {name!r}" if name else shown


def _layers(layer: Layer, name: str = "") -> Iterator[tuple[str, Layer]]:
    """`layer` and all layers in it, named as in state dicts."""
    yield name, layer
    for key, child in layer.children():
        yield from _layers(child, f"{name}.{key}".lstrip("."))
