"""Special functions: the error function, its complement, the logistic function."""

from __future__ import annotations

from xbp.backend import Array, Namespace, array_namespace
from xbp.primitives.dispatch import primitive

# W. J. Cody: Rational Chebyshev approximations for the error function. Math. Comp. 23 (1969),
# 631-637. Each R is a ratio of two polynomials, given by their coefficients from the highest power
# down (the digits are those of Cody's CALERF), and errs by less than 1e-17 of the function's value.
#
# |x| ≤ NEAR:      erf x = x R(x²)
NEAR = 0.5  # Cody's 0.46875, moved to where erf passes ½: 1 - erfc has no more than erfc's error
CENTRE = (
    (
        *(1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2),
        *(3.77485237685302021e2, 3.20937758913846947e3),
    ),
    (
        *(1.0, 2.36012909523441209e1, 2.44024637934444173e2),
        *(1.28261652607737228e3, 2.84423683343917062e3),
    ),
)
# NEAR < x ≤ FAR:  erfc x = exp(-x²) R(x)
FAR = 4.0
SHOULDER = (
    (
        *(2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0),
        *(6.61191906371416295e1, 2.98635138197400131e2, 8.81952221241769090e2),
        *(1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3),
    ),
    (
        *(1.0, 1.57449261107098347e1, 1.17693950891312499e2),
        *(5.37181101862009858e2, 1.62138957456669019e3, 3.29079923573345963e3),
        *(4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
    ),
)
# x > FAR:         erfc x = exp(-x²)/x (1/√π - x⁻² R(x⁻²))
TAIL = (
    (
        *(1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1),
        *(1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4),
    ),
    (
        *(1.0, 2.56852019228982242e0, 1.87295284992346725e0),
        *(5.27905102951428412e-1, 6.05183413124413191e-2, 2.33520497626869185e-3),
    ),
)
ONE_OVER_SQRT_PI = 0.564189583547756287
VANISHED = 28.0  # erfc is below the least float64 from here on


def erf(x: Array) -> Array:
    """The error function, 2/√π ∫₀ˣ exp(-t²) dt.

    Parameters
    ----------
    x : array of floating-point numbers

    Examples
    --------
    >>> import numpy as np
    >>> erf(np.array([0.0, 1.0, -np.inf])).round(9).tolist()
    [0.0, 0.842700793, -1.0]
    """
    xp = array_namespace(x)
    y = xp.abs(x)
    return xp.where(y > NEAR, xp.copysign(1 - _outer(xp, y), x), _inner(xp, x))


def erfc(x: Array) -> Array:
    """1 - erf(x), with full relative accuracy down to the least normal number.

    Parameters
    ----------
    x : array of floating-point numbers

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([10.0])
    >>> f"{erfc(x)[0]:.9g}", f"{(1 - erf(x))[0]:.9g}"
    ('2.08848758e-45', '0')
    """
    xp = array_namespace(x)
    y = xp.abs(x)
    outer = _outer(xp, y)
    return xp.where(y > NEAR, xp.where(x < 0, 2 - outer, outer), 1 - _inner(xp, x))


@primitive
def sigmoid(x: Array) -> Array:
    """The logistic function, σ(x) = 1 / (1 + e⁻ˣ).

    Computed from e^-|x|, which cannot overflow: for x < 0 as e^x / (1 + e^x), which keeps the
    relative accuracy of small values.

    Parameters
    ----------
    x : array of floating-point numbers

    Examples
    --------
    >>> import numpy as np
    >>> sigmoid(np.array([-1e4, 0.0, 1e4])).tolist()
    [0.0, 0.5, 1.0]
    """
    xp = array_namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0, e) / (1 + e)


def _inner(xp: Namespace, x: Array) -> Array:
    """erf x for |x| ≤ NEAR; finite and unused elsewhere."""
    x = xp.maximum(xp.minimum(x, NEAR), -NEAR)
    return x * _ratio(CENTRE, x * x)


def _outer(xp: Namespace, y: Array) -> Array:
    """erfc y for y > NEAR; finite and unused elsewhere."""
    y = xp.maximum(xp.minimum(y, VANISHED), NEAR)
    z = 1 / (y * y)
    tail = (ONE_OVER_SQRT_PI - z * _ratio(TAIL, z)) / y
    # exp(-y²) would magnify the rounding error of y² by y². Hence y² = head² + (y - head)(y + head)
    # with head, y cut to sixteenths, whose square is exact.
    head = xp.floor(16 * y) / 16
    gauss = xp.exp(-head * head) * xp.exp((head - y) * (head + y))
    return gauss * xp.where(y > FAR, tail, _ratio(SHOULDER, y))


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    numerator, denominator = (_polynomial(coefficients, x) for coefficients in polynomials)
    return numerator / denominator


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """A polynomial by Horner's rule, with the highest power first."""
    first, second, *others = coefficients
    value = first * x + second
    for coefficient in others:
        value *= x
        value += coefficient
    return value
