"""Weights in files that others can read and nobody can abuse: safetensors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import to_numpy
from xbp.errors import DataError


def save_weights(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state dict, e.g. ``model.state_dict()``, as a safetensors file.

    The file appears whole or not at all: it is written beside `path` and then put in its place.

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
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        msg = f"cannot write {str(path)!r} ({error.strerror}); give a folder that exists"
        raise DataError(msg) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes files private
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink()
        msg = f"cannot write {str(path)!r} ({error.strerror}); the previous file is untouched"
        raise DataError(msg) from None


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


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
