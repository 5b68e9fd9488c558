"""Parts of a layer: the layers and parameters among its attributes, at any depth.

Lists, tuples, dicts and similar containers are walked in order. Parts in containers without order
or names (sets, iterators) or in opaque objects (functions, keys, classes) are refused.
"""

from __future__ import annotations

import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Set, ValuesView
from functools import partial
from itertools import count
from typing import Any, TypeVar

from xbp.errors import InputError

Part = TypeVar("Part")

PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, range, *weakref.ProxyTypes})
"""Types that hold no part. A proxy is how a layer may know the one that it is a part of."""

ITERATORS = ("builtins", "itertools")
"""Modules whose iterators, but `count`, can be walked once, and are empty afterwards."""

MEMBERS = (
    *(types.FunctionType, types.WrapperDescriptorType, types.MethodDescriptorType),
    *(types.BuiltinFunctionType, types.GetSetDescriptorType, types.MemberDescriptorType),
    *(property, staticmethod, classmethod),
)
"""What classes are made of, for the most part."""

DEPTH, MOST = 4, 10_000
"""How deep, and at how many things, a search for hidden parts looks."""


def within(owner: object, kinds: tuple[type[Part], ...]) -> Iterator[tuple[str, Part]]:
    """The parts among the attributes of `owner` and in their containers, with dotted names.

    ``weight`` for an attribute, ``blocks.0`` for a list's member, ``heads.left`` for a dict's.

    Raises
    ------
    InputError
        A key of a dict cannot be a name, or a container holds itself.
    """
    for name, value in vars(owner).items():
        yield from parts(owner, name, value, kinds)


def parts(
    owner: object, name: str, value: Any, kinds: tuple[type[Part], ...]
) -> Iterator[tuple[str, Part]]:
    """The parts in one attribute, `value`, with dotted names."""
    if type(value) not in PLAIN:
        yield from _walk(owner, name, value, kinds, ())


def _walk(
    owner: object, name: str, value: Any, kinds: tuple[type[Part], ...], inside: tuple[Any, ...]
) -> Iterator[tuple[str, Part]]:
    if isinstance(value, kinds):
        yield name, value
        return
    named = isinstance(value, Mapping)
    if not named and not isinstance(value, list | tuple | deque):
        return
    if any(value is outer for outer in inside):
        msg = f"{_place(owner, name)} holds itself; hold each part once"
        raise InputError(msg)
    keys: set[str] = set()
    for key, item in value.items() if named else enumerate(value):
        if type(item) in PLAIN:
            continue
        for inner, part in _walk(owner, f"{name}.{key}", item, kinds, (*inside, value)):
            if named:
                _check_key(owner, name, key, keys)
            yield inner, part
        keys.add(str(key))


def _check_key(owner: object, name: str, key: Any, taken: set[str]) -> None:
    usable = isinstance(key, str) and key and "." not in key
    number = isinstance(key, int) and not isinstance(key, bool)
    if not (usable or number) or str(key) in taken:
        msg = (
            f"{_place(owner, name)} has the key {key!r}, which names a part; such a key must be a "
            "text without a dot, or a number, and no other one may read the same"
        )
        raise InputError(msg)


def containers(owner: object) -> Iterator[list[Any] | tuple[Any, ...] | dict[Any, Any]]:
    """All lists, tuples and dicts among the attributes of `owner`, and within them."""
    waiting = list(vars(owner).values()) if hasattr(owner, "__dict__") else []
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += value.values() if isinstance(value, dict) else value


def check_nothing_hidden(owner: object, kinds: tuple[type, ...], known: set[int]) -> None:
    """Refuse attributes that hold parts which `within` does not find.

    Parameters
    ----------
    owner : object
        A layer.
    kinds : tuple of types
        The kinds of parts.
    known : set of int
        The ids of the parts that `within` finds.

    Raises
    ------
    InputError
    """
    for name, value in vars(owner).items():
        if type(value) not in PLAIN and not isinstance(value, kinds):
            _look(owner, name, value, kinds, known, [value])
    for kind, name in _class_attributes(type(owner)):
        found: Iterator[tuple[str, Any]] = parts(owner, name, vars(kind).get(name), kinds)
        if any(id(part) not in known for _, part in found):
            msg = (
                f"{kind.__name__}.{name} belongs to the class, not to the layer: what it holds is "
                f"not trained, moved or saved; set self.{name} in __init__"
            )
            raise InputError(msg)


def _class_attributes(owner: type) -> list[tuple[type, str]]:
    """Classes and names of the attributes that `owner` has or inherits, without methods.

    Cached, as a class has many attributes and parameters are asked for often.
    """
    if owner not in _attributes:
        _attributes[owner] = [
            (kind, name)
            for kind in owner.__mro__
            for name, value in vars(kind).items()
            if not (type(value) in PLAIN or isinstance(value, MEMBERS))
        ]
    return _attributes[owner]


_attributes: weakref.WeakKeyDictionary[type, list[tuple[type, str]]] = weakref.WeakKeyDictionary()


def _look(
    owner: object, name: str, value: Any, kinds: tuple[type, ...], known: set[int], seen: list[Any]
) -> None:
    """Search an attribute, `value`, level by level; `seen` keeps objects alive for their ids."""
    level, ids = [(value, False)], {id(value)}
    for _ in range(DEPTH):
        below = []
        for thing, opaque in level:
            if _is_read_once(thing):
                msg = (
                    f"{_place(owner, name)} is a {type(thing).__name__}, which can be read only "
                    "once: layers in it would not be found again; make a list of it"
                )
                raise InputError(msg)
            for item, hides in _inside(thing):
                if type(item) in PLAIN or id(item) in ids:
                    continue
                if isinstance(item, kinds):
                    if (opaque or hides) and id(item) not in known:
                        msg = (
                            f"{_place(owner, name)} is a {type(value).__name__}, in which a "
                            f"{type(item).__name__} would not be found: not trained, moved or "
                            "saved; hold it in an attribute, a list or a dict"
                        )
                        raise InputError(msg)
                    continue
                ids.add(id(item))
                seen.append(item)
                below.append((item, opaque or hides))
            if len(ids) > MOST:
                return
        level = below


def _is_read_once(thing: Any) -> bool:
    kind = type(thing)
    return isinstance(thing, Iterator) and kind.__module__ in ITERATORS and kind is not count


def _inside(thing: Any) -> list[tuple[Any, bool]]:
    """The contents of an object, each with whether it is hidden there."""
    if isinstance(thing, Mapping):
        keys = (key for key in thing if type(key) not in PLAIN)
        return [(item, False) for item in thing.values()] + [(key, True) for key in keys]
    if isinstance(thing, list | tuple | deque):
        return [(item, False) for item in thing]
    return [(item, True) for item in _hidden(thing)]


def _hidden(thing: Any) -> list[Any]:
    if isinstance(thing, Set | ValuesView):
        return list(thing)
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__]
    if isinstance(thing, types.FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
    if isinstance(thing, type | types.ModuleType):
        return []
    if hasattr(thing, "dtype"):
        return list(thing.flat) if str(thing.dtype) == "object" and hasattr(thing, "flat") else []
    slots = [name for kind in type(thing).__mro__ for name in _slots(kind)]
    members = [getattr(thing, name) for name in slots if hasattr(thing, name)]
    return members + list(getattr(thing, "__dict__", {}).values())


def _slots(kind: type) -> list[str]:
    found = vars(kind).get("__slots__", ())
    names = [found] if isinstance(found, str) else list(found)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises ValueError for an empty cell
    except ValueError:
        return False
    return True


def _place(owner: object, name: str) -> str:
    return f"{type(owner).__name__}.{name}"
