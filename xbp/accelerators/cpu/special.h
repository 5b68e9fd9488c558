/* The logistic function, tanh, SiLU and GELU with their backwards, by vectors, for one floating-point type
 * `real`. An entry's result depends on the entry alone, not on its place or the number of threads.
 *
 * All of them are made of e^t for t ≤ 0. With k the integer next to t/ln 2 and r = t - k ln 2,
 * e^t = 2^k e^r, |r| ≤ ln 2 / 2, and e^r = 1 + r + r² p(r) for a polynomial p. */

#ifndef SPECIAL_COEFFICIENTS
#define SPECIAL_COEFFICIENTS
/* Minimax polynomials (Remez), from the constant term up. p(r) = (e^r - 1 - r)/r² for |r| ≤ ln 2 / 2: with
 * it, e^r - 1 errs by 2⁻²⁶ and 2⁻⁶¹ of its value. */
static const float POWER_float32[] = {0.5f, 0.166665435f, 0.0416662768f, 0.00836662576f, 0.00139469013f};
static const double POWER_float64[] = {
    0.5, 0.16666666666666677, 0.041666666666666699, 0.0083333333333215631, 0.0013888888888866616,
    0.00019841269886328793, 2.4801587360966192e-05, 2.7557243978072974e-06, 2.7557242417109439e-07,
    2.5109126000970578e-08, 2.0924548686800354e-09};
/* (z + 4) Φ(-z) e^(z²/2) for z ≥ 0, where Φ is the normal distribution function, as a polynomial in
 * (z - 4)/(z + 4), which is in [-1, 1]. It errs by 2⁻²⁸ and 2⁻⁵⁹ of its value, up to z = 18 and 40, where
 * Φ(-z) has vanished. */
static const float NORMAL_float32[] = {
    0.755285144f, -0.607896626f, 0.387137234f, -0.186521798f, 0.060399361f, -0.00754028745f,
    -0.00349610951f, 0.00162580993f, 0.000174170098f, -0.000205687626f, -3.83828956e-05f};
static const double NORMAL_float64[] = {
    0.75528513041575152, -0.60789664197189208, 0.38713740074221487, -0.18652185795965878,
    0.060396574890917161, -0.0075401889666776934, -0.0034796923669645633, 0.0016308184568931733,
    0.00013334430751226045, -0.00023109492999731922, -1.9082256286337577e-06, 3.5144664595181033e-05,
    7.1652791319012096e-07, -5.9201257149525624e-06, -6.2931932514537326e-07, 1.0215173942093663e-06,
    2.7113965038176975e-07, -1.5503404407187629e-07, -8.4676455309518458e-08, 1.3478089521952224e-08,
    1.9161911647866816e-08, 1.7321890212659612e-09, -2.3979808393060418e-09, -6.616596648280999e-10};

typedef struct {
    double ln2_high, ln2_low;   /* their sum is ln 2; k times the first is exact */
    double rounder;             /* t + rounder has t, rounded to an integer, in its lowest bits */
    int mantissa, bias;         /* bits of the mantissa; the exponent that stands for 1 */
    double normal;              /* 2^normal is a normal number, and a subnormal one over it is */
    double least;               /* t at which e^t is 0, see `exponential` */
    double vanished;            /* z with e^(-z²/2) next to that */
    int head;                   /* twice the place of the mantissa's middle bit */
} special_constants;
static const special_constants CONSTANTS_float32 = {
    0x1.62e4p-1, 0x1.7f7d1cp-20, 0x1.8p23, 23, 127, -100, -227 * M_LN2, 17.75, 1 << 12};
static const special_constants CONSTANTS_float64 = {
    0x1.62e42fefa3p-1, 0x1.3de6af278ece6p-42, 0x1.8p52, 52, 1023, -1000, -2023 * M_LN2, 52.953125, 1 << 27};

/* √(2/π) and the cubic term of the approximate GELU (Hendrycks & Gimpel 2016). */
#define GELU_SLOPE 0.79788456080286535588
#define GELU_CUBIC 0.044715
#define ONE_OVER_SQRT_2PI 0.39894228040143267794
#endif

#define C(name) ((real)NAME(CONSTANTS).name)
#define COUNT(coefficients) ((int64_t)(sizeof(coefficients) / sizeof *(coefficients)))

/* Σ c_i x^i by Horner's rule. */
INLINE vector NAME(polynomial)(const real *coefficients, const int64_t count, vector x) {
    vector sum = (vector){0} + coefficients[count - 1];
    UNROLL for (int64_t i = count - 2; i >= 0; i--) sum = sum * x + coefficients[i];
    return sum;
}

#define SIGN ((mask)(-(vector){0})) /* the sign bit alone */
#define NOTHING (-(vector){0})      /* t + NOTHING is t, which compilers know; t + 0 is not, for -0 */

INLINE vector NAME(magnitude)(vector x) { return (vector)((mask)x & ~SIGN); }

/* |size| with the sign of x. */
INLINE vector NAME(with_sign)(vector size, vector x) {
    return (vector)((mask)x ^ (((mask)x ^ (mask)size) & ~SIGN));
}

/* The greater and the less of x and a number; nan stays nan. */
INLINE vector NAME(at_least)(vector x, real low) {
    const vector bound = (vector){0} + low;
#ifdef __AVX512F__
    return (vector)INTRINSIC(max)(bound, x); /* the second one if either is nan */
#else
    return NAME(choose)(x < low, bound, x);
#endif
}
INLINE vector NAME(at_most)(vector x, real high) {
    const vector bound = (vector){0} + high;
#ifdef __AVX512F__
    return (vector)INTRINSIC(min)(bound, x);
#else
    return NAME(choose)(x > high, bound, x);
#endif
}

/* 2^k for an integer k from -bias, which gives 0, to bias. */
INLINE vector NAME(power_of_two)(vector k) {
    return (vector)((mask)(k + (C(rounder) + C(bias))) << NAME(CONSTANTS).mantissa);
}

/* k and e^r - 1, which is relatively accurate near 0, of e^(t + low), where low is small. */
INLINE vector NAME(reduced)(vector t, vector low, vector *k) {
    *k = ((t + low) * (real)M_LOG2E + C(rounder)) - C(rounder);
    const vector r = (t - *k * C(ln2_high)) - (*k * C(ln2_low) - low);
    return r + r * r * NAME(polynomial)(NAME(POWER), COUNT(NAME(POWER)), r);
}

/* e^(t + low) for least ≤ t ≤ 0, as (1 + q) · first · second. Only the second power of two leads to subnormal
 * numbers, so that these are rounded once; it is 0 at `least`. */
typedef struct { vector q, first, second; } NAME(power);

INLINE NAME(power) NAME(exponential)(vector t, vector low) {
    vector k;
    const vector q = NAME(reduced)(t, low, &k);
    const vector first = NAME(at_least)(k, C(normal));
    return (NAME(power)){q, NAME(power_of_two)(first), NAME(power_of_two)(k - first)};
}

INLINE vector NAME(times)(vector factor, NAME(power) e) {
    return (factor + factor * e.q) * e.first * e.second;
}

INLINE vector NAME(exp_below_0)(vector t) {
    return NAME(times)((vector){0} + 1, NAME(exponential)(NAME(at_least)(t, C(least)), NOTHING));
}

/* --- σ(x) and x σ(v), where v has the sign of x: by e = e^-|v|, σ(v) = 1/(1 + e) or e/(1 + e) --- */

INLINE NAME(power) NAME(decay)(vector v) {
    return NAME(exponential)(NAME(at_least)(-NAME(magnitude)(v), C(least)), NOTHING);
}

INLINE vector NAME(logistic_of)(vector x) {
    const vector one = (vector){0} + 1, e = NAME(times)(one, NAME(decay)(x));
    return NAME(choose)(x < 0, e, one) / (1 + e);
}

INLINE vector NAME(gated)(vector x, vector v) {
    const NAME(power) e = NAME(decay)(v);
    return NAME(choose)(x < 0, NAME(times)(x, e), x) / (1 + NAME(times)((vector){0} + 1, e));
}

/* σ(v) + x σ(v) σ(-v) v′ = σ(v) (1 + x σ(-v) v′) */
INLINE vector NAME(gated_slope)(vector x, vector v, vector slope) {
    const NAME(power) power = NAME(decay)(v);
    const vector one = (vector){0} + 1, e = NAME(times)(one, power), large = one / (1 + e);
    const mask below = x < 0;
    const vector sum = 1 + NAME(choose)(below, x, x * e) * large * slope;
    return NAME(choose)(below, NAME(times)(sum, power), sum) * large;
}

/* v = √(8/π) (x + 0.044715 x³) and v′ */
INLINE vector NAME(cubic)(vector x) {
    return x * ((real)(2 * GELU_SLOPE) + (real)(2 * GELU_SLOPE * GELU_CUBIC) * (x * x));
}
INLINE vector NAME(cubic_slope)(vector x) {
    return (real)(2 * GELU_SLOPE) + (real)(6 * GELU_SLOPE * GELU_CUBIC) * (x * x);
}

/* --- tanh |x| = -m/(2 + m) with m = e^(-2|x|) - 1 = 2^k (e^r - 1) + (2^k - 1), which does not cancel --- */

INLINE vector NAME(tanh_of)(vector x) {
    vector k; /* from -58 on; tanh is 1 where it is less */
    const vector t = NAME(at_least)(-2 * NAME(magnitude)(x), -40);
    const vector q = NAME(reduced)(t, NOTHING, &k), s = NAME(power_of_two)(k);
    const vector m = s * q + (s - 1);
    return NAME(with_sign)(m / (2 + m), x);
}

/* --- x Φ(x), with z = |x| and Φ(-z) = e^(-z²/2) N((z - 4)/(z + 4))/(z + 4) --- */

typedef struct { NAME(power) gauss; vector z, ratio; } NAME(normal);

/* e^(-z²/2) and Φ(-z) over it. z² = h² + (z - h)(z + h), where h has half the bits of z and h² is exact. */
INLINE NAME(normal) NAME(tail)(vector x) {
    const vector z = NAME(at_most)(NAME(magnitude)(x), C(vanished)), over = 1 / (z + 4);
    const whole place = NAME(CONSTANTS).head;
    const vector h = (vector)(((mask)z + place / 2) & -place);
    const vector low = (real)-0.5 * (z - h) * (z + h);
    const vector u = (z - 4) * over;
    const vector ratio = NAME(polynomial)(NAME(NORMAL), COUNT(NAME(NORMAL)), u) * over;
    return (NAME(normal)){NAME(exponential)((real)-0.5 * h * h, low), z, ratio};
}

INLINE vector NAME(gelu_of)(vector x) {
    const NAME(normal) n = NAME(tail)(x);
    const mask above = x > 0;
    const vector part = NAME(times)(NAME(choose)(above, n.z, x) * n.ratio, n.gauss);
    return NAME(choose)(above, x - part, part); /* x - x Φ(-x), or x Φ(x) */
}

/* Φ(x) + x Φ′(x), which for -x is 1 less that for x */
INLINE vector NAME(gelu_slope)(vector x) {
    const NAME(normal) n = NAME(tail)(x);
    const vector below = NAME(times)(n.ratio - NAME(magnitude)(x) * (real)ONE_OVER_SQRT_2PI, n.gauss);
    return NAME(choose)(x > 0, 1 - below, below);
}

/* --- passes, as in elementwise.h: a is x or y, b is ∂L/∂y --- */

#define PASS(name, what)                                                                                 \
    INLINE vector NAME(name##_entry)(vector a, vector b) {                                               \
        (void)b;                                                                                         \
        return what;                                                                                     \
    }                                                                                                    \
    static void NAME(name##_loop)(real *restrict to, const real *restrict a, const real *restrict b,     \
                                  real s, real t, real u, int64_t n) {                                      \
        (void)s, (void)t, (void)u;                                                                       \
        int64_t i = 0;                                                                                      \
        for (; i + LANES <= n; i += LANES)                                                               \
            NAME(store)(to + i, 1, LANES, NAME(name##_entry)(NAME(load)(a + i, 1, LANES),                \
                        b ? NAME(load)(b + i, 1, LANES) : (vector){0}));                                 \
        if (i < n)                                                                                       \
            NAME(store)(to + i, 1, n - i, NAME(name##_entry)(NAME(load)(a + i, 1, n - i),                \
                        b ? NAME(load)(b + i, 1, n - i) : (vector){0}));                                 \
    }                                                                                                    \
    void NAME(name)(real *to, const real *a, const real *b, real s, real t, real u, int64_t n,              \
                    int threads) {                                                                       \
        NAME(run)((NAME(pass)){to, a, b, s, t, u, n, NAME(name##_loop)}, threads);                       \
    }

PASS(logistic, NAME(logistic_of)(a))
PASS(logistic_backward, a * (1 - a) * b)
PASS(tanh, NAME(tanh_of)(a))
PASS(tanh_backward, (1 - a * a) * b)
PASS(silu, NAME(gated)(a, a))
PASS(silu_backward, NAME(gated_slope)(a, a, (vector){0} + 1) * b)
PASS(gelu, NAME(gelu_of)(a))
PASS(gelu_backward, NAME(gelu_slope)(a) * b)
PASS(gelu_tanh, NAME(gated)(a, NAME(cubic)(a)))
PASS(gelu_tanh_backward, NAME(gated_slope)(a, NAME(cubic)(a), NAME(cubic_slope)(a)) * b)

#undef C
#undef SIGN
#undef NOTHING
#undef COUNT
#undef PASS
