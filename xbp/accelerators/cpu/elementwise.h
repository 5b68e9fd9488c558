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

/* Softmax and cross-entropy of (n, c) logits with labels: the sum of -log p[label], in double
 * precision, and gradient = scale · (p - one-hot). Returns nan for a label out of range. */
double NAME(cross_entropy)(const real *logits, const int64_t *labels, real *gradient, real scale, int64_t n,
                           int64_t c) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        if (labels[i] < 0 || labels[i] >= c) return NAN;
        const real *z = logits + i * c;
        real *g = gradient + i * c, top = z[0], sum = 0;
        for (int64_t j = 1; j < c; j++) top = z[j] > top || z[j] != z[j] ? z[j] : top;
        for (int64_t j = 0; j < c; j++) sum += g[j] = EXP(z[j] - top);
        const real share = scale / sum;
        for (int64_t j = 0; j < c; j++) g[j] *= share;
        g[labels[i]] -= scale;
        total += LOG(sum) - (z[labels[i]] - top);
    }
    return total;
}
