"""Helpers of the checks: names of leaves, and attributes replaced within a block."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import described
from xbp.backend import to_numpy
from xbp.errors import InputError, on_one_line
from xbp.nested import tree_leaves


def numbered(name: str, tree: Any) -> list[str]:
    """A name for each leaf.

    >>> numbered("x", 1), numbered("x", (1, (2,)))
    (['x'], ['x[0]', 'x[1][0]'])
    """
    if not isinstance(tree, tuple):
        return [name]
    return [leaf for i, part in enumerate(tree) for leaf in numbered(f"{name}[{i}]", part)]


def shown(subject: Any) -> str:
    """Its repr on one line; that of a container has a line for each layer.

    >>> from xbp import nn
    >>> shown(nn.Sequential(nn.ReLU(), nn.Flatten()))
    'Sequential( (0): ReLU() (1): Flatten() )'
    """
    return on_one_line(" ".join(repr(subject).split()), 200)


def check_instance(check: str, subject: Any) -> None:
    """Refuse anything but a layer or a loss, classes in particular."""
    if isinstance(subject, type) or not (hasattr(subject, "forward") or callable(subject)):
        kind = described(subject) if isinstance(subject, type) else repr(subject)
        msg = f"{check} takes a layer or a loss, such as nn.Linear(3, 2); got {kind}"
        raise InputError(msg)


def copies(tree: Any) -> list[NDArray[Any]]:
    """Copies of the leaves of `tree` as numpy arrays."""
    return [to_numpy(leaf).copy() for leaf in tree_leaves(tree)]


def check_unchanged(layer: Any, method: str, what: str, before: list[Any], tree: Any) -> None:
    """Refuse a layer that has changed its input or gradient in place.

    Parameters
    ----------
    layer : Layer
    method, what : str
        The method that was called, and the array that it may have changed.
    before : list of numpy arrays
        `copies` of `tree` from before.
    tree : array, or nested tuple of arrays

    Raises
    ------
    AssertionError
    """
    for old, new in zip(before, copies(tree) if before else [], strict=True):
        assert np.array_equal(old, new, equal_nan=old.dtype.kind in "fc"), (
            f"{shown(layer)}: its {method} changes its {what} in place; compute a new array"
        )


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within the block, `owner` has these attributes; inherited ones are restored as inherited.

    Blocks of several threads may overlap: the latest one counts, and after the last one ends the
    owner is as before the first.
    """
    key = object()  # this block
    with _lock:
        for name, value in attributes.items():
            layers = _replacements.setdefault((id(owner), name), [(None, _attribute(owner, name))])
            layers.append((key, value))
            setattr(owner, name, value)
    try:
        yield
    finally:
        with _lock:
            for name in attributes:
                layers = _replacements[id(owner), name]
                layers[:] = [layer for layer in layers if layer[0] is not key]
                value = layers[-1][1]
                if len(layers) == 1:
                    del _replacements[id(owner), name]
                if value is _INHERITED:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)


_INHERITED = object()
_lock = threading.Lock()
_replacements: dict[tuple[int, str], list[tuple[object, Any]]] = {}
"""The original value of an attribute, and its values in all open blocks, in order."""


def _attribute(owner: Any, name: str) -> Any:
    return vars(owner).get(name, _INHERITED)
