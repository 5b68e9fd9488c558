"""Findings: what comparing a backend's results with the truth came to, quantity by quantity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Backend, dtype_name, library_of, to_numpy, whereabouts

Host: TypeAlias = "NDArray[Any]"
Quantity: TypeAlias = "tuple[str, str]"
"""Name and direction of a compared array."""

Quantities: TypeAlias = "dict[Quantity, Any]"


INVISIBLE = 1e-30
"""A bound below this means that no rounding was observed that could explain an error."""


@dataclass(frozen=True)
class Finding:
    """The comparison of one quantity on one backend.

    Attributes
    ----------
    backend, dtype : str
    quantity : str
        ``"the output"``, ``"the gradient of weight"``, ``"random draw 0"``,
        ``"m of the parameter after 3 steps"``, …
    direction : str
        ``"forward"``, ``"backward"``, ``"state"`` or ``"bits"``.
    error, bound : float
        The largest distance to the float64 truth, and the largest that rounding explains (see
        `xbp.testing.tolerances`).
    problem : str
        Empty, or one sentence about another fault: a wrong dtype, shape or device, different bits,
        a hidden wait, a crash.
    """

    backend: str
    dtype: str
    quantity: str
    direction: str
    error: float
    bound: float
    problem: str = ""

    @property
    def units(self) -> float:
        """The error in units of its bound: at most 1 passes."""
        return 0.0 if self.error == 0 else self.error / self.bound if self.bound else math.inf

    @property
    def passed(self) -> bool:
        return not self.problem and self.units <= 1

    def __str__(self) -> str:
        what = self.problem or (
            f"{self.quantity} is {self.error:.3g} from the truth, "
            f"where rounding explains {self.bound:.3g}"
        )
        if not self.problem and self.bound < INVISIBLE:
            what += " (roundings within compiled code are not seen; rtol=… allows for them)"
        return f"on {self.backend} in {self.dtype}, {what}"


def compare(
    backend: Backend,
    dtype: str,
    results: Quantities,
    truth: dict[Quantity, Host],
    allowed: dict[Quantity, float],
) -> Iterator[Finding]:
    for key in [*truth, *(key for key in results if key not in truth)]:
        (quantity, direction), error, bound = key, 0.0, 0.0
        expected, result = truth.get(key), results.get(key)
        problem = _misfit(backend, dtype, direction, expected, result)
        if not problem and expected is not None:
            host = to_numpy(result)
            if direction == "bits":
                if host.tobytes() != expected.tobytes():
                    problem = "is not the same, bit for bit, as on numpy"
            elif not np.array_equal(np.isfinite(host), np.isfinite(expected)):
                problem = "is not finite in other places than the truth"
            elif not np.array_equal(_ends(host), _ends(expected), equal_nan=True):
                problem = "has other infinities, or nan in other places, than the truth"
            else:
                error, bound = _distance(host, expected), allowed[key]
        yield Finding(
            backend.name,
            dtype,
            quantity,
            direction,
            error,
            bound,
            f"{quantity} {problem}" if problem else "",
        )


def _misfit(backend: Backend, dtype: str, direction: str, expected: Any, result: Any) -> str:
    """A wrong library, device, dtype or shape of a result, in words; empty if all are right."""
    if expected is None:
        return "does not exist on numpy"
    if result is None:
        return "exists on numpy only"
    library = library_of(result)
    if library is None or library.name != backend.name or result.device != backend.device:
        return f"is on {whereabouts(result)} in place of {backend}"
    wanted = dtype_name(expected.dtype) if direction == "bits" else dtype
    if dtype_name(result.dtype) != wanted:
        return f"is {dtype_name(result.dtype)} in place of {wanted}"
    if tuple(result.shape) != expected.shape:
        return f"has shape {tuple(result.shape)} in place of {expected.shape}"
    return ""


def _ends(array: Host) -> Host:
    """Infinities and nan of an array, with 0 elsewhere."""
    return np.where(np.isfinite(array), 0, array)


def _distance(a: Host, b: Host) -> float:
    finite = np.isfinite(b)
    return float(np.max(np.abs(a[finite].astype(float) - b[finite]), initial=0.0))
