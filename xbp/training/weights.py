"""Weights in files that others can read and nobody can abuse: safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import to_numpy
from xbp.errors import DataError
from xbp.training.files import replacing


def save_weights(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state dict, e.g. ``model.state_dict()``, as a safetensors file.

    The file appears whole or not at all.

    Parameters
    ----------
    state : mapping of names to arrays of any library
    path : path-like

    Raises
    ------
    DataError
        The folder does not exist or cannot be written to.
    """
    from safetensors.numpy import save

    # safetensors 0.8 stores the wrong bytes, silently, for arrays that are not C-contiguous:
    # https://github.com/safetensors/safetensors/issues/825
    content = save({name: np.ascontiguousarray(to_numpy(value)) for name, value in state.items()})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_weights(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read a safetensors file: names to numpy arrays, as ``model.load_state_dict`` takes them.

    Raises
    ------
    DataError
        The file is missing or is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        msg = f"{str(path)!r} does not exist; give the path of a .safetensors file"
    except (SafetensorError, OSError) as error:
        msg = f"{str(path)!r} is no safetensors file ({error}); fetch or write it again"
    raise DataError(msg)
