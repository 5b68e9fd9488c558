"""Return values of a user's functions, checked and converted to the numbers that training uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Rational, Real
from typing import Any

from xbp.arguments import described, is_finite, name_of
from xbp.backend import (
    Array,
    array_namespace,
    backend_of,
    dtype_name,
    library_of,
    on_device_of,
    to_numpy,
)
from xbp.errors import InputError
from xbp.nested import first_of, tree_leaves, tree_map
from xbp.nn import Loss
from xbp.optim import Optimizer

NUMBERS = ("bool", "integral", "real floating")


def value_of(what: str, value: Any, beside: Array) -> Array:
    """`value` as a 0-d array (or numpy scalar) where the array `beside` lives, without a wait.

    Parameters
    ----------
    what : str
        What returned the value, for messages.
    value : Python number, numpy scalar or 0-d array of any library

    Raises
    ------
    InputError
        The value is of another kind.
    """
    library = library_of(value)
    if library is not None and value.ndim == 0:
        xp = array_namespace(value)
        if xp.isdtype(value.dtype, NUMBERS):
            if library is not library_of(beside) or value.device != beside.device:
                return backend_of(beside).asarray(to_numpy(value))
            real = xp.isdtype(value.dtype, "real floating")
            return value if real else xp.astype(xp.asarray(value), xp.float64)
    elif isinstance(value, Real) and not _is_too_large(value):
        return backend_of(beside).asarray(float(value))
    msg = f"{what} must return a number or a 0-d array, got {described(value)}"
    raise InputError(msg)


def number_of(what: str, value: Any) -> float:
    """`value` (Python number, numpy scalar or 0-d array of any library) as a Python number.

    Raises
    ------
    InputError
        The value is of another kind.
    """
    if type(value) in (int, float) and not _is_too_large(value):
        return value  # type: ignore[no-any-return]
    if library_of(value) is not None and value.ndim == 0:
        value = to_numpy(value).item()
    if isinstance(value, Real) and not _is_too_large(value):
        return float(value)
    msg = f"{what} must be a number or a 0-d array, got {described(value)}"
    raise InputError(msg)


def _is_too_large(value: Any) -> bool:
    """Whether `value` is an int or a fraction beyond the largest float."""
    return isinstance(value, Rational) and not is_finite(value)


def make_plain(record: dict[str, Any], who: str) -> None:
    """Convert the values of a record, which `who` may have changed, to Python numbers.

    Raises
    ------
    InputError
        A value is no number, or a name is no string.
    """
    for name, value in record.items():
        if not isinstance(name, str):
            msg = f"the names in a record must be strings; {who} puts in {described(name)}"
            raise InputError(msg)
        if type(value) is not float:  # also an int, which may be too large
            record[name] = number_of(f"what {who} puts into the record as {name!r}", value)


def numbers_of(what: str, numbers: Any) -> dict[str, float]:
    """The `numbers` of a metric, as Python numbers.

    Raises
    ------
    InputError
        It is no mapping of names to numbers.
    """
    if not isinstance(numbers, Mapping):
        msg = f"the numbers of {what} must be a dict of names to numbers, got {described(numbers)}"
        raise InputError(msg)
    return {name: number_of(f"what {what} computes", value) for name, value in numbers.items()}


def check_distinct(names: Sequence[str]) -> None:
    """Refuse names that would stand for two quantities in the records.

    Raises
    ------
    InputError
        Two names are equal; or one is "val_" and another.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            msg = (
                f"two quantities would be called {name!r} in the records; give a metric a name of "
                "its own (name=…, or a function's __name__)"
            )
            raise InputError(msg)
        if f"val_{name}" in names:
            msg = (
                f"a metric cannot be called 'val_{name}', as {name!r} on validation data is called "
                "that; give it another name"
            )
            raise InputError(msg)


def checked_loss(loss: Any, returned: Any, prediction: Array) -> tuple[Array, Array]:
    """The return value of a loss for `prediction`, as (value, gradient).

    Raises
    ------
    InputError
        It is no pair of a number, or 0-d array, and an array of the prediction's shape and dtype;
        where that is a tuple, a tuple of such arrays.
    """
    what = f"the loss {name_of(loss)}"
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        msg = f"{what} must return (value, gradient), got {described(returned)}"
        raise InputError(msg)
    value, gradient = returned
    value = value_of(f"{what}, as its value,", value, first_of(prediction))
    parts, found = tree_leaves(prediction), tree_leaves(gradient)
    if len(parts) != len(found):
        msg = f"{what} must return a gradient for each of {len(parts)} outputs, got {len(found)}"
        raise InputError(msg)
    for part, gradient in zip(parts, found, strict=True):
        _check_gradient(what, gradient, part)
    return value, returned[1]


def _check_gradient(what: str, gradient: Any, prediction: Array) -> None:
    if library_of(gradient) is not library_of(prediction):
        msg = f"{what} must return a gradient beside the prediction, got {described(gradient)}"
        raise InputError(msg)
    kinds = [(tuple(array.shape), dtype_name(array.dtype)) for array in (gradient, prediction)]
    if kinds[0] != kinds[1]:
        (shape, dtype), (wanted, own) = kinds
        msg = (
            f"{what} must return a gradient of the prediction's shape {wanted} and dtype {own}, "
            f"got {shape} and {dtype}"
        )
        raise InputError(msg)


def counted(loss: Any, prediction: Any, target: Any) -> int | Array:
    """A batch's weight in the mean of a loss: its samples, or the loss's `denominator`."""
    rows = int(first_of(target).shape[0])
    if not isinstance(loss, Loss):
        return rows
    if not rows:  # a share without samples: of one sample it is known what the mean divides by
        prediction, target = tree_map(_one_row, prediction), tree_map(_one_row, target)
    own = loss.denominator(prediction, target)
    if own is None:
        return rows
    return own if rows else 0 * own


def _one_row(array: Array) -> Array:
    with on_device_of(array):
        xp = array_namespace(array)
        return xp.zeros((1, *array.shape[1:]), dtype=array.dtype, device=array.device)


class CheckedLoss:
    """A loss whose return value is checked whenever the type of its value changes.

    Parameters
    ----------
    loss : callable ``(prediction, target) -> (value, gradient)``
    """

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.known: type | None = None  # the type of a value that has been checked

    def __call__(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        returned = self.loss(prediction, target)
        if type(returned) is tuple and len(returned) == 2 and type(returned[0]) is self.known:
            return returned
        value, gradient = checked_loss(self.loss, returned, prediction)
        if value is returned[0]:
            self.known = type(value)
        return value, gradient

    @property
    def reduction(self) -> str:
        """Of the loss: "sum", or anything else for a mean."""
        return str(getattr(self.loss, "reduction", "mean"))

    def denominator(self, prediction: Any, target: Any) -> Array | None:
        """What the mean divides by, where that is not the number of samples."""
        return self.loss.denominator(prediction, target) if isinstance(self.loss, Loss) else None


def rate_names(optimizer: Optimizer) -> list[str]:
    """What the rate of each group is called in the records; empty where it is the first one's.

    The first is "lr"; that of group k, if it has a rate of its own, "lr_k".
    """
    own = optimizer.own_rates()
    return ["lr", *(f"lr_{k}" if own[k] is not None else "" for k in range(1, len(own)))]
