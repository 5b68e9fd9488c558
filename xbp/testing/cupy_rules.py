"""CuPy's behaviour in each function of the Array API: one table for stand-ins and GPUs.

A name without a rule can be captured into a CUDA graph after one warm-up. A rule refuses some calls
of a name, by their arguments, for one of three reasons:

- `WAIT`: the host waits for a value of the device, which is forbidden in a training step;
- `UPLOAD`: data are copied from the host, which is allowed except during capture;
- `LIBRARY`: cuBLAS or cuSOLVER is called by CuPy's handle, which refuses capture.

A replay repeats all host-side values of the capture: Python and numpy scalars, shapes, slice
bounds, the lengths of lists and loops, and the addresses of memory.

The table follows the sources of CuPy 14.2 and array_api_compat 1.16, and an H200 where it says so.
``tests/testing/test_cupy_rules.py`` checks each name on the stand-ins, and on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from xbp.backend import is_floating, library_of


class Verdict(Enum):
    """The outcome of a call, and its wording in errors."""

    SAFE = "can be recorded"
    WAIT = "waits for the device"
    UPLOAD = "copies from the host"
    LIBRARY = "needs a handle of CuPy's that refuses to be recorded"


SAFE, WAIT, UPLOAD, LIBRARY = Verdict


class Rule(NamedTuple):
    """A reason to refuse some calls of a function.

    Attributes
    ----------
    verdict : Verdict
    when : callable
        Whether a call with these arguments is refused.
    instead : str
        The expression to use instead.
    """

    verdict: Verdict
    when: Callable[..., bool] = lambda *args, **keywords: True
    instead: str = ""


def verdict(name: str, *args: Any, **keywords: Any) -> Rule:
    """The rule for a call of a function or method in CuPy; usually `Verdict.SAFE`.

    Examples
    --------
    >>> verdict("repeat", None, 3).verdict, verdict("repeat", None, [1, 2]).verdict
    (<Verdict.SAFE: 'can be recorded'>, <Verdict.WAIT: 'waits for the device'>)
    """
    for rule in RULES[name]:
        if rule.when(*args, **keywords):
            return rule
    return Rule(SAFE)


# --- arguments -----------------------------------------------------------------------------------


def is_numpy(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def on_device(value: Any) -> bool:
    """An array of a library other than numpy."""
    return not isinstance(value, np.ndarray | np.generic) and library_of(value) is not None


def _floating(*values: Any) -> bool:
    return all(is_floating(value) for value in values if on_device(value))


def _any_array(*values: Any, **keywords: Any) -> bool:
    return any(map(on_device, (*values, *keywords.values())))


def _from_host(value: Any) -> bool:
    """A list of numbers, or a numpy array that is no scalar."""
    return isinstance(value, list | tuple | range) or (is_numpy(value) and value.ndim > 0)


MANY, LARGE = 8, 2 * 2**20


def _many(arrays: Any, *args: Any, **keywords: Any) -> bool:
    """More than 8 arrays of one dtype, of less than 2 MiB on average.

    CuPy joins these by a table of pointers (``_concatenate`` in
    cupy/_core/_routines_manipulation.pyx; seen on an H200).
    """
    if len(arrays) <= MANY or any(a.dtype != arrays[0].dtype for a in arrays):
        return False
    size = sum(math.prod(a.shape) * np.dtype(_name(a)).itemsize for a in arrays)
    return bool(size < LARGE * len(arrays))


def _name(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]


def _made_of_host(obj: Any, *args: Any, **keywords: Any) -> bool:
    if isinstance(obj, list | tuple) and obj and all(map(on_device, obj)):
        return _many(obj)
    return _from_host(obj)


def _parts(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _is_mask(part: Any) -> bool:
    return (on_device(part) or is_numpy(part)) and _name(part) == "bool"


def _index_waits(x: Any, key: Any, *value: Any) -> bool:
    """A mask, or a slice whose bounds are arrays."""
    for part in _parts(key):
        bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else ()
        if _is_mask(part) or any(map(on_device, bounds)):
            return True
    return False


def _index_uploads(x: Any, key: Any, *value: Any) -> bool:
    """An index that is a list or a numpy array."""
    return any(isinstance(part, list) or is_numpy(part) for part in _parts(key))


def _product_of_floats(a: Any, b: Any, *args: Any, **keywords: Any) -> bool:
    """All products but `v @ v`, which is a reduction."""
    if not (on_device(a) and on_device(b)):
        return False
    return _floating(a, b) and not (a.ndim == 1 and b.ndim == 1)


def names(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


# --- the table -----------------------------------------------------------------------------------

_SAFE = names("""
    empty empty_like eye full full_like meshgrid ones ones_like tril triu zeros zeros_like

    abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_invert bitwise_left_shift
    bitwise_or bitwise_right_shift bitwise_xor ceil conj copysign cos cosh divide equal exp expm1
    floor floor_divide greater greater_equal hypot imag isfinite isinf isnan less less_equal log
    log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum
    multiply negative nextafter not_equal positive pow real reciprocal remainder round signbit sin
    sinh sqrt square subtract tan tanh trunc

    broadcast_arrays broadcast_shapes broadcast_to expand_dims flip matrix_transpose moveaxis
    permute_dims reshape roll squeeze tile unstack

    all any argmax argmin count_nonzero cumulative_prod cumulative_sum diff max mean min prod std
    sum var

    searchsorted take_along_axis

    astype can_cast finfo iinfo isdtype result_type

    linalg.cross linalg.diagonal linalg.matrix_transpose linalg.outer linalg.trace
    linalg.vector_norm

    __abs__ __eq__ __ge__ __gt__ __invert__ __iter__ __le__ __lt__ __ne__ __neg__ __pos__
""")
"""Creation, elementwise functions, shapes, reductions, search, dtypes, products without cuBLAS."""

_THRUST = names("argsort isin sort")
"""Probably captured: Thrust is asynchronous, with memory from the memory pool. Never run."""

OPERATORS = tuple(
    f"__{side}{name}__"
    for name in names("add and floordiv lshift mod mul or pow rshift sub truediv xor")
    for side in ("", "r", "i")
)

_PRODUCT = Rule(LIBRARY, _product_of_floats, "xbp.primitives.matmul")
_SOLVER = Rule(LIBRARY)
SINGULAR = (2, -2, "nuc")
"""Norms of singular values; others are reductions."""

_READ = Rule(WAIT)

RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys((*_SAFE, *_THRUST, *OPERATORS), ()),
    # --- waits ---
    # array_api_compat assigns through a mask (cupy/_aliases.py; seen on an H200)
    "sign": (Rule(WAIT, _floating, "where(x > 0, 1.0, where(x < 0, -1.0, 0 * x))"),),
    "clip": (
        Rule(
            WAIT,
            lambda x, *args, **bounds: any(b is not None for b in (*args, *bounds.values())),
            "minimum(maximum(x, low), high)",
        ),
    ),
    "repeat": (Rule(WAIT, lambda x, repeats, /, **_: not isinstance(repeats, int)),),
    "arange": (Rule(WAIT, _any_array),),
    "linspace": (Rule(WAIT, _any_array),),
    "where": (Rule(WAIT, lambda *args: len(args) == 1),),
    **dict.fromkeys(
        names("""
            nonzero unique_all unique_counts unique_inverse unique_values
            __bool__ __complex__ __contains__ __float__ __index__ __int__
            __dlpack__ __format__ __reduce__ __repr__ __str__
        """),
        (_READ,),
    ),
    "to_device": (Rule(WAIT, lambda x, device, /, **_: "cpu" in str(device).lower()),),
    "fill": (Rule(WAIT, lambda x, value: on_device(value)),),
    "from_dlpack": (_READ,),
    # --- uploads ---
    "asarray": (Rule(UPLOAD, _made_of_host),),
    "stack": (Rule(UPLOAD, _many, "out = xp.empty(…), then out[t, ...] = a"),),
    "concat": (Rule(UPLOAD, _many, "concat in groups of at most 8"),),
    "take": (Rule(UPLOAD, lambda x, indices, /, **_: _from_host(indices)),),
    "__getitem__": (
        Rule(WAIT, _index_waits, "where(mask, x, 0.0)"),
        Rule(UPLOAD, _index_uploads, "an index that lies on the device"),
    ),
    "__setitem__": (
        Rule(WAIT, _index_waits, "x[...] = where(mask, value, x)"),
        Rule(UPLOAD, _index_uploads, "an index that lies on the device"),
    ),
    # --- handles of cuBLAS and cuSOLVER ---
    **dict.fromkeys(
        names("""
            matmul tensordot vecdot __matmul__ __rmatmul__ __imatmul__
            linalg.matmul linalg.tensordot linalg.vecdot
        """),
        (_PRODUCT,),
    ),
    "linalg.matrix_norm": (Rule(LIBRARY, lambda x, **options: options.get("ord") in SINGULAR),),
    "linalg.pinv": (_READ,),  # assigns through a mask
    "linalg.matrix_power": (Rule(LIBRARY, lambda x, n: _floating(x)),),
    **{
        f"linalg.{name}": (_SOLVER,)
        for name in names("""
            cholesky det eig eigh eigvals eigvalsh inv matrix_rank qr slogdet solve svd svdvals
        """)
    },
}
"""By the name of a function or method, the calls that CuPy waits for or refuses to record."""

PRODUCTS = [name for name, rules in RULES.items() if _PRODUCT in rules]
"""Captured if called by `xbp.primitives`, whose accelerator has its own handle; see `captured`."""


def captured(a: Any, b: Any, *args: Any, **keywords: Any) -> bool:
    """Whether the accelerator of `matmul` takes such operands: one matrix, or as many as of a."""
    return bool(b.ndim <= 2 or a.shape[:-2] == b.shape[:-2])


# --- numpy arrays among CuPy's -------------------------------------------------------------------

SILENTLY_NUMPY = names("""
    sum prod max min mean std var argsort sort astype broadcast_arrays flip matrix_transpose
    permute_dims repeat reshape squeeze take
""")
"""Functions that make a numpy array of a numpy array."""

UPLOADS_NUMPY = names("""
    asarray diff real imag round tile tril triu empty_like full_like ones_like zeros_like
""")
"""Functions that make an array on the device of a numpy array. All others raise TypeError."""


__all__ = [
    "OPERATORS",
    "PRODUCTS",
    "RULES",
    "SILENTLY_NUMPY",
    "UPLOADS_NUMPY",
    "Rule",
    "Verdict",
    "verdict",
]
