/* Elementwise functions for one floating-point type `real`: one pass over memory each, for large arrays
 * on all threads. The loops are plain; the compiler vectorizes them. */

typedef struct {
    real *to;
    const real *a, *b;
    real s, t, u;
    int64_t n;
    void (*loop)(real *restrict to, const real *restrict a, const real *restrict b, real s, real t, real u,
                 int64_t n);
} NAME(pass);

static void NAME(pass_part)(void *task, int part, int parts) {
    const NAME(pass) *p = task;
    /* whole cache lines, so that no two threads write to one line */
    const int64_t lines = (p->n + 15) / 16, from = part * lines / parts * 16;
    const int64_t end = (part + 1) * lines / parts * 16, to = end < p->n ? end : p->n;
    p->loop(p->to + from, p->a + from, p->b ? p->b + from : NULL, p->s, p->t, p->u, to - from);
}

static void NAME(run)(NAME(pass) p, int threads) {
    in_parallel(NAME(pass_part), &p, p.n < 32768 ? 1 : threads);
}

#define LOOP(name, what)                                                                              \
    static void NAME(name##_loop)(real *restrict to, const real *restrict a, const real *restrict b,  \
                                  real s, real t, real u, int64_t n) {                                   \
        (void)a, (void)b, (void)s, (void)t, (void)u;                                                  \
        for (int64_t i = 0; i < n; i++) what;                                                            \
    }                                                                                                 \
    void NAME(name)(real *to, const real *a, const real *b, real s, real t, real u, int64_t n,           \
                    int threads) {                                                                    \
        NAME(run)((NAME(pass)){to, a, b, s, t, u, n, NAME(name##_loop)}, threads);                    \
    }

LOOP(add, to[i] = a[i] + b[i])
LOOP(rectify, to[i] = a[i] <= 0 ? 0 : a[i]) /* nan stays nan */
LOOP(rectify_backward, to[i] = a[i] <= 0 ? 0 : b[i])

#if REAL_BYTES == 4
/* The nearest number with so many bits of the mantissa less, ties to even; overflow is infinite. */
INLINE float rounded(float x, int bits) {
    uint32_t all, half = 1u << (bits - 1);
    memcpy(&all, &x, 4);
    const uint32_t even = all + half - 1 + (all >> bits & 1);
    const uint32_t found = (all & 0x7fffffff) > 0x7f800000 ? all : even & ~(2 * half - 1); /* nan stays nan */
    memcpy(&x, &found, 4);
    return x;
}

/* Below 2⁻¹⁴ the numbers of float16 are multiples of 2⁻²⁴, as those of float32 are next to ½. */
INLINE float rounded_to_float16(float x) {
    const float size = fabsf(x), small = (size + 0.5f) - 0.5f, normal = rounded(size, 13);
    const float large = normal > 65504 ? INFINITY : normal;
    return copysignf(size < 0x1p-14f ? small : large, x);
}

LOOP(round_to_tf32, to[i] = rounded(a[i], 13))
LOOP(round_to_float16, to[i] = rounded_to_float16(a[i]))
LOOP(round_to_bfloat16, to[i] = rounded(a[i], 16))
#endif
