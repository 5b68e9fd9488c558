"""Bounds of rounding errors, the source of all tolerances.

The standard model of floating-point arithmetic (N. J. Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed. 2002, §2.2) is fl(a ∘ b) = (a ∘ b)(1 + δ) with |δ| ≤ u, the unit roundoff, 2⁻²⁴
in float32 and 2⁻⁵³ in float64. The effect on a result depends on the condition of all intermediate
steps, and is measured by stochastic arithmetic (Vignes 1978; Parker 1997): the code runs in
float64 on numpy, where each operation makes a random error of the largest size in the dtype:

===========================================  ======================================================
+ - · / √                                    ±u |result|: correctly rounded (IEEE 754)
exp, log, tanh, …                            ±8u |result|: 4 units in the last place. CUDA's manual
                                             allows those of layers 1 to 4, numpy's kernels err
                                             by less than 4.
sum of n numbers, product of matrices        ±u √n Σ|terms|: in any order, with fused multiply-adds
                                             or without, the error is below λ√n u Σ|terms| with
                                             probability 1 - 2n exp(-λ²/2), if roundings are
                                             independent and of mean 0 (Higham & Mary 2019,
                                             theorem 3.1); the worst case is n u Σ|terms|
                                             (Higham 2002, §3.1, §4.2)
solve, inv, svd, … of matrices               exact for operands moved by ±u √n max|operand|: these
                                             algorithms are backward stable, or nearly (§1.5)
max, where, reshape, …, comparisons          none
rounding to a shorter format                 none: the error of its input, which may lead to another
                                             number
a constant that the dtype cannot hold        the rounding of the constant, the same each time
===========================================  ======================================================

The mean square of the errors of `SAMPLES` such runs estimates the variance that the model gives an
entry; its square root, at the worst entry of an array, is that array's `spread`. Signs are ±1 where
true roundings lie anywhere in between, so it is pessimistic by √3 at least. A result passes when
its largest error is at most

    LAMBDA · spread · (1 + u₆₄/u) + the least normal number,

where u₆₄/u covers rounding errors of the truth, computed in float64, and the last term underflow,
which devices may flush to zero. For a Gaussian error of that variance, estimated from 8 samples,
error / spread has Student's distribution with 8 degrees of freedom: it exceeds 8 with probability
4e-5, or with the factor √3 7e-7. Without rounding, as in a reshape, a result must be exact.

Two kinds of faults are out of reach by design: those smaller than rounding errors, and those in
entries much smaller than their array's largest rounding error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from xbp.backend import arrays
from xbp.primitives import round_to
from xbp.testing.helpers import replaced

SAMPLES = 8
LAMBDA = 8.0
FUNCTION = 8.0
"""The error of exp, tanh, … in units of u."""

Host: TypeAlias = "NDArray[Any]"
Key = TypeVar("Key")

_ROUNDED_CORRECTLY = {
    *(np.add, np.subtract, np.multiply, np.true_divide, np.sqrt, np.square, np.reciprocal),
}
_EXACT = {
    *(np.negative, np.positive, np.absolute, np.fabs, np.sign, np.copysign, np.conjugate),
    *(np.maximum, np.minimum, np.fmax, np.fmin, np.clip, np.heaviside, np.ldexp),
    *(np.floor, np.ceil, np.trunc, np.rint, np.nextafter),
}
_PRODUCTS = {np.matmul, np.vecdot} | {
    getattr(np, name)
    for name in ("matvec", "vecmat")
    if hasattr(np, name)  # since numpy 2.2
}
_PRODUCTS_WITHOUT_UFUNC = {np.dot, np.inner, np.vdot, np.tensordot, np.einsum}
_BACKWARD_STABLE = {
    *(np.linalg.cholesky, np.linalg.det, np.linalg.eigh, np.linalg.eigvalsh, np.linalg.inv),
    *(np.linalg.pinv, np.linalg.qr, np.linalg.slogdet, np.linalg.solve, np.linalg.svd),
    *(np.linalg.svdvals,),
}


def roundoff(dtype: str) -> float:
    """u: the largest relative error of one rounding, half the distance from 1 to the next number.

    >>> roundoff("float64") == 2.0**-53
    True
    """
    return float(np.finfo(dtype).eps) / 2


class Rounded(np.ndarray):
    """An array of float64 whose operations make random errors of the size of `dtype`'s."""

    dtype_modelled: ClassVar[np.dtype[Any]] = np.dtype("float32")
    unit: ClassVar[float] = 0.0
    rng: ClassVar[np.random.Generator]

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **keywords: Any
    ) -> Any:
        operands = [_operand(item) for item in inputs]
        keywords = {name: _plain(value) for name, value in keywords.items()}
        if method == "at":
            ufunc.at(*(_plain(item) for item in inputs), **keywords)
            return None
        result = getattr(ufunc, method)(*operands, **keywords)
        if isinstance(result, tuple):
            results = tuple(_rounded(item) for item in result)
        else:
            size = _error(ufunc, method, operands, keywords, result)
            results = (_rounded(result if size is None else result + _random(size)),)
        for target, item in zip(out, results, strict=False):
            if target is not None:
                _plain(target)[...] = item.view(np.ndarray)
        given = tuple(
            item if target is None else target
            for target, item in zip(out or (None,) * len(results), results, strict=True)
        )
        return given if isinstance(result, tuple) else given[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in _BACKWARD_STABLE:
            args = tuple(_backward_error(item) for item in args)
        result = super().__array_function__(func, (np.ndarray,), args, kwargs)
        if func in _PRODUCTS_WITHOUT_UFUNC:
            operands = [_plain(item) for item in args]
            magnitudes = [np.abs(item) if _is_floating(item) else item for item in operands]
            sizes = [np.size(item) for item in operands if isinstance(item, np.ndarray)]
            n = np.sqrt(np.prod(sizes[-2:]) / max(np.size(result), 1))
            return _rounded(_plain(result) + _random(np.sqrt(n) * func(*magnitudes, **kwargs)))
        if func is np.where:
            result = _operand(_plain(result))
        return _rounded_tree(result)


class _Namespace:
    """numpy, except that it creates `Rounded` arrays."""

    born = frozenset({"arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros"})

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if name not in self.born:
            return found
        return lambda *arguments, **options: _rounded(found(*arguments, **options))


def _error(
    ufunc: Any, method: str, operands: list[Any], keywords: dict[str, Any], result: Any
) -> Any:
    """The error of an operation in units of u; None for an exact one."""
    if ufunc in _EXACT or not _is_floating(result):
        return None
    if method == "__call__" and ufunc not in _PRODUCTS:
        return np.abs(result) if ufunc in _ROUNDED_CORRECTLY else FUNCTION * np.abs(result)
    magnitudes = [np.abs(item) if _is_floating(item) else item for item in operands]
    if ufunc in _PRODUCTS:
        return np.sqrt(operands[0].shape[-1]) * ufunc(*magnitudes, **keywords)
    if method == "accumulate":
        n = operands[0].shape[keywords.get("axis", 0)]
    else:
        n = max(np.size(operands[0]) // max(np.size(result), 1), 1)
    if ufunc is np.add:
        return np.sqrt(n - 1) * getattr(ufunc, method)(*magnitudes, **keywords)
    return np.sqrt(n - 1) * np.abs(result)


def _backward_error(item: Any) -> Any:
    if not _is_floating(item):
        return item
    size = np.sqrt(max(np.shape(item), default=1)) * np.max(np.abs(_plain(item)), initial=0.0)
    return _plain(item) + _random(np.broadcast_to(size, np.shape(item)))


def _random(size: Any) -> Any:
    """±u · size where that is finite, else 0."""
    signs = Rounded.rng.integers(0, 2, np.shape(size)) * (2.0 * Rounded.unit) - Rounded.unit
    return np.where(np.isfinite(size), signs * size, 0.0)


def _operand(item: Any) -> Any:
    """An operand as a plain array; one that is no result is rounded to the dtype first."""
    if isinstance(item, Rounded):
        return item.view(np.ndarray)
    if isinstance(item, float):
        return float(Rounded.dtype_modelled.type(item))
    if _is_floating(item):
        return item.astype(Rounded.dtype_modelled).astype(np.float64)
    return item


def _is_floating(item: Any) -> bool:
    return isinstance(item, float) or getattr(getattr(item, "dtype", None), "kind", "") == "f"


def _plain(item: Any) -> Any:
    return item.view(np.ndarray) if isinstance(item, Rounded) else item


def _rounded(item: Any) -> Any:
    return np.asarray(item).view(Rounded)


def _rounded_tree(item: Any) -> Any:
    if isinstance(item, tuple | list):
        parts = [_rounded_tree(part) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    return _rounded(item) if isinstance(item, np.ndarray | np.generic) else item


@contextmanager
def _arithmetic(dtype: str, unit: float, seed: int) -> Iterator[None]:
    Rounded.dtype_modelled, Rounded.unit = np.dtype(dtype), unit
    Rounded.rng = np.random.default_rng(seed)
    kinds = (Rounded, np.ndarray, np.float64, np.bool, np.int64)
    namespaces = {**arrays._NAMESPACE_OF_TYPE, **dict.fromkeys(kinds, _Namespace())}
    exact = replaced(round_to, reference=_rounded_to)
    with replaced(arrays, _NAMESPACE_OF_TYPE=namespaces), exact, np.errstate(all="ignore"):
        yield


_round_to: Any = round_to.reference  # type: ignore[attr-defined]


def _rounded_to(x: Any, name: str) -> Any:
    """The reference of `round_to`, which is exact: only its input has errors."""
    found = _round_to(_plain(x), name)
    return _rounded(found) if isinstance(x, Rounded) else found


def bounds(
    run: Callable[[Callable[[Host], Any]], dict[Key, Host]], truth: dict[Key, Host], dtype: str
) -> dict[Key, float]:
    """The largest error that rounding in `dtype` explains, by result.

    Parameters
    ----------
    run : callable
        ``run(rounded)`` computes the results on numpy in float64, each input x as ``rounded(x)``.
    truth : dict of numpy arrays
        The same results without errors; bounds are for floating-point ones alone.
    dtype : {"float32", "float64"}

    Examples
    --------
    >>> x = np.array([1.0, 1e8, -1e8])
    >>> run = lambda rounded: {"sum": np.sum(rounded(x)), "mirror": rounded(x)[::-1]}
    >>> found = bounds(run, run(np.asarray), "float32")
    >>> 10 < found["sum"] < 1000, found["mirror"] < 1e-30
    (True, True)
    """
    u = roundoff(dtype)
    # For float64 larger errors are made and scaled down, since small effects are proportional. The
    # run's own rounding errors are 2⁻¹³ of them.
    unit = max(u, 2.0**-40)
    squares = {key: np.zeros(array.shape) for key, array in truth.items()}
    for seed in range(SAMPLES):
        with _arithmetic(dtype, unit, seed):
            sample = run(_rounded)
        for key, total in squares.items():
            if truth[key].dtype.kind == "f":
                with np.errstate(invalid="ignore"):  # ∞ - ∞
                    distance = np.asarray(sample[key]) - truth[key]
                total += np.where(np.isfinite(distance), distance, 0.0) ** 2
    factor = LAMBDA * (u / unit) * (1 + roundoff("float64") / u)
    least = float(np.finfo(dtype).tiny)
    return {
        key: factor * float(np.sqrt(np.max(total, initial=0.0) / SAMPLES)) + least
        for key, total in squares.items()
    }
