/* Softmax, and normalization to mean 0 and variance 1, along rows of c numbers, for one floating-point
 * type `real`. A row is read several times while it is in cache. Rows are independent of one another, and
 * their sums are taken in a fixed order, so the number of threads changes no bit. */

typedef struct { int64_t from, to; } NAME(span);

static NAME(span) NAME(rows_of_part)(const rows *t, int part, int parts) {
    return (NAME(span)){part * t->n / parts, (part + 1) * t->n / parts};
}

static void NAME(along_rows)(part_function *work, rows *t) {
    in_parallel(work, t, t->n * t->c < 32768 ? 1 : t->threads);
}

/* The first `lanes` numbers at `from`, and `pad` in the other lanes. */
INLINE vector NAME(load_end)(const real *from, int64_t lanes, real pad) {
    vector v = (vector){0} + pad;
    if (lanes == LANES) memcpy(&v, from, sizeof v);
#ifdef __AVX512F__
    else v = (vector)INTRINSIC(mask_loadu)(v, FIRST_LANES(lanes), from);
#else
    else
        for (int64_t lane = 0; lane < lanes; lane++) v[lane] = from[lane];
#endif
    return v;
}

/* The vector with lanes `distance`, a power of two below LANES, apart exchanged. */
#define ACROSS(lane, distance) ((lane) ^ (distance)) % LANES
#define EXCHANGED(v, distance) SHUFFLE(v, v, EACH_LANE(ACROSS, distance))
/* A statement with v and `other`, lanes LANES/2, …, 2, 1 apart exchanged. */
#define HALVING(...)                                                                                   \
    do {                                                                                               \
        vector other;                                                                                  \
        if (LANES > 8) { other = EXCHANGED(v, 8); __VA_ARGS__; }                                       \
        if (LANES > 4) { other = EXCHANGED(v, 4); __VA_ARGS__; }                                       \
        if (LANES > 2) { other = EXCHANGED(v, 2); __VA_ARGS__; }                                       \
        other = EXCHANGED(v, 1);                                                                       \
        __VA_ARGS__;                                                                                   \
    } while (0)

INLINE real NAME(sum_of_lanes)(vector v) {
    HALVING(v += other);
    return v[0];
}

/* The greater of each pair, or nan where there is one. */
INLINE vector NAME(greater)(vector a, vector b) { return NAME(choose)((a > b) | (a != a), a, b); }

INLINE real NAME(greatest_of_lanes)(vector v) {
    HALVING(v = NAME(greater)(other, v));
    return v[0];
}

/* A statement for each vector of a row, the last one with fewer lanes. */
#define EACH_VECTOR(...)                                                                                 \
    do {                                                                                                 \
        int64_t j = 0;                                                                                      \
        for (const int64_t lanes = LANES; j + LANES <= c; j += LANES) __VA_ARGS__;                          \
        if (j < c) {                                                                                     \
            const int64_t lanes = c - j;                                                                    \
            __VA_ARGS__;                                                                                 \
        }                                                                                                \
    } while (0)
#define AT(array, pad) NAME(load_end)((array) + j, lanes, pad)
#define PUT(array, v) NAME(store)((array) + j, 1, lanes, v)
#define DEVIATION(first, rest) NAME(deviation)(x + j, lanes, first, rest) /* as in normalization.h */

/* --- softmax: y = e^(x - max x) / Σ e^(x - max x), ∂L/∂x = y (∂L/∂y - Σ y ∂L/∂y) --- */

static void NAME(softmax_part)(void *task, int part, int parts) {
    const rows *t = task;
    const NAME(span) span = NAME(rows_of_part)(t, part, parts);
    const int64_t c = t->c;
    for (int64_t i = span.from; i < span.to; i++) {
        const real *x = (const real *)t->x + i * c;
        real *y = (real *)t->y + i * c;
        vector best = (vector){0} - (real)INFINITY;
        EACH_VECTOR(best = NAME(greater)(AT(x, -INFINITY), best));
        const real top = NAME(greatest_of_lanes)(best);
        vector total = {0};
        EACH_VECTOR({
            const vector e = NAME(exp_below_0)(AT(x, -INFINITY) - top);
            total += e;
            PUT(y, e);
        });
        const real share = 1 / NAME(sum_of_lanes)(total);
        EACH_VECTOR(PUT(y, AT(y, 0) * share));
    }
}

int NAME(softmax)(rows *t) {
    NAME(along_rows)(NAME(softmax_part), t);
    return 0;
}

static void NAME(softmax_backward_part)(void *task, int part, int parts) {
    const rows *t = task;
    const NAME(span) span = NAME(rows_of_part)(t, part, parts);
    const int64_t c = t->c;
    for (int64_t i = span.from; i < span.to; i++) {
        const real *y = (const real *)t->y + i * c, *dy = (const real *)t->dy + i * c;
        real *dx = (real *)t->dx + i * c;
        vector sum = {0};
        EACH_VECTOR(sum += AT(y, 0) * AT(dy, 0));
        const real total = NAME(sum_of_lanes)(sum);
        EACH_VECTOR(PUT(dx, AT(y, 0) * (AT(dy, 0) - total)));
    }
}

int NAME(softmax_backward)(rows *t) {
    NAME(along_rows)(NAME(softmax_backward_part), t);
    return 0;
}

/* --- normalization, with the derivation in xbp/primitives/normalization.py --- */

/* The mean of x - first. */
INLINE real NAME(mean_from)(const real *x, int64_t c, real first) {
    vector sum = {0};
    EACH_VECTOR(sum += DEVIATION(first, 0));
    return NAME(sum_of_lanes)(sum) / c;
}

/* y = w x̂ + b with x̂ = ((x - first) - rest) r. `first` is the mean, and `rest` its rounding error, the mean
 * of what is left (see `deviations` there). */
static void NAME(normalize_part)(void *task, int part, int parts) {
    const rows *t = task;
    const NAME(span) span = NAME(rows_of_part)(t, part, parts);
    const int64_t c = t->c;
    const real *weight = t->weight, *bias = t->bias;
    for (int64_t i = span.from; i < span.to; i++) {
        const real *x = (const real *)t->x + i * c;
        real *y = (real *)t->y + i * c, *moments = (real *)t->moments + i * 3;
        const real first = t->centre ? NAME(mean_from)(x, c, 0) : 0;
        const real rest = t->centre ? NAME(mean_from)(x, c, first) : 0;
        vector squares = {0};
        EACH_VECTOR({
            const vector d = DEVIATION(first, rest);
            squares += d * d;
        });
        const real spread = NAME(sum_of_lanes)(squares) / c;
        const real r = 1 / SQRT(spread + (real)t->eps);
        moments[0] = first, moments[1] = rest, moments[2] = r;
        EACH_VECTOR({
            vector v = DEVIATION(first, rest) * r;
            if (weight) v *= AT(weight, 0);
            if (bias) v += AT(bias, 0);
            PUT(y, v);
        });
    }
}

int NAME(normalize)(rows *t) {
    NAME(along_rows)(NAME(normalize_part), t);
    return 0;
}

/* ∂L/∂x = r (g - mean g - x̂ mean(g x̂)) with g = w ∂L/∂y, and Σ x̂ ∂L/∂y and Σ ∂L/∂y of each block of rows. */
static void NAME(normalize_backward_part)(void *task, int part, int parts) {
    const rows *t = task;
    const int64_t c = t->c;
    const real *weight = t->weight;
    for (int64_t block = part; block < t->blocks; block += parts) {
        real *along = (real *)t->sums + block * 2 * c, *level = along + c;
        memset(along, 0, 2 * c * sizeof(real));
        for (int64_t i = block * t->n / t->blocks; i < (block + 1) * t->n / t->blocks; i++) {
            const real *x = (const real *)t->x + i * c, *dy = (const real *)t->dy + i * c;
            const real *moments = (const real *)t->moments + i * 3;
            const real first = moments[0], rest = moments[1], r = moments[2];
            vector products = {0}, sum = {0};
            EACH_VECTOR({
                const vector normal = DEVIATION(first, rest) * r, d = AT(dy, 0);
                const vector g = weight ? AT(weight, 0) * d : d;
                products += g * normal;
                sum += g;
                PUT(along, AT(along, 0) + d * normal);
                PUT(level, AT(level, 0) + d);
            });
            if (!t->dx) continue;
            real *dx = (real *)t->dx + i * c;
            const real slope = NAME(sum_of_lanes)(products) / c;
            const real mean = t->centre ? NAME(sum_of_lanes)(sum) / c : 0;
            EACH_VECTOR({
                const vector normal = DEVIATION(first, rest) * r, d = AT(dy, 0);
                const vector g = weight ? AT(weight, 0) * d : d;
                PUT(dx, (g - normal * slope - mean) * r);
            });
        }
    }
}

/* The sums of all blocks, in order, are left in the first. */
int NAME(normalize_backward)(rows *t) {
    NAME(along_rows)(NAME(normalize_backward_part), t);
    real *total = t->sums;
    for (int64_t block = 1; block < t->blocks; block++) {
        const real *sums = (const real *)t->sums + block * 2 * t->c;
        for (int64_t j = 0; j < 2 * t->c; j++) total[j] += sums[j];
    }
    return 0;
}

#undef ACROSS
#undef EXCHANGED
#undef HALVING
#undef EACH_VECTOR
#undef AT
#undef PUT
#undef DEVIATION
