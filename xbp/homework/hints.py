"""What a wrong array says about the derivation behind it.

A student's array is compared with the right one, and with what the usual mistakes would give: the
right one negated, multiplied by a number, transposed, with a sum left out or of some samples only,
with one of its terms or factors missing. The first that fits becomes a hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Host: TypeAlias = "NDArray[Any]"

KINDS = {
    "sum": "a sum is missing, or runs over something else",
    "transpose": "a transpose, or a turned kernel",
    "factor": "a constant factor",
    "sign": "a sign",
    "chain": "a factor or a term of the chain rule",
    "shape": "the shape of an array",
    "state": "what is kept between steps",
    "overflow": "numbers beyond the largest one",
    "contract": "what a function takes and returns",
    "device": "code for one array library alone",
    "crash": "an exception",
    "unknown": "none of these is recognized",
}
"""The kinds of faults that a hint can name."""

CLOSE = 1e-8
"""Arrays are equal up to this share of their largest entry. Rounding in float64 is below 1e-12
here, and any fault changes an array by much more."""


@dataclass(frozen=True)
class Hint:
    """One thing that is wrong.

    Attributes
    ----------
    quantity : str
        What is wrong: ``"∂L/∂W"``, ``"the output"``, …
    kind : str
        One of `KINDS`.
    sentence : str
        Where to look, without the answer.
    """

    quantity: str
    kind: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.quantity}: {self.sentence}"


@dataclass(frozen=True)
class Truth:
    """The right array, and what is known about how it comes about.

    Attributes
    ----------
    value : array
    terms : mapping of str to array
        Terms that sum to it, by their names.
    factors : mapping of str to array
        Factors of its entries, in its shape, by their names.
    mistakes : sequence of (kind, sentence, array)
        What misconceptions would give.
    samples : sequence of array
        The share of each sample in it.
    sizes : mapping of str to int
        Numbers that may occur as a wrong factor, by their names.
    """

    value: Host
    terms: Mapping[str, Host] = field(default_factory=dict)
    factors: Mapping[str, Host] = field(default_factory=dict)
    mistakes: Iterable[tuple[str, str, Host]] = ()
    samples: Iterable[Host] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


def diagnose(quantity: str, found: Any, truth: Truth) -> Hint | None:
    """What is wrong with an array; None if nothing is."""
    if found is NotImplemented:
        return Hint(quantity, "contract", "it is not written yet")
    try:
        array = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        sentence = f"it should be an array, and is {type(found).__name__}"
        return Hint(quantity, "contract", sentence)
    if array.shape == truth.value.shape and close(array, truth.value):
        return None
    rules = _of_shape if array.shape != truth.value.shape else _of_values
    for kind, sentence in rules(array, truth):
        return Hint(quantity, kind, sentence)
    where = ""
    if array.shape == truth.value.shape:
        worst = int(np.nanargmax(np.abs(array - truth.value)))
        entry = tuple(int(i) for i in np.unravel_index(worst, array.shape))
        right = np.isclose(array, truth.value, rtol=CLOSE, atol=CLOSE * _size(truth.value))
        where = (
            f"; {int(right.sum())} of {array.size} entries are right, and entry {entry} is "
            f"{array[entry]:.6g} in place of {truth.value[entry]:.6g}"
        )
    return Hint(quantity, "unknown", f"it is wrong, in a way that is not recognized{where}")


def close(a: Host, b: Host) -> bool:
    """Whether two arrays of one shape are equal, up to rounding."""
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.abs(a - b) <= CLOSE * max(_size(a), _size(b))))


def _size(array: Host) -> float:
    return float(np.max(np.abs(array), initial=0.0))


# --- another shape -------------------------------------------------------------------------------


def _of_shape(array: Host, truth: Truth) -> Iterator[tuple[str, str]]:
    right = truth.value
    got = f"its shape is {array.shape}, and should be {right.shape}"
    if array.ndim == right.ndim == 2 and array.shape == right.shape[::-1]:
        yield "transpose", f"{got}: rows and columns are exchanged"
    for axes in subsets(range(array.ndim)):
        for keepdims in (False, True):
            summed = array.sum(axis=axes, keepdims=keepdims)
            if summed.shape == right.shape and _multiple(summed, right) is not None:
                yield "sum", f"{got}: a sum is missing, over axis {_listed(axes)} of yours"
    for axes in subsets(range(right.ndim)):
        summed = right.sum(axis=axes)
        for other in (summed, right.sum(axis=axes, keepdims=True)):
            if other.shape == array.shape and _multiple(array, other) is not None:
                yield "sum", f"{got}: it is summed over axis {_listed(axes)}, which should stay"
    if array.size == right.size and close(array.reshape(right.shape), right):
        yield "shape", f"{got}; the numbers are right"
    for kind, sentence, mistake in truth.mistakes:
        if mistake.shape == array.shape and close(array, mistake):
            yield kind, sentence
    if array.ndim > right.ndim:
        yield "sum", f"{got}: a sum is missing"
    yield "shape", f"{got}, like the array that it belongs to"


def subsets(axes: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """All non-empty sets of axes, the smallest first."""
    axes = list(axes)
    return chain.from_iterable(combinations(axes, n) for n in range(1, len(axes) + 1))


def _listed(axes: tuple[int, ...]) -> str:
    return " and ".join(map(str, axes))


# --- other numbers -------------------------------------------------------------------------------


def _of_values(array: Host, truth: Truth) -> Iterator[tuple[str, str]]:
    right = truth.value
    if not np.all(np.isfinite(array)):
        yield "overflow", "it is not finite"
        return
    if not np.any(array):
        yield "chain", "it is 0 everywhere: nothing arrives"
        return
    multiple = _multiple(array, right)
    if multiple is not None:
        kind, sentence, named = _of_multiple(multiple, truth.sizes)
        if named or right.size > 1:  # any number is a multiple of another
            yield kind, sentence
    if right.ndim == 2 and right.shape[0] == right.shape[1] and _multiple(array, right.T):
        yield "transpose", "it is the transpose of the right one"
    for kind, sentence, mistake in truth.mistakes:
        if mistake.shape == array.shape and close(array, mistake):
            yield kind, sentence
    yield from _of_factors(array, truth)
    yield from _of_terms(array, truth)
    yield from _of_samples(array, truth)
    for kind, sentence, mistake in truth.mistakes:
        multiple = _multiple(array, mistake) if mistake.shape == array.shape else None
        if multiple is not None:
            yield kind, f"{sentence}; besides, there is a factor {multiple:.4g}"
    for turned in subsets(range(right.ndim)):
        if right.ndim > 1 and close(array, np.flip(right, turned)):
            yield "transpose", f"it is turned around, along axis {_listed(turned)}"


def _multiple(array: Host, right: Host) -> float | None:
    """The number c for which array = c · right."""
    square = float(np.sum(right * right))
    if square == 0 or not np.all(np.isfinite(array)):
        return None
    multiple = float(np.sum(array * right)) / square
    return multiple if abs(multiple) > CLOSE and close(array, multiple * right) else None


def _of_multiple(multiple: float, sizes: Mapping[str, int]) -> tuple[str, str, bool]:
    """A kind and a sentence, and whether the number is a known one."""
    if math.isclose(multiple, -1, rel_tol=CLOSE):
        return "sign", "its sign is wrong", True
    named = {"2": 2.0, "½": 0.5} | {name: float(n) for name, n in sizes.items()}
    for name, n in sizes.items():
        below = f"({name})" if " " in name else name
        named |= {f"1/{below}": 1 / n, f"2/{below}": 2 / n}
    for name, number in named.items():
        if math.isclose(abs(multiple), number, rel_tol=CLOSE) and number != 1:
            sign = "" if multiple > 0 else ", and its sign is wrong"
            return "factor", f"there is a factor {name} too much{sign}", True
    return "factor", f"it is {multiple:.6g} times the right one", False


def _of_factors(array: Host, truth: Truth) -> Iterator[tuple[str, str]]:
    for name, factor in truth.factors.items():
        if _multiple(array * factor, truth.value) is not None:
            yield "chain", f"the factor {name} is missing"
        if _multiple(array, truth.value * factor) is not None:
            yield "chain", f"the factor {name} is there twice"


def _of_terms(array: Host, truth: Truth) -> Iterator[tuple[str, str]]:
    """The coefficient of each term, if a sum of multiples of the terms is found."""
    names = list(truth.terms)
    if len(names) < 2:
        return
    basis = np.stack([np.broadcast_to(truth.terms[name], array.shape).ravel() for name in names])
    coefficients, _, rank, _ = np.linalg.lstsq(basis.T, array.ravel(), rcond=None)
    if rank < len(names) or not close((coefficients @ basis).reshape(array.shape), array):
        return
    for name, c in zip(names, coefficients, strict=True):
        if abs(c) < 1e-6:
            yield "chain", f"the term {name} is missing"
    for name, c in zip(names, coefficients, strict=True):
        if math.isclose(c, -1, rel_tol=1e-6):
            yield "sign", f"the sign of the term {name} is wrong"
        elif not math.isclose(c, 1, rel_tol=1e-6):
            kind, sentence, _ = _of_multiple(float(c), truth.sizes)
            yield kind, f"in the term {name}, {sentence}"


def _of_samples(array: Host, truth: Truth) -> Iterator[tuple[str, str]]:
    samples = list(truth.samples)
    if not samples or any(sample.shape != array.shape for sample in samples):
        return
    for sample, which in ((samples[-1], "last"), (samples[0], "first")):
        if _multiple(array, sample) is not None:
            yield "sum", f"it is the share of the {which} sample alone, and all contribute"
    for number in range(1, len(samples)):
        if _multiple(array, sum(samples[:number], start=np.zeros_like(array))) is not None:
            yield "sum", f"it is the sum over the first {number} of {len(samples)} samples"
