"""A text as numbers: one token for each of its characters or bytes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import choice
from xbp.errors import DataError
from xbp.paths import open_file


def load_text(
    path: str | os.PathLike[str], *, unit: str = "characters"
) -> tuple[NDArray[Any], list[str] | list[bytes]]:
    """A text file as tokens, and what they stand for.

    Parameters
    ----------
    path : path-like
        For characters, in UTF-8.
    unit : {"characters", "bytes"}, default "characters"

    Returns
    -------
    tokens : numpy.ndarray
        Of shape (N,), in the smallest unsigned type that holds them: uint8, uint16 or uint32.
    vocabulary : list of str or bytes
        ``vocabulary[t]`` is what token t stands for: the characters that occur, in the order of
        their code points; or all 256 bytes.

    Raises
    ------
    InputError
        `unit` is something else.
    DataError
        The file is missing, empty, no plain file, cannot be read, or is not in UTF-8.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "text")
    >>> _ = path.write_text("banana")
    >>> tokens, vocabulary = load_text(path)
    >>> tokens.tolist(), vocabulary
    ([1, 0, 2, 0, 2, 0], ['a', 'b', 'n'])
    """
    choice("unit", unit, ("characters", "bytes"))
    name = repr(str(path))
    try:
        with open_file(path, "a text file") as file:
            content = file.read()
        if not content:
            msg = f"{name} is empty, where a text was expected; give another file"
            raise DataError(msg)
        if unit == "bytes":
            return np.frombuffer(bytearray(content), np.uint8), [bytes([i]) for i in range(256)]
        # Four bytes a character, so that numpy sees the text as its code points.
        points = np.frombuffer(content.decode("utf-8").encode("utf-32-le"), "<u4")
        used, tokens = np.unique(points, return_inverse=True)
    except UnicodeDecodeError as error:
        msg = (
            f"{name} is not a text in UTF-8 (byte {error.start}: {error.reason}); convert it, or "
            "take unit='bytes'"
        )
        raise DataError(msg) from None
    except MemoryError:
        msg = f"{name} does not fit into memory; free some, or take a smaller text"
        raise DataError(msg) from None
    except OSError as error:
        msg = f"{name} cannot be read ({error.strerror or error}); check its path and permissions"
        raise DataError(msg) from None
    return tokens.astype(np.min_scalar_type(len(used) - 1)), [chr(point) for point in used]
