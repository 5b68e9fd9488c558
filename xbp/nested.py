"""Arrays and nested tuples of them, as inputs and outputs of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def tree_leaves(tree: Any) -> list[Any]:
    """The leaves of a nested tuple from left to right; anything else is a leaf itself."""
    return (
        [leaf for part in tree for leaf in tree_leaves(part)] if isinstance(tree, tuple) else [tree]
    )


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The same nesting, with `function` of each leaf and the corresponding leaves of `others`.

    >>> tree_map(abs, (-1, (2, -3)))
    (1, (2, 3))
    >>> tree_map(max, (1, 2), (0, 5))
    (1, 5)
    """
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *parts) for parts in zip(tree, *others, strict=True))
    return function(tree, *others)


def first_of(tree: Any) -> Any:
    """The first leaf; an empty tuple gives itself."""
    while isinstance(tree, tuple) and tree:
        tree = tree[0]
    return tree
