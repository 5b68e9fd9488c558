"""Arrays of numpy in a step that is recorded on the host: every operation is seen, or refused.

A `RecordedArray` is no array of numpy, so that nothing can compute with it but the functions and
operators of this file, which compute at once, and note the call on the tape of the thread, if there
is one (`xbp.backend.host_graph`). Its values cannot be read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from xbp.backend.graphs import RECORDING, NotMadeError
from xbp.errors import InputError
from xbp.registry import find

Values = NDArray[Any]


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


CONSTANTS = names("""
    bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128
    e inf nan newaxis pi
""")
ABOUT_DTYPES = names("can_cast finfo iinfo isdtype result_type")
CREATION = names("arange eye full linspace ones zeros")
"""Of numbers: with an array among them, the result's shape might depend on its values."""

FUNCTIONS = names("""
    asarray empty_like full_like ones_like tril triu zeros_like

    abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_invert bitwise_left_shift
    bitwise_or bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide equal exp
    expm1 floor floor_divide greater greater_equal hypot imag isfinite isinf isnan less less_equal
    log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum
    multiply negative nextafter not_equal positive pow real reciprocal remainder round sign signbit
    sin sinh sqrt square subtract tan tanh trunc where

    broadcast_to concat expand_dims flip matrix_transpose moveaxis permute_dims reshape roll squeeze
    stack tile unstack

    all any argmax argmin argsort count_nonzero cumulative_prod cumulative_sum diff max mean min
    prod searchsorted sort std sum take take_along_axis var

    astype matmul tensordot vecdot
""")
"""Functions whose results depend on their arguments alone, and in their shape not on values."""


class Namespace:
    """The functions of numpy that can be recorded."""

    __name__ = __name__

    def empty(self, *args: Any, **options: Any) -> RecordedArray:
        """Zeros, as a replay is to find no earlier values."""
        found: RecordedArray = self.zeros(*args, **options)
        return found

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS:
            return getattr(np, name)
        if name not in FUNCTIONS | CREATION | ABOUT_DTYPES:
            msg = f"numpy's {name} cannot be recorded"
            raise InputError(msg)
        function: Any = partial(call, getattr(np, name), name)
        setattr(self, name, function)
        return function


NAMESPACE = Namespace()


class RecordedArray:
    """`values`, an array of numpy, for the functions of `NAMESPACE` alone."""

    __slots__ = ("values",)
    __array_ufunc__ = None  # numpy's own functions and operators refuse it
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: Values) -> None:
        self.values = values

    # --- what may be known ---

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    device = property(lambda self: "cpu")
    T = property(lambda self: RecordedArray(self.values.T))
    mT = property(lambda self: RecordedArray(self.values.mT))  # noqa: N815

    def __array_namespace__(self, *, api_version: str | None = None) -> Namespace:
        return NAMESPACE

    def __repr__(self) -> str:
        return f"RecordedArray(shape={self.shape}, dtype={self.dtype})"

    # --- what may not ---

    def refuse(self) -> NoReturn:
        msg = "a value of an array is read, which a recording would freeze"
        raise InputError(msg)

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        self.refuse()

    __bool__ = __float__ = __int__ = __index__ = __complex__ = __array__
    __iter__ = __len__ = __dlpack__ = __array__

    def end_unless_finite(self) -> None:
        """End a replay here, and now this step, if the value is infinite or nan.

        Raises
        ------
        NotMadeError
        """
        check: Any = partial(_end_unless_finite, self.values)
        if RECORDING.tape is not None:
            fast = find("end_unless_finite", RecordedArray)
            made = NotImplemented if fast is None else fast(self)
            RECORDING.tape.end_unless(check if made is NotImplemented else made, self.values)
        check()

    # --- parts ---

    def __getitem__(self, key: Any) -> RecordedArray:
        return RecordedArray(self._part(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        change(operator.setitem, self._part(key), Ellipsis, value)

    def _part(self, key: Any) -> Values:
        """A view; also of a single entry, where numpy gives a number."""
        keys = key if isinstance(key, tuple) else (key,)
        for one in keys:
            if not (one is None or one is Ellipsis or type(one) in (int, slice)):
                msg = f"an index of type {type(one).__name__} cannot be recorded; use xp.take"
                raise InputError(msg)
        return self.values[key if Ellipsis in keys else (*keys, Ellipsis)]


def _end_unless_finite(value: Values) -> None:
    if not np.isfinite(value):
        raise NotMadeError


# --- calls ---------------------------------------------------------------------------------------


def call(function: Callable[..., Any], name: str, *args: Any, **options: Any) -> Any:
    """``function(*args, **options)``, noted on the tape."""
    read: list[Values] = []
    args, options = _unwrapped((args, options), read)
    if name in ABOUT_DTYPES:
        return function(*args, **options)
    if read and name in CREATION:
        msg = f"the arguments of {name} cannot be arrays in a recording"
        raise InputError(msg)
    result = function(*args, **options)
    if isinstance(result, tuple | list):  # views
        return tuple(_noted(function, args, options, read, part) for part in result)
    return _noted(function, args, options, read, result)


def _noted(function: Any, args: Any, options: Any, read: list[Values], result: Any) -> Any:
    made = np.asarray(result)
    whose = owner(made)
    if any(whose is owner(array) for array in read):
        return RecordedArray(made)  # a view, of the same memory in a replay
    tape = RECORDING.tape
    if tape is not None:
        if isinstance(function, np.ufunc):
            again = partial(function, *args, **options, out=made)
        else:
            again = partial(_again, made, function, args, options)
        tape.add(again, read, (made,))
    return RecordedArray(made)


def _again(made: Values, function: Any, args: Any, options: Any) -> None:
    made[...] = function(*args, **options)


def change(function: Callable[..., Any], values: Values, *args: Any, **options: Any) -> None:
    """``function(values, *args, **options)``, which changes `values` in place, noted likewise."""
    read = [values]
    args, options = _unwrapped((args, options), read)
    tape = RECORDING.tape
    if tape is not None:
        tape.add(partial(function, values, *args, **options), read, (values,))
    function(values, *args, **options)


def owner(array: Values) -> Values:
    """The array that has the memory of a view."""
    while type(array.base) is np.ndarray:
        array = array.base
    return array


def _unwrapped(tree: Any, read: list[Values]) -> Any:
    """The arguments with numpy's arrays, which are appended to `read`."""
    if isinstance(tree, RecordedArray):
        read.append(tree.values)
        return tree.values
    if isinstance(tree, np.ndarray):
        msg = "an array outside of parameters and buffers cannot be recorded"
        raise InputError(msg)
    if type(tree) is dict:
        return {name: _unwrapped(part, read) for name, part in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)([_unwrapped(part, read) for part in tree])
    return tree


# --- operators -----------------------------------------------------------------------------------


def _operators() -> None:
    def plain(function: np.ufunc) -> Any:
        return lambda self, *other: call(function, "", self, *other)

    def reflected(function: np.ufunc) -> Any:
        return lambda self, other: call(function, "", other, self)

    def in_place(function: np.ufunc) -> Any:
        def changed(self: RecordedArray, other: Any) -> RecordedArray:
            values = self.values
            change(lambda to, by: function(to, by, out=to), values, other)
            return self

        return changed

    one = {"neg": "negative", "pos": "positive", "abs": "abs", "invert": "bitwise_invert"}
    two = {
        **{"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "pow"},
        **{"floordiv": "floor_divide", "mod": "remainder", "matmul": "matmul"},
        **{"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"},
        **{"lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift"},
    }
    compared = {
        **{"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal"},
        **{"gt": "greater", "ge": "greater_equal"},
    }
    for name, function in (one | two | compared).items():
        setattr(RecordedArray, f"__{name}__", plain(getattr(np, function)))
    for name, function in two.items():
        setattr(RecordedArray, f"__r{name}__", reflected(getattr(np, function)))
        if name != "matmul":
            setattr(RecordedArray, f"__i{name}__", in_place(getattr(np, function)))


_operators()
