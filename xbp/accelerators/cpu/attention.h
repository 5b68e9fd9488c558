/* Attention of every sample and head, forward and backward, for one floating-point type `real`: a head's
 * queries, keys and values, and all that is made of them, stay in cache. Heads are independent of one another.
 *
 * Rows of queries, keys, values and scores are taken to whole vectors by zeros, as in dense.h. */

#define PADDED(k) (((k) + LANES - 1) / LANES * LANES)
#undef BLOCK
#define BLOCK 16 /* queries, or keys, of a causal attention that are computed together */

typedef struct {
    const attention *t;
    atomic_int failed;
} NAME(attention_job);

/* The features of a head's time steps, times a factor, as rows of `wide` numbers. Whether all are finite. */
static int NAME(gather_head)(const images *x, int64_t n, int64_t head, int64_t times, int64_t features, real factor,
                             real *to, int64_t wide) {
    const real *from = (const real *)x->data + n * x->n + head * x->c;
    const int64_t step = x->w, row = x->h;
    vector zeros = {0};
    for (int64_t i = 0; i < times; i++, from += row, to += wide)
        for (int64_t f = 0; f < wide; f += LANES) {
            const int64_t lanes = features - f < LANES ? features - f : LANES;
            const vector v = factor * NAME(load)(from + f * step, step, lanes);
            zeros += 0 * v; /* nan from a number that is not finite */
            NAME(store)(to + f, 1, LANES, v);
        }
    return NAME(sum_of_lanes)(zeros) == 0;
}

/* The inverse: to x from rows. */
static void NAME(scatter_head)(const images *x, int64_t n, int64_t head, int64_t times, int64_t features, real factor,
                               const real *from, int64_t wide) {
    real *to = (real *)x->data + n * x->n + head * x->c;
    for (int64_t i = 0; i < times; i++, to += x->h, from += wide)
        for (int64_t f = 0; f < features; f += LANES) {
            const int64_t lanes = features - f < LANES ? features - f : LANES;
            NAME(store)(to + f * x->w, x->w, lanes, factor * NAME(load)(from + f, 1, LANES));
        }
}

/* The rows of b, of `features` numbers, as columns: vectors of `LANES` rows. */
static void NAME(turn_rows)(const real *b, int64_t n, int64_t features, int64_t row, vector *turned) {
    const images rows = {(void *)b, row, row, row, 1};
    for (int64_t j = 0; j < n; j += LANES) {
        const int64_t lanes = n - j < LANES ? n - j : LANES;
        NAME(pack)(&rows, j, lanes, 1, 1, features, turned + j / LANES * features, features, features);
    }
}

/* c = a bᵀ for rows of features; with `lower`, of each block of rows only the columns `seen` by a whole block. */
static void NAME(products_of_rows)(const real *a, int64_t m, const vector *turned, int64_t n, int64_t features,
                                   int64_t row, int lower, real *c) {
    for (int64_t i = 0, end; i < m; i = end) {
        end = lower && i + BLOCK < m ? i + BLOCK : m;
        NAME(multiply_small)(&(NAME(small_product)){
            .a = a + i * row, .a_row = row, .a_step = 1, .b = (const real *)turned, .b_step = LANES,
            .b_vector = features * LANES, .c = c + i * PADDED(n), .c_row = PADDED(n), .m = end - i, .k = features,
            .n = PADDED(lower && i + BLOCK < n ? i + BLOCK : n)});
    }
}

/* c = a b, or with `turned` aᵀ b, for an a of (m, k), or (k, m), whose rows are `a_row` apart. With `lower`, the
 * entries of a above its diagonal are 0, and left out but for those next to it. */
static void NAME(weighted_rows)(const real *a, int64_t a_row, int turned, int lower, const real *b, int64_t wide,
                                int64_t m, int64_t k, real *c) {
    for (int64_t i = 0, end; i < m; i = end) {
        end = lower && i + BLOCK < m ? i + BLOCK : m;
        const int64_t first = !(lower && turned) ? 0 : i < k ? i : k;
        const int64_t last = lower && !turned && end < k ? end : k;
        NAME(multiply_small)(&(NAME(small_product)){
            .a = a + (turned ? i + first * a_row : i * a_row), .a_row = turned ? 1 : a_row,
            .a_step = turned ? a_row : 1, .b = b + first * wide, .b_step = wide, .b_vector = LANES,
            .c = c + i * wide, .c_row = wide, .m = end - i, .k = last - first, .n = wide});
    }
}

/* The number of keys that a block of queries sees, taken to whole vectors. */
INLINE int64_t NAME(seen)(const attention *t, int lower, int64_t query) {
    const int64_t end = (query / BLOCK + 1) * BLOCK;
    return PADDED(lower && end < t->s ? end : t->s);
}

/* e^(s - max s) in place of the first `count` scores of a row, 0 in place of the others; returns their sum. */
static real NAME(powers_of_row)(real *row, int64_t count, int64_t wide) {
    const vector none = (vector){0} - (real)INFINITY;
    vector most = none, sum = {0};
    for (int64_t j = 0; j < wide; j += LANES) {
        vector s = NAME(load)(row + j, 1, LANES);
        if (j + LANES > count) s = NAME(choose)(NAME(numbered)() < (whole)(count - j), s, none);
        NAME(store)(row + j, 1, LANES, s);
        most = NAME(choose)(s > most, s, most);
    }
    real peak = NAME(greatest_of_lanes)(most);
    if (peak == -(real)INFINITY) peak = 0;
    for (int64_t j = 0; j < wide; j += LANES) {
        const vector power = NAME(exp_below_0)(NAME(load)(row + j, 1, LANES) - peak);
        NAME(store)(row + j, 1, LANES, power);
        sum += power;
    }
    return NAME(sum_of_lanes)(sum);
}

static void NAME(attention_part)(void *task, int part, int parts) {
    NAME(attention_job) *job = task;
    const attention *t = job->t;
    const int64_t heads = t->n * t->heads, d = PADDED(t->d), e = PADDED(t->e), s = PADDED(t->s);
    const int64_t from = part * heads / parts, end = (part + 1) * heads / parts;
    if (from == end) return;
    real *q = take_scratch((t->times * (d + e) + s * (2 * d + e)) * sizeof(real));
    if (!q) { job->failed = 1; return; }
    real *y = q + t->times * d, *k = y + t->times * e, *v = k + s * d, *turned = v + s * e;
    for (int64_t i = from; i < end; i++) {
        const int64_t n = i / t->heads, head = i % t->heads;
        real *powers = (real *)t->powers + i * t->times * s, *totals = (real *)t->totals + i * t->times;
        NAME(gather_head)(&t->q, n, head, t->times, t->d, (real)t->scale, q, d);
        NAME(gather_head)(&t->k, n, head, t->s, t->d, 1, k, d);
        const int lower = NAME(gather_head)(&t->v, n, head, t->s, t->e, 1, v, e) && t->causal;
        NAME(turn_rows)(k, t->s, t->d, d, (vector *)turned);
        NAME(products_of_rows)(q, t->times, (vector *)turned, t->s, t->d, d, t->causal, powers);
        for (int64_t r = 0; r < t->times; r++) {
            real *row = powers + r * s;
            const int64_t wide = NAME(seen)(t, t->causal, r);
            const real sum = NAME(powers_of_row)(row, t->causal && r + 1 < t->s ? r + 1 : t->s, wide);
            totals[r] = sum == 0 ? 1 : sum;
            if (wide < s) memset(row + wide, 0, (s - wide) * sizeof(real));
        }
        NAME(weighted_rows)(powers, s, 0, lower, v, e, t->times, t->s, y);
        for (int64_t r = 0; r < t->times; r++)
            for (int64_t f = 0; f < t->e; f++) y[r * e + f] /= totals[r];
        NAME(scatter_head)(&t->y, n, head, t->times, t->e, 1, y, e);
    }
}

static void NAME(attention_backward_part)(void *task, int part, int parts) {
    NAME(attention_job) *job = task;
    const attention *t = job->t;
    const int64_t heads = t->n * t->heads, d = PADDED(t->d), e = PADDED(t->e), s = PADDED(t->s);
    const int64_t from = part * heads / parts, end = (part + 1) * heads / parts;
    if (from == end) return;
    const int64_t widest = d > e ? d : e, longest = s > t->times ? s : t->times;
    real *q = take_scratch((t->times * (d + 2 * e + s) + s * (d + e + widest) + longest * widest) * sizeof(real));
    if (!q) { job->failed = 1; return; }
    real *delta = q + t->times * d, *y = delta + t->times * e, *ds = y + t->times * e, *k = ds + t->times * s;
    real *v = k + s * d, *turned = v + s * e, *found = turned + s * widest;
    for (int64_t i = from; i < end; i++) {
        const int64_t n = i / t->heads, head = i % t->heads;
        const real *powers = (real *)t->powers + i * t->times * s, *totals = (real *)t->totals + i * t->times;
        int lower = t->causal; /* 0 · ∞ is nan, so that nothing is left out where a number is not finite */
        lower &= NAME(gather_head)(&t->q, n, head, t->times, t->d, (real)t->scale, q, d);
        lower &= NAME(gather_head)(&t->k, n, head, t->s, t->d, 1, k, d);
        lower &= NAME(gather_head)(&t->v, n, head, t->s, t->e, 1, v, e);
        lower &= NAME(gather_head)(&t->y, n, head, t->times, t->e, 1, y, e);
        lower &= NAME(gather_head)(&t->dy, n, head, t->times, t->e, 1, delta, e);
        for (int64_t r = 0; r < t->times; r++)
            for (int64_t f = 0; f < t->e; f++) delta[r * e + f] /= totals[r];
        NAME(weighted_rows)(powers, s, 1, lower, delta, e, t->s, t->times, found);
        NAME(scatter_head)(&t->dv, n, head, t->s, t->e, 1, found, e);
        NAME(turn_rows)(v, t->s, t->e, e, (vector *)turned);
        NAME(products_of_rows)(delta, t->times, (vector *)turned, t->s, t->e, e, lower, ds);
        for (int64_t r = 0; r < t->times; r++) {
            vector sum = {0};
            for (int64_t f = 0; f < e; f += LANES)
                sum += NAME(load)(delta + r * e + f, 1, LANES) * NAME(load)(y + r * e + f, 1, LANES);
            const real mean = NAME(sum_of_lanes)(sum);
            const int64_t wide = NAME(seen)(t, lower, r);
            for (int64_t j = r * s; j < r * s + wide; j += LANES)
                NAME(store)(ds + j, 1, LANES, (NAME(load)(ds + j, 1, LANES) - mean) * NAME(load)(powers + j, 1, LANES));
        }
        NAME(weighted_rows)(ds, s, 1, lower, q, d, t->s, t->times, found);
        NAME(scatter_head)(&t->dk, n, head, t->s, t->d, 1, found, d);
        if (!t->dq.data) continue;
        NAME(weighted_rows)(ds, s, 0, lower, k, d, t->times, t->s, found);
        NAME(scatter_head)(&t->dq, n, head, t->times, t->d, (real)t->scale, found, d);
    }
}

/* Both return 1 if memory ran out, else 0. */

int NAME(attention)(const attention *t) {
    NAME(attention_job) job = {.t = t};
    in_parallel(NAME(attention_part), &job, t->threads);
    return job.failed;
}

int NAME(attention_backward)(const attention *t) {
    NAME(attention_job) job = {.t = t};
    in_parallel(NAME(attention_backward_part), &job, t->threads);
    return job.failed;
}

#undef PADDED
