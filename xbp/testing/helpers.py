"""Small tools of the checks: nested tuples of arrays, and attributes replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def leaves(tree: Any) -> list[Any]:
    """What a nested tuple holds, from left to right; of anything else, itself."""
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


def each(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nesting, with `function` of each leaf.

    >>> each(abs, (-1, (2, -3)))
    (1, (2, 3))
    """
    if isinstance(tree, tuple):
        return tuple(each(function, part) for part in tree)
    return function(tree)


def numbered(name: str, tree: Any) -> list[str]:
    """A name for each leaf.

    >>> numbered("x", 1), numbered("x", (1, (2,)))
    (['x'], ['x[0]', 'x[1][0]'])
    """
    if not isinstance(tree, tuple):
        return [name]
    return [leaf for i, part in enumerate(tree) for leaf in numbered(f"{name}[{i}]", part)]


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within the block, `owner` has these attributes; what it inherits, it inherits again."""
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in attributes:
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)
