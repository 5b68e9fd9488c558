"""Arrays, and tuples of them: what a layer of several inputs or outputs takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def leaves(tree: Any) -> list[Any]:
    """What a nested tuple holds, from left to right; of anything else, itself."""
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


def each(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The same nesting, with `function` of each leaf, and of those of others at its place.

    >>> each(abs, (-1, (2, -3)))
    (1, (2, 3))
    >>> each(max, (1, 2), (0, 5))
    (1, 5)
    """
    if isinstance(tree, tuple):
        return tuple(each(function, *parts) for parts in zip(tree, *others, strict=True))
    return function(tree, *others)


def first_of(tree: Any) -> Any:
    """The first leaf; of an empty tuple, itself."""
    while isinstance(tree, tuple) and tree:
        tree = tree[0]
    return tree
