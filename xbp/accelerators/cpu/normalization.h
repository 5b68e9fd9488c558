/* Batch normalization, with ReLU in the same pass. Channels are shared out among the threads, so that a
 * result does not depend on their number; a channel's numbers stay in cache from the sums to the output. */

#define CHUNK 4096 /* numbers whose sum is taken in `real`; sums of chunks are in double precision */

INLINE mask NAME(first_lanes)(int64_t lanes) { return NAME(numbered)() < (whole)lanes; }

/* x[k] to x[k + lanes - 1] as a deviation from μ; 0 in further lanes. */
INLINE vector NAME(deviation)(const real *x, int64_t lanes, real first, real rest) {
    const vector d = NAME(load)(x, 1, lanes) - first - rest;
    return lanes == LANES ? d : (vector)((mask)d & NAME(first_lanes)(lanes));
}

/* The output before ReLU. The product is rounded before the sum, lest the compiler contract the two in
 * one place only: forward and backward must agree on the sign. */
INLINE vector NAME(scaled)(vector d, real scale, real shift) {
    vector product = d * scale;
    IN_REGISTER(product);
    return product + shift;
}

/* FOR_VECTORS(n) body: for all vectors of n numbers, with k the first number's index and `lanes` their
 * number; whole vectors have a loop of their own, in which it is a constant. */
#define FOR_VECTORS(n, BODY)                                                  \
    {                                                                         \
        int64_t k = 0;                                                           \
        for (; k + LANES <= n; k += LANES) { enum { lanes = LANES }; BODY }   \
        if (k < n) { const int64_t lanes = n - k; BODY }                         \
    }

/* Σ (x - first) and Σ (x - first)² over n numbers, at most a chunk; those `next` of them will be needed soon. */
INLINE void NAME(add_deviations)(const real *x, int64_t n, int64_t next, real first, double *sum, double *squares) {
    vector s[4] = {{0}}, q[4] = {{0}};
    int64_t k = 0;
    for (; k + 4 * LANES <= n; k += 4 * LANES) {
        UNROLL for (int v = 0; v < 4; v++) {
            const vector d = NAME(deviation)(x + k + v * LANES, LANES, first, 0);
            FETCH_SOON(x + k + v * LANES + next);
            s[v] += d;
            q[v] += d * d;
        }
    }
    for (; k < n; k += LANES) {
        const vector d = NAME(deviation)(x + k, n - k < LANES ? n - k : LANES, first, 0);
        s[0] += d;
        q[0] += d * d;
    }
    *sum += NAME(total)(s[0] + s[1] + (s[2] + s[3]));
    *squares += NAME(total)(q[0] + q[1] + (q[2] + q[3]));
}

/* μ = first + rest and σ² of channel c.
 *
 * With d = x - first, μ - first = mean d and σ² = mean d² - (mean d)². That is exact to rounding if
 * `first` is near μ (Chan, Golub & LeVeque 1983, eqs. 1.6-1.7): it is the mean of the first numbers, and
 * where that is further from μ than σ, the sums are taken again. */
static void NAME(moments)(const batch_norm *t, int64_t c, real *first, real *rest, real *variance) {
    const real *x = (const real *)t->x + c * t->inner;
    const double n = (double)t->outer * t->inner;
    const int64_t few = t->inner < CHUNK ? t->inner : CHUNK, row = t->channels * t->inner;
    double sum = 0, squares = 0, mean, spread;
    NAME(add_deviations)(x, few, 0, x[0], &sum, &squares);
    *first = (real)(x[0] + sum / few);
    if (!isfinite(*first)) *first = 0;
    for (int again = 0;; again = 1) {
        sum = squares = 0;
        for (int64_t o = 0; o < t->outer; o++)
            for (int64_t i = 0; i < t->inner; i += CHUNK)
                NAME(add_deviations)(x + o * t->channels * t->inner + i,
                                     t->inner - i < CHUNK ? t->inner - i : CHUNK, row, *first, &sum, &squares);
        mean = sum / n;
        spread = squares / n - mean * mean;
        if (again || !(mean * mean > spread)) break;
        *first = (real)(*first + mean);
    }
    *rest = (real)mean;
    *variance = (real)(spread < 0 ? 0 : spread);
}

#define CONSTANT(row) ((real *)t->constants)[row * t->channels + c]

static void NAME(batch_norm_part)(void *task, int part, int parts) {
    const batch_norm *t = task;
    for (int64_t c = part * t->channels / parts; c < (part + 1) * t->channels / parts; c++) {
        real first = CONSTANT(MEAN), rest = 0, variance = CONSTANT(VARIANCE);
        if (!t->known) NAME(moments)(t, c, &first, &rest, &variance);
        const real r = 1 / SQRT(variance + (real)t->eps);
        const real scale = t->weight ? r * ((const real *)t->weight)[c] : r;
        const real shift = t->bias ? ((const real *)t->bias)[c] : 0;
        const int64_t row = t->channels * t->inner;
        CONSTANT(FIRST) = first;
        CONSTANT(REST) = rest;
        CONSTANT(MEAN) = first + rest;
        CONSTANT(VARIANCE) = variance;
        CONSTANT(RECIPROCAL) = r;
        CONSTANT(SCALE) = scale;
        CONSTANT(SHIFT) = shift;
        for (int64_t o = 0; o < t->outer; o++) {
            const int64_t at = (o * t->channels + c) * t->inner;
            const real *x = (const real *)t->x + at;
            real *y = (real *)t->y + at;
            FOR_VECTORS(t->inner, {
                vector z = NAME(scaled)(NAME(deviation)(x + k, lanes, first, rest), scale, shift);
                FETCH_SOON(y + k + row);
                if (t->relu) z = NAME(choose)(z <= 0, (vector){0}, z); /* nan stays nan */
                NAME(store)(y + k, 1, lanes, z);
            })
        }
    }
}

/* δ: ∂L/∂y, but 0 where ReLU gave 0. */
INLINE vector NAME(slope)(const int relu, vector d, vector dy, real scale, real shift) {
    return relu ? NAME(choose)(NAME(scaled)(d, scale, shift) <= 0, (vector){0}, dy) : dy;
}

INLINE void NAME(batch_norm_channel_backward)(const int relu, const batch_norm *t, int64_t c) {
    const real first = CONSTANT(FIRST), rest = CONSTANT(REST), r = CONSTANT(RECIPROCAL);
    const real scale = CONSTANT(SCALE), shift = CONSTANT(SHIFT);
    const double n = (double)t->outer * t->inner;
    const int64_t row = t->channels * t->inner;
    double level = 0, along = 0; /* Σ δ, Σ δ x̂ */
    for (int64_t o = 0; o < t->outer; o++) {
        const int64_t at = (o * t->channels + c) * t->inner;
        for (int64_t i = 0; i < t->inner; i += CHUNK) {
            const real *x = (const real *)t->x + at + i, *dy = (const real *)t->dy + at + i;
            const int64_t size = t->inner - i < CHUNK ? t->inner - i : CHUNK;
            vector s[4] = {{0}}, p[4] = {{0}};
            int64_t k = 0;
            for (; k + 4 * LANES <= size; k += 4 * LANES) {
                UNROLL for (int v = 0; v < 4; v++) {
                    const vector d = NAME(deviation)(x + k + v * LANES, LANES, first, rest);
                    const vector given = NAME(load)(dy + k + v * LANES, 1, LANES);
                    const vector delta = NAME(slope)(relu, d, given, scale, shift);
                    FETCH_SOON(x + k + v * LANES + row);
                    FETCH_SOON(dy + k + v * LANES + row);
                    s[v] += delta;
                    p[v] += delta * d;
                }
            }
            for (; k < size; k += LANES) {
                const int64_t lanes = size - k < LANES ? size - k : LANES;
                const vector d = NAME(deviation)(x + k, lanes, first, rest);
                const vector delta = NAME(slope)(relu, d, NAME(load)(dy + k, 1, lanes), scale, shift);
                s[0] += delta;
                p[0] += delta * d;
            }
            level += NAME(total)(s[0] + s[1] + (s[2] + s[3]));
            along += NAME(total)(p[0] + p[1] + (p[2] + p[3]));
        }
    }
    along *= r;
    ((real *)t->sums)[c] = (real)along;
    ((real *)t->sums)[t->channels + c] = (real)level;
    if (!t->dx) return;
    /* ∂L/∂x = w r (δ - mean δ - x̂ · mean(δ x̂)); known moments are constants */
    const real mean = t->known ? 0 : (real)(level / n), slope = t->known ? 0 : (real)(along / n * r);
    for (int64_t o = 0; o < t->outer; o++) {
        const int64_t at = (o * t->channels + c) * t->inner;
        const real *x = (const real *)t->x + at, *dy = (const real *)t->dy + at;
        real *dx = (real *)t->dx + at;
        FOR_VECTORS(t->inner, {
            const vector d = NAME(deviation)(x + k, lanes, first, rest);
            vector g = NAME(slope)(relu, d, NAME(load)(dy + k, 1, lanes), scale, shift);
            FETCH_SOON(dx + k + row);
            if (!t->known) g = g - mean - d * slope;
            NAME(store)(dx + k, 1, lanes, g * scale);
        })
    }
}

static void NAME(batch_norm_backward_part)(void *task, int part, int parts) {
    const batch_norm *t = task;
    for (int64_t c = part * t->channels / parts; c < (part + 1) * t->channels / parts; c++)
        if (t->relu) NAME(batch_norm_channel_backward)(1, t, c);
        else NAME(batch_norm_channel_backward)(0, t, c);
}

int NAME(batch_norm)(const batch_norm *t) {
    in_parallel(NAME(batch_norm_part), (void *)t, t->threads);
    return 0;
}

int NAME(batch_norm_backward)(const batch_norm *t) {
    in_parallel(NAME(batch_norm_backward_part), (void *)t, t->threads);
    return 0;
}
#undef CHUNK
#undef CONSTANT
#undef FOR_VECTORS
