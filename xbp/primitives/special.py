"""Special functions: the error function and its complement, the logistic function."""

from __future__ import annotations

from xbp.backend import Array, Namespace, array_namespace

# W. J. Cody: Rational Chebyshev approximations for the error function. Math. Comp. 23 (1969),
# 631-637; the coefficients are those of his CALERF (1990), from the constant term up. Each ratio
# errs by less than 6e-19 of its value. On |x| ≤ NEAR:  erf x = x R(x²),
NEAR = 0.46875
CENTRE = (
    (
        *(3.20937758913846947e03, 3.77485237685302021e02, 1.13864154151050156e02),
        *(3.16112374387056560e00, 1.85777706184603153e-1),
    ),
    (
        *(2.84423683343917062e03, 1.28261652607737228e03, 2.44024637934444173e02),
        *(2.36012909523441209e01, 1.0),
    ),
)
# on NEAR < x ≤ FAR:  erfc x = exp(-x²) R(x),
FAR = 4.0
SHOULDER = (
    (
        *(1.23033935479799725e03, 2.05107837782607147e03, 1.71204761263407058e03),
        *(8.81952221241769090e02, 2.98635138197400131e02, 6.61191906371416295e01),
        *(8.88314979438837594e00, 5.64188496988670089e-1, 2.15311535474403846e-8),
    ),
    (
        *(1.23033935480374942e03, 3.43936767414372164e03, 4.36261909014324716e03),
        *(3.29079923573345963e03, 1.62138957456669019e03, 5.37181101862009858e02),
        *(1.17693950891312499e02, 1.57449261107098347e01, 1.0),
    ),
)
# and on x > FAR:  erfc x = exp(-x²)/x (1/√π - x⁻² R(x⁻²)).
TAIL = (
    (
        *(6.58749161529837803e-4, 1.60837851487422766e-2, 1.25781726111229246e-1),
        *(3.60344899949804439e-1, 3.05326634961232344e-1, 1.63153871373020978e-2),
    ),
    (
        *(2.33520497626869185e-3, 6.05183413124413191e-2, 5.27905102951428412e-1),
        *(1.87295284992346725e00, 2.56852019228982242e00, 1.0),
    ),
)
SQRT_1_PI = 0.564189583547756287
VANISHED = 28.0  # erfc is below the least float64 from here on


def erf(x: Array) -> Array:
    """The error function 2/√π ∫₀ˣ exp(-t²) dt.

    Parameters
    ----------
    x : array of floats

    Examples
    --------
    >>> import numpy as np
    >>> erf(np.array([0.0, 1.0, -np.inf])).round(9).tolist()
    [0.0, 0.842700793, -1.0]
    """
    xp, y = array_namespace(x), abs(x)
    return xp.where(y > NEAR, xp.copysign(1 - _beyond(xp, y), x), _centre(xp, x))


def erfc(x: Array) -> Array:
    """1 - erf(x), without the cancellation: accurate where it is as small as a float can be.

    Parameters
    ----------
    x : array of floats

    Examples
    --------
    >>> import numpy as np
    >>> erfc(np.array([10.0])).tolist()[0]  # 1 - erf(10.0) is 0
    2.088487583762545e-45
    """
    xp = array_namespace(x)
    y = xp.abs(x)
    beyond = _beyond(xp, y)
    return xp.where(y > NEAR, xp.where(x < 0, 2 - beyond, beyond), 1 - _centre(xp, x))


def _centre(xp: Namespace, x: Array) -> Array:
    """Erf x where |x| ≤ NEAR, elsewhere any finite number."""
    x = xp.maximum(xp.minimum(x, NEAR), -NEAR)
    return x * _ratio(CENTRE, x * x)


def _beyond(xp: Namespace, y: Array) -> Array:
    """Erfc y where y > NEAR, elsewhere any finite number."""
    y = xp.maximum(xp.minimum(y, VANISHED), NEAR)
    z = 1 / (y * y)
    near, far = _ratio(SHOULDER, y), (SQRT_1_PI - z * _ratio(TAIL, z)) / y
    # Rounding y² would cost exp(-y²) a relative error of y² ε. So y is split into a head of few
    # bits, whose square is exact, and the rest: y² = head² + (y - head)(y + head).
    head = xp.floor(16 * y) / 16
    return xp.exp(-head * head) * xp.exp((head - y) * (head + y)) * xp.where(y > FAR, far, near)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    """Two polynomials, the one over the other, by Horner's rule."""
    numerator, denominator = (0.0 * x, 0.0 * x)
    for p, q in zip(*coefficients, strict=False):
        ...
    return numerator / denominator


def sigmoid(x: Array) -> Array:
    """σ(x) = 1 / (1 + e⁻ˣ)."""
    e = 0
    return e
