"""Dtypes by the names in the Array API standard, which all libraries share."""

from __future__ import annotations

from typing import Any

from xbp.backend.libraries import Namespace
from xbp.errors import InputError


def dtype_name(dtype: Any) -> str:
    """The standard's name of a dtype: ``"float32"`` for a string or any library's own object.

    >>> import numpy
    >>> dtype_name(numpy.float32), dtype_name(numpy.dtype("float64")), dtype_name("int64")
    ('float32', 'float64', 'int64')
    """
    if isinstance(dtype, type):  # a scalar type such as numpy.float32
        name = dtype.__name__
    else:
        name = str(dtype).rpartition(".")[2]  # "torch.float32", "array_api_strict.float32"
    if name not in DTYPES:
        msg = f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}"
        raise InputError(msg)
    return name


def resolve(xp: Namespace, dtype: Any) -> Any:
    """The dtype object of namespace `xp` for a dtype given by name or by any library."""
    return getattr(xp, dtype_name(dtype))


DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64", "complex64", "complex128"),
)
