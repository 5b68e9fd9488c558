"""Text as tokens: one for each character or byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import choice, described
from xbp.backend import as_numbers
from xbp.errors import DataError, InputError
from xbp.paths import open_file


def load_text(
    path: str | os.PathLike[str], *, unit: str = "characters"
) -> tuple[NDArray[Any], list[str] | list[bytes]]:
    """A text file as tokens, with their vocabulary.

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
        ``vocabulary[t]`` is the character or byte of token t: all characters of the text, in the
        order of their code points, or all 256 bytes. "banana" has the tokens 1 0 2 0 2 0 and the
        vocabulary ["a", "b", "n"].

    Raises
    ------
    InputError
        `unit` is something else.
    DataError
        The file is missing, empty, no plain file, cannot be read, or is not in UTF-8.
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
        # UTF-32, so that numpy reads the text as code points.
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


def encode_text(text: str, vocabulary: Sequence[str] | Sequence[bytes]) -> NDArray[np.int64]:
    """The tokens (N,) of a string.

    Parameters
    ----------
    text : str
    vocabulary : list of str or bytes
        As from `load_text`.

    Raises
    ------
    InputError
        The string has a character that is not in the vocabulary.

    Examples
    --------
    >>> encode_text("ban", ["a", "b", "n"]).tolist()
    [1, 0, 2]
    """
    if not isinstance(text, str):
        msg = f"encode_text takes a string, got {described(text)}"
        raise InputError(msg)
    index = {unit: token for token, unit in enumerate(vocabulary)}
    units = [bytes([b]) for b in text.encode()] if isinstance(vocabulary[0], bytes) else list(text)
    for unit in units:
        if unit not in index:
            msg = f"{unit!r} is not among the {len(index)} of the vocabulary; leave it out"
            raise InputError(msg)
    return np.asarray([index[unit] for unit in units], np.int64)


def decode_text(tokens: Any, vocabulary: Sequence[str] | Sequence[bytes]) -> str:
    """The string of tokens (N,); bytes that are no UTF-8 become "�".

    Parameters
    ----------
    tokens : array (N,) of integers
    vocabulary : list of str or bytes
        As from `load_text`.

    Raises
    ------
    InputError
        A token is not in this vocabulary.

    Examples
    --------
    >>> decode_text([1, 0, 2], ["a", "b", "n"])
    'ban'
    """
    given, count = as_numbers(tokens), len(vocabulary)
    whole = given.ndim == 1 and (given.dtype.kind in "iu" or given.size == 0)
    if not whole or np.any((given < 0) | (given >= count)):
        msg = f"decode_text takes tokens (N,) from 0 to {count - 1}, got {described(tokens)}"
        raise InputError(msg)
    units: list[Any] = [vocabulary[token] for token in given.astype(np.int64).tolist()]
    if isinstance(vocabulary[0], bytes):
        return b"".join(units).decode(errors="replace")
    return "".join(units)


def text_windows(
    tokens: NDArray[Any], starts: Any, context: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows of `context` tokens from each start, with the next token at each position.

    Parameters
    ----------
    tokens : numpy array (N,)
    starts : array (B,) of int
        From 0 to N - context - 1.
    context : int

    Returns
    -------
    x, y : numpy arrays (B, context) of int64

    Raises
    ------
    InputError
        A window extends beyond the text.

    Examples
    --------
    >>> x, y = text_windows(np.arange(10), [0, 6], 3)
    >>> x.tolist(), y.tolist()
    ([[0, 1, 2], [6, 7, 8]], [[1, 2, 3], [7, 8, 9]])
    """
    first = np.asarray(starts)
    last = len(tokens) - context - 1
    if first.dtype.kind not in "iu" or first.ndim != 1 or np.any((first < 0) | (first > last)):
        msg = (
            f"windows of {context} tokens start from 0 to {last} in a text of {len(tokens)}, "
            f"got {described(starts)}"
        )
        raise InputError(msg)
    index = first[:, None] + np.arange(context)
    x, y = tokens[index], tokens[index + 1]
    return x.astype(np.int64), y.astype(np.int64)
