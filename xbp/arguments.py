"""Checks of arguments: each function returns the value, or raises `InputError`."""

from __future__ import annotations

import inspect
import math
import numbers
from typing import Any

from xbp.errors import InputError, on_one_line


def integer(name: str, value: Any, *, least: int) -> int:
    """`value` as an int that is at least `least`."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        if int(value) >= least:
            return int(value)
    msg = f"{name} must be an integer of at least {least}, got {value!r}"
    raise InputError(msg)


def pair(name: str, value: Any, *, least: int) -> tuple[int, int]:
    """An int or a pair of ints, as the pair (height, width)."""
    height, width = sizes(name, value, axes=2, least=least)
    return height, width


def sizes(name: str, value: Any, *, axes: int, least: int) -> tuple[int, ...]:
    """An int or ints, one an axis, as a tuple: (height, width) of images, (length,) of signals."""
    values = value if isinstance(value, tuple | list) else (value,) * axes
    if len(values) != axes:
        several = " or a pair (height, width)" if axes == 2 else ""
        msg = f"{name} must be an integer{several}, got {value!r}"
        raise InputError(msg)
    return tuple(integer(name, each, least=least) for each in values)


def flag(name: str, value: Any) -> bool:
    """`value` if it is True or False."""
    if isinstance(value, bool):
        return value
    msg = f"{name} must be True or False, got {value!r}"
    raise InputError(msg)


def number(
    name: str, value: Any, *, least: float = float("-inf"), most: float = float("inf")
) -> float:
    """`value` as a finite float between `least` and `most`, both included."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if is_finite(value) and least <= float(value) <= most:
            return float(value)
    bounds = f" from {least:g}" * (least > float("-inf")) + f" to {most:g}" * (most < float("inf"))
    msg = f"{name} must be a finite number{bounds}, got {value!r}"
    raise InputError(msg)


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if is_finite(value) and float(value) > 0:
            return float(value)
    msg = f"{name} must be a finite number above 0, got {value!r}"
    raise InputError(msg)


def is_finite(value: Any) -> bool:
    """Whether a real number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def takes(name: str, function: Any, *wanted: str) -> None:
    """Refuse what cannot be called with these positional arguments.

    A function without a signature, as some builtins are, is accepted.

    >>> takes("schedule", lambda step, lr: lr / step, "step")
    Traceback (most recent call last):
    xbp.errors.InputError: schedule must be a function of (step), got <lambda>(step, lr)
    """
    if not isinstance(function, type):
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return
        try:
            signature.bind(*wanted)
        except TypeError:
            found = f"{name_of(function)}{signature}"
        else:
            return
    else:
        found = f"{described(function)}; make one with {function.__name__}(…)"
    msg = f"{name} must be a function of ({', '.join(wanted)}), got {found}"
    raise InputError(msg)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`."""
    if isinstance(value, str) and value in choices:
        return value
    msg = f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
    raise InputError(msg)


def described(thing: Any) -> str:
    """A short description of an argument, for messages.

    >>> described(3), described(int), described(len), described([1, 2]), described(None)
    ('an int', 'the class int', 'the function len', 'a list of 2', 'None')
    """
    if thing is None:
        return "None"
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if callable(thing) and hasattr(thing, "__qualname__"):
        return f"the function {thing.__qualname__}"
    if isinstance(thing, str):
        return repr(on_one_line(thing, 60))
    kind = type(thing).__name__
    article = "an" if kind[0].lower() in "aeiou" else "a"
    if isinstance(getattr(thing, "shape", None), tuple):
        return f"{article} {kind} of shape {tuple(thing.shape)}"
    return f"{article} {kind}" + (f" of {len(thing)}" if isinstance(thing, list | tuple) else "")


def name_of(function: Any) -> str:
    """The name of a function, or of the class of anything else."""
    return getattr(function, "__qualname__", None) or type(function).__name__
