/* In-place updates of optimizers for one floating-point type `real`: a list of arrays in one call, one
 * pass over memory each, large lists on all threads. The loops are plain; the compiler vectorizes them.
 * An entry's result depends on the entry alone. The list is given as it lies in memory, see arrays.h. */

typedef struct {
    const layout *l;
    void **arrays; /* those that are changed, then the first partners of all, then the second ones, … */
    int64_t count, partners;
    real s, t, u;
    const real *adaptive; /* of `adaptive_step`, which changes its first two partners, too; else NULL */
    void (*loop)(real *restrict to, const real *restrict a, const real *restrict b, real s, real t, real u,
                 int64_t n);
} NAME(update);

/* m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², p ← p - rate m / (scale √v + eps), from numbers in the order
 * β₁, 1 - β₁, β₂, 1 - β₂, rate, scale, eps. The same bits as from `average`, `average_product` and
 * `normalized_step`, in seven passes over memory in place of ten. */
static void NAME(adaptive_loop)(real *restrict p, real *restrict m, real *restrict v, const real *restrict g,
                                const real *numbers, int64_t n) {
    const real b1 = numbers[0], c1 = numbers[1], b2 = numbers[2], c2 = numbers[3];
    const real rate = numbers[4], scale = numbers[5], eps = numbers[6];
    for (int64_t i = 0; i < n; i++) {
        m[i] = b1 * m[i] + c1 * g[i];
        v[i] = b2 * v[i] + c2 * g[i] * g[i];
        p[i] -= rate * m[i] / (scale * SQRT(v[i]) + eps);
    }
}

static void NAME(update_part)(void *task, int part, int parts) {
    const NAME(update) *u = task;
    for (int64_t i = 0; i < u->count; i++) {
        const array_fields *of[4];
        for (int64_t k = 0; k <= u->partners; k++)
            of[k] = (const void *)((const char *)u->arrays[k * u->count + i] + u->l->header);
        const int64_t n = entries_of(of[0]);
        /* whole cache lines, so that no two threads write to one line */
        const int64_t lines = (n + 15) / 16, from = part * lines / parts * 16;
        const int64_t end = (part + 1) * lines / parts * 16, to = end < n ? end : n;
        if (from < to && u->adaptive)
            NAME(adaptive_loop)((real *)of[0]->data + from, (real *)of[1]->data + from,
                                (real *)of[2]->data + from, (const real *)of[3]->data + from, u->adaptive,
                                to - from);
        else if (from < to)
            u->loop((real *)of[0]->data + from, u->partners ? (const real *)of[1]->data + from : NULL,
                    u->partners > 1 ? (const real *)of[2]->data + from : NULL, u->s, u->t, u->u, to - from);
    }
}

/* Returns 0 when done; 1, with nothing changed, where an array is none of this type in row-major order, or
 * its partners have another shape or share memory with it. */
static int NAME(run_update)(NAME(update) u, const void *list, int number, int threads) {
    const list_fields *given = list_of(list, u.l);
    u.arrays = given->items;
    u.count = given->size / (1 + u.partners);
    int64_t total = 0;
    const int64_t changed = u.adaptive ? 3 : 1;
    for (int64_t i = 0; i < u.count; i++) {
        const array_fields *of[4];
        for (int64_t k = 0; k <= u.partners; k++) {
            of[k] = array_of(u.arrays[k * u.count + i], u.l, number, k < changed ? PLAIN | IS_WRITEABLE : PLAIN);
            if (!of[k] || !of_one_shape(of[0], of[k])) return 1;
            const int64_t bytes = entries_of(of[0]) * sizeof(real);
            if (k == 0) total += entries_of(of[0]);
            for (int64_t other = 0; other < k && other < changed; other++)
                if (overlap(of[other]->data, of[k]->data, bytes)) return 1;
        }
    }
    in_parallel(NAME(update_part), &u, total < 32768 ? 1 : threads);
    return 0;
}

#define UPDATE(name, others, what)                                                                       \
    static void NAME(name##_loop)(real *restrict to, const real *restrict a, const real *restrict b,     \
                                  real s, real t, real u, int64_t n) {                                      \
        (void)a, (void)b, (void)s, (void)t, (void)u;                                                     \
        for (int64_t i = 0; i < n; i++) what;                                                               \
    }                                                                                                    \
    int NAME(name)(const layout *l, const void *list, int number, real s, real t, real u, int threads) { \
        return NAME(run_update)((NAME(update)){.l = l, .partners = others, .s = s, .t = t, .u = u,       \
                                               .loop = NAME(name##_loop)}, list, number, threads);       \
    }

UPDATE(add_scaled, 1, to[i] += s * a[i])
UPDATE(average, 1, to[i] = s * to[i] + t * a[i])
UPDATE(average_product, 2, to[i] = s * to[i] + t * a[i] * b[i])
UPDATE(rescale, 0, to[i] *= s)
UPDATE(normalized_step, 2, to[i] -= s * a[i] / (t * SQRT(b[i]) + u))

int NAME(adaptive_step)(const layout *l, const void *list, int number, const real *numbers, int threads) {
    return NAME(run_update)((NAME(update)){.l = l, .partners = 3, .adaptive = numbers}, list, number, threads);
}

#undef UPDATE
