"""Weights in safetensors files, which other programs can read, and which run no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from xbp.backend import is_floating
from xbp.errors import InputError
from xbp.models.registry import rebuild, recipe_of
from xbp.nn import Layer
from xbp.training.files.tensors import TensorFile, part, write_tensors


def save_weights(
    state: Mapping[str, Any], path: str | os.PathLike[str], *, model: Layer | None = None
) -> None:
    """Write a state dict, e.g. ``model.state_dict()``, as a safetensors file.

    The file appears whole or not at all.

    Parameters
    ----------
    state : mapping of names to arrays of any library
    path : path-like
    model : Layer, optional
        The model of the weights. If it is one of `xbp.models`, the file says how to make it, for
        `load_model`.

    Raises
    ------
    DataError
        The folder does not exist or cannot be written to, or the disk is full.
    InputError
        An array has a dtype that the format lacks.
    """
    recipe = None if model is None else recipe_of(model)
    write_tensors(path, state, {"format": "xbp weights", "model": recipe})


def load_weights(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read a safetensors file: names to numpy arrays, as ``model.load_state_dict`` takes them.

    Raises
    ------
    DataError
        The file is missing or is no safetensors file.
    """
    return TensorFile(path).read()


def load_model(path: str | os.PathLike[str]) -> Layer:
    """Make the model that a file of weights, or a checkpoint, was written from.

    The file names one of `xbp.models` and its arguments; no code from it is run. The model lives on
    the current backend.

    Raises
    ------
    DataError
        The file is missing or malformed; or it was not written by xbp, or belongs to a user's own
        model: make that model and use `load_weights`.

    Examples
    --------
    >>> import pathlib, tempfile, xbp
    >>> from xbp.training import load_model, save_weights
    >>> model = xbp.models.LeNet5(activation="tanh", rng=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.safetensors"
    ...     save_weights(model.state_dict(), path, model=model)
    ...     loaded = load_model(path)
    >>> loaded[1]
    Tanh()
    """
    file = TensorFile(path)
    prefix = "model." if file.document.get("format") == "xbp checkpoint" else ""
    shapes = {
        name.removeprefix(prefix): shape
        for name, shape in file.shapes.items()
        if name.startswith(prefix)
    }
    model = rebuild(file.document.get("model"), shapes, file.name)
    counters = {name for name, buffer in model.named_buffers() if not is_floating(buffer.data)}
    dtypes = {file.dtypes[prefix + name] for name in shapes if name not in counters}
    if dtypes not in ({"float32"}, {"float64"}):
        file.refuse(f"has weights of {sorted(dtypes)}, where float32 or float64 was expected")
    model.astype(dtypes.pop())
    arrays = part(file.read(), prefix)
    try:
        model.load_state_dict(arrays)
    except InputError as error:
        file.refuse(f"does not fit the model that it names: {error}")
    return model
