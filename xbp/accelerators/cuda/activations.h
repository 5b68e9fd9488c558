/* Elementwise functions y = f(x). `through` is ∂L/∂x from ∂L/∂y = d, and from what a backward reads: x, or where
 * KEEPS_Y the value y. Formulas and behaviour at infinity are those of xbp/primitives/elementwise.py. */

struct identity {
    static constexpr bool KEEPS_Y = false;
    static __device__ real of(real x) { return x; }
    static __device__ real through(real, real d) { return d; }
};

struct rectify {
    static constexpr bool KEEPS_Y = true;
    static __device__ real of(real x) { return x <= 0 ? 0 : x; } /* nan stays nan */
    static __device__ real through(real y, real d) { return y <= 0 ? 0 : d; }
};

struct tangent { /* hyperbolic */
    static constexpr bool KEEPS_Y = true;
    static __device__ real of(real x) { return tanh(x); }
    static __device__ real through(real y, real d) { return (1 - y * y) * d; }
};

struct logistic {
    static constexpr bool KEEPS_Y = true;
    static __device__ real of(real x) {
        const real e = exp(-fabs(x)); /* cannot overflow */
        return (x < 0 ? e : 1) / (1 + e);
    }
    static __device__ real through(real y, real d) { return y * (1 - y) * d; }
};

struct silu {
    static constexpr bool KEEPS_Y = false;
    static __device__ real of(real x) { return x * logistic::of(x); }
    static __device__ real through(real x, real d) {
        const real g = logistic::of(x);
        return (g + x * (g * (1 - g))) * d;
    }
};

struct gelu {
    static constexpr bool KEEPS_Y = false;
    static __device__ real part(real x) { return (real)0.5 * erfc((real)-0.70710678118654752440 * x); }
    static __device__ real of(real x) { return x * part(x); }
    static __device__ real through(real x, real d) {
        const real slope = exp((real)-0.5 * x * x) * (real)0.39894228040143267794; /* 1/√2π */
        return (part(x) + x * slope) * d;
    }
};

struct gelu_by_tanh {
    static constexpr bool KEEPS_Y = false;
    static constexpr real TWICE = (real)1.59576912160573071176, CUBIC = (real)0.044715; /* TWICE: √(8/π) */
    static __device__ real part(real x) { return logistic::of(TWICE * (x + CUBIC * x * x * x)); }
    static __device__ real of(real x) { return x * part(x); }
    static __device__ real through(real x, real d) {
        const real g = part(x);
        return (g + x * (g * (1 - g) * (TWICE * (1 + 3 * CUBIC * x * x)))) * d;
    }
};

/* Numbers of float32 rounded to other formats, ties to even; nan stays nan. */

template <int BITS> struct shorter { /* so many bits of the mantissa less; overflow is infinite */
    static constexpr bool KEEPS_Y = false;
    static __device__ float of(float x) {
        const unsigned all = __float_as_uint(x), even = all + (1u << (BITS - 1)) - 1 + (all >> BITS & 1);
        return (all & 0x7fffffff) > 0x7f800000 ? x : __uint_as_float(even & ~((1u << BITS) - 1));
    }
    static __device__ float through(float, float d) { return d; }
};

struct round_to_tf32 : shorter<13> {};
struct round_to_bfloat16 : shorter<16> {};

struct round_to_float16 {
    static constexpr bool KEEPS_Y = false;
    static __device__ float of(float x) {
        const float size = fabsf(x), normal = shorter<13>::of(size);
        /* below 2^-14 multiples of 2^-24, as numbers of float32 are next to 1/2 */
        const float small = (size + 0.5f) - 0.5f;
        const float large = normal > 65504.0f ? __uint_as_float(0x7f800000) : normal;
        return copysignf(size < 0x1p-14f ? small : large, x);
    }
    static __device__ float through(float, float d) { return d; }
};
