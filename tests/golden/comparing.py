"""Comparison of two files or JSON documents, except for times, versions and rounding."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

ROUNDING = {"float32": 1e-4, "float64": 1e-13}
"""How far a number may lie from that of then, in units of it; an array, of its largest entry.

Other kernels, threads and processors add in another order. At the end of the trainings here that
came to 1.3e-5 in float32, in a velocity of RMSprop, which divides by what it has just subtracted,
and to 1.2e-15 in float64: on numpy with AVX-512, AVX2 and SSE, compiled or not, on one thread and
two, on array_api_strict and PyTorch. Any other batch or mask moves a parameter by 1e-3 at least:
`test_golden.test_another_training_is_not_taken_for_the_same`.
"""

OWN = frozenset({"xbp", "sha256", "seconds", "size"})
"""Keys whose values may differ: version, checksum, times; the size of a log whose numbers were
rounded."""


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Document and arrays of a safetensors file of xbp, read without xbp."""
    with safe_open(path, framework="np") as file:
        document = json.loads((file.metadata() or {}).get("xbp", "{}"))
        return document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def unpacked(path: Path, folder: Path) -> Path:
    """`path`, or the content of ``path.xz`` in `folder`."""
    packed = path.with_name(path.name + ".xz")
    if not packed.exists():
        return path
    (folder / path.name).write_bytes(lzma.decompress(packed.read_bytes()))
    return folder / path.name


def assert_same(got: Any, wanted: Any, rounding: float, where: str = "it") -> None:
    """Check structure, keys, whole numbers and texts for equality, other numbers to a tolerance."""
    match wanted:
        case dict():
            assert isinstance(got, dict), where
            assert set(got) == set(wanted), f"{where} has other keys"
            for key in wanted:
                if key not in OWN:
                    assert_same(got[key], wanted[key], rounding, f"{where}[{key!r}]")
                assert type(got[key]) is type(wanted[key]), f"{where}[{key!r}]"
        case list():
            assert isinstance(got, list) and len(got) == len(wanted), where
            for index, pair in enumerate(zip(got, wanted, strict=True)):
                assert_same(*pair, rounding, f"{where}[{index}]")
        case float() if math.isfinite(wanted):
            assert isinstance(got, float), where
            assert abs(got - wanted) <= rounding * abs(wanted), (
                f"{where} is {got}, where it was {wanted}"
            )
        case np.ndarray():
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), where
            apart = distance(got, wanted) if wanted.dtype.kind == "f" else np.any(got != wanted)
            assert apart <= rounding, f"{where} is {apart:.3g} from what it was"
        case _:
            assert got == wanted and type(got) is type(wanted), f"{where} is {got}, not {wanted}"


def distance(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference of two entries, relative to the largest expected entry."""
    apart = np.max(np.abs(got.astype(np.float64) - wanted), initial=0.0)
    return float(apart and apart / np.max(np.abs(wanted)))


def assert_same_file(got: Path, wanted: Path, rounding: float) -> None:
    """Compare two files of xbp, both read without xbp."""
    documents, arrays = zip(read(got), read(wanted), strict=True)
    assert_same(*documents, rounding, "the document")
    assert_same(*arrays, rounding, "the arrays")
