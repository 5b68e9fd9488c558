"""Sources: data with a length, and samples by index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import described, integer, name_of, takes
from xbp.backend import as_numbers, library_of, to_numpy
from xbp.errors import InputError
from xbp.nested import tree_leaves, tree_map

Indices: TypeAlias = NDArray[np.int64]

Batch: TypeAlias = Any
"""A pair (x, y), or x alone; x and y are arrays, or tuples of arrays, samples along axis 0."""


class Source:
    """Data with a length and batches by index. A subclass defines ``__len__`` and `batch`.

    A `Trainer` calls `batch` in another thread, while the device works on earlier batches.

    Examples
    --------
    >>> import numpy as np
    >>> class Squares(Source):
    ...     def __len__(self):
    ...         return 100
    ...
    ...     def batch(self, indices):
    ...         x = indices[:, None].astype("float32")
    ...         return x, x**2
    >>> Squares().batch(np.array([2, 3]))[1].tolist()
    [[4.0], [9.0]]
    """

    def __len__(self) -> int:
        """The number of samples."""
        msg = f"{type(self).__name__} has no length; define __len__(self)"
        raise NotImplementedError(msg)

    def batch(self, indices: Indices) -> Batch:
        """The samples at these indices, from 0 to ``len(self) - 1``, in the given order.

        Parameters
        ----------
        indices : numpy.ndarray
            int64 of shape (n,).

        Returns
        -------
        (x, y), or x alone without targets
            Arrays of n samples along the first axis, of any library.
        """
        msg = f"{type(self).__name__} gives no batches; define batch(self, indices)"
        raise NotImplementedError(msg)

    def fingerprint(self) -> str:
        """A text that identifies these data when a run is resumed."""
        return f"{len(self)} samples of a {type(self).__name__}"


class Arrays(Source):
    """Arrays in memory, or memory-mapped files.

    Parameters
    ----------
    x : array of any library, or tuple of arrays
        A memory-mapped file (``numpy.load(…, mmap_mode="r")``) is read batch by batch.
    y : the same, optional
        Targets.

    Raises
    ------
    InputError
        They hold no numbers, no sample, or different numbers of samples.
    """

    def __init__(self, x: Any, y: Any = None) -> None:
        self.x, self.y = _hosts(x), None if y is None else _hosts(y)
        self.parts = [*tree_leaves(self.x), *([] if y is None else tree_leaves(self.y))]
        shapes = [tuple(part.shape) for part in self.parts]
        if any(len(shape) == 0 for shape in shapes) or len({s[0] for s in shapes}) != 1:
            msg = f"arrays of a source need the same number of samples; their shapes are {shapes}"
            raise InputError(msg)
        if shapes[0][0] == 0:
            msg = f"there are no samples in a source of the shapes {shapes}; give at least one"
            raise InputError(msg)
        self.length = int(shapes[0][0])

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Indices) -> Batch:
        x = tree_map(lambda array: np.take(array, indices, axis=0), self.x)
        if self.y is None:
            return x
        return x, tree_map(lambda array: np.take(array, indices, axis=0), self.y)

    def fingerprint(self) -> str:
        """A digest of all numbers, read piece by piece."""
        found = []
        for array in self.parts:
            digest = hashlib.sha256()
            step = max(1, (1 << 22) // max(1, array[:1].nbytes))
            for start in range(0, len(array), step):
                digest.update(np.ascontiguousarray(array[start : start + step]).data)
            found.append(f"{array.dtype} {array.shape} with SHA-256 {digest.hexdigest()}")
        return ", ".join(found)


class Function(Source):
    """Batches by a function of their indices.

    Parameters
    ----------
    function : callable ``indices -> (x, y)``
        As `Source.batch`, called in another thread.
    length : int
        The number of samples.

    Raises
    ------
    InputError
        It cannot be called with one argument, or the length is no positive integer.
    """

    def __init__(self, function: Callable[[Indices], Batch], length: int) -> None:
        if not callable(function):
            msg = f"function must be a function of (indices), got {described(function)}"
            raise InputError(msg)
        takes("function", function, "indices")
        self.function, self.length = function, integer("length", length, least=1)

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Indices) -> Batch:
        return self.function(indices)

    def fingerprint(self) -> str:
        return f"{self.length} samples of the function {name_of(self.function)}"


class Subset(Source):
    """Some samples of a source.

    Parameters
    ----------
    source : Source
    indices : array of integers (n,)

    Raises
    ------
    InputError
        `source` is no source, or the indices are no integers from 0 to ``len(source) - 1``, or
        none.
    """

    def __init__(self, source: Source, indices: Any) -> None:
        check_source(source)
        indices = as_numbers(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
            msg = (
                "the indices of a Subset must be integers (n,), at least one, got "
                f"{described(indices)}"
            )
            raise InputError(msg)
        if int(indices.min()) < 0 or int(indices.max()) >= len(source):
            msg = (
                f"the indices of a Subset of {len(source)} samples must be from 0 to "
                f"{len(source) - 1}, got {int(indices.min())} to {int(indices.max())}"
            )
            raise InputError(msg)
        self.source, self.indices = source, indices.astype(np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Indices) -> Batch:
        return self.source.batch(self.indices[indices])

    def fingerprint(self) -> str:
        chosen = hashlib.sha256(self.indices.data).hexdigest()
        return f"{len(self)} samples with SHA-256 {chosen} of {self.source.fingerprint()}"


class Windows(Source):
    """All windows of a long sequence of tokens, each with the window one token later as its target.

    Sample i is x = tokens[i : i + context] and y = tokens[i + 1 : i + 1 + context], so that y holds
    the next token at each position of x.

    Parameters
    ----------
    tokens : array of integers (N,)
        For example from `xbp.datasets.load_text`, or a memory-mapped file.
    context : int
        The length of a window.

    Raises
    ------
    InputError
        `tokens` are no integers (N,), or fewer than ``context + 1``.

    Examples
    --------
    >>> import numpy as np
    >>> source = Windows(np.array([5, 6, 7, 8]), context=2)
    >>> x, y = source.batch(np.arange(len(source)))
    >>> x.tolist(), y.tolist()
    ([[5, 6], [6, 7]], [[6, 7], [7, 8]])
    """

    def __init__(self, tokens: Any, context: int) -> None:
        self.context = integer("context", context, least=1)
        self.tokens = as_numbers(tokens)
        if self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu":
            msg = f"tokens must be integers (N,), got {described(tokens)}"
            raise InputError(msg)
        if len(self.tokens) <= self.context:
            msg = (
                f"{len(self.tokens)} tokens hold no window of {self.context} and the token after "
                "it; give a longer text or a smaller context"
            )
            raise InputError(msg)

    def __len__(self) -> int:
        return len(self.tokens) - self.context

    def batch(self, indices: Indices) -> Batch:
        found = self.tokens[indices[:, np.newaxis] + np.arange(self.context + 1)].astype(np.int64)
        return found[:, :-1], found[:, 1:]

    def fingerprint(self) -> str:
        return f"windows of {self.context} of {Arrays(self.tokens).fingerprint()}"


# --- batches of a source -------------------------------------------------------------------------


def _hosts(arrays: Any) -> Any:
    return tree_map(as_numbers, arrays)


def check_source(source: Any) -> None:
    """Refuse an object that is no source.

    Raises
    ------
    InputError
    """
    if not isinstance(source, Source):
        msg = f"a source was expected, such as data.Arrays(x, y), got {described(source)}"
        raise InputError(msg)


def is_stream(data: Any) -> bool:
    """Whether `data` are a source or an iterable of batches, and no array.

    A list counts as an iterable of batches if its first item is a tuple, and else as an array.
    """
    if isinstance(data, Source):
        return True
    if isinstance(data, list):
        return bool(data) and isinstance(data[0], tuple)
    if library_of(data) is not None or isinstance(data, str | bytes | dict | tuple | set | range):
        return False
    return isinstance(data, Iterable) and not hasattr(data, "__array__")


def batches_of(source: Source, order: Indices, size: int, first: int = 0) -> Iterator[Batch]:
    """The batches of an epoch in a given order, from batch number `first`, counted from 0."""
    for start in range(first * size, len(order), size):
        yield source.batch(order[start : start + size])


def as_pair(batch: Any) -> tuple[Any, Any]:
    """A batch as (x, y), both on the host as arrays of numbers, or tuples of them.

    Raises
    ------
    InputError
        It is no pair, has no sample, or arrays with different numbers of samples.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        msg = f"a batch must be a pair (x, y), got {described(batch)}"
        raise InputError(msg)
    x, y = (_hosts(tuple(part) if _is_list_of_arrays(part) else part) for part in batch)
    shapes = [tuple(array.shape) for array in (*tree_leaves(x), *tree_leaves(y))]
    if any(not shape or not shape[0] for shape in shapes) or len({s[0] for s in shapes}) > 1:
        msg = (
            "the arrays of a batch need the same number of samples, at least one; their shapes are "
            f"{shapes}"
        )
        raise InputError(msg)
    return x, y


def inputs_of(batch: Any) -> Any:
    """The x of a batch (x, y) or x."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and not _is_list_of_numbers(batch):
        batch = batch[0]
    return _hosts(batch)


def _is_list_of_arrays(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and library_of(part[0]) is not None


def _is_list_of_numbers(part: Any) -> bool:
    return isinstance(part, list) and not _is_list_of_arrays(part)


def sample_digest(arrays: Iterable[Any]) -> str:
    """SHA-256 of some arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(to_numpy(array)).data)
    return digest.hexdigest()
