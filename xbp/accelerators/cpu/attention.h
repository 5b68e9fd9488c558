/* Attention of every sample and head, forward and backward, for one floating-point type `real`: a head's
 * queries, keys and values, and all that is made of them, stay in cache. Heads are independent of one another.
 *
 * Rows of queries, keys, values and scores are taken to whole vectors by zeros, as in dense.h. */

#define PADDED(k) (((k) + LANES - 1) / LANES * LANES)

typedef struct {
    const attention *t;
    atomic_int failed;
} NAME(attention_job);

/* The features of a head's time steps, times a factor, as rows of `wide` numbers. */
static void NAME(gather_head)(const images *x, int64_t n, int64_t head, int64_t times, int64_t features, real factor,
                              real *to, int64_t wide) {
    const real *from = (const real *)x->data + n * x->n + head * x->c;
    for (int64_t i = 0; i < times; i++, from += x->h, to += wide) {
        for (int64_t f = 0; f < features; f++) to[f] = factor * from[f * x->w];
        for (int64_t f = features; f < wide; f++) to[f] = 0;
    }
}

/* The inverse: to x from rows. */
static void NAME(scatter_head)(const images *x, int64_t n, int64_t head, int64_t times, int64_t features, real factor,
                               const real *from, int64_t wide) {
    real *to = (real *)x->data + n * x->n + head * x->c;
    for (int64_t i = 0; i < times; i++, to += x->h, from += wide)
        for (int64_t f = 0; f < features; f++) to[f * x->w] = factor * from[f];
}

/* c = a bᵀ for rows of features: b has one row for each column of c. `turned` has room for b. */
static void NAME(products_of_rows)(const real *a, int64_t m, const real *b, int64_t n, int64_t features, int64_t row,
                                   vector *turned, real *c) {
    const images rows = {(void *)b, row, row, row, 1};
    for (int64_t j = 0; j < n; j += LANES) {
        const int64_t lanes = n - j < LANES ? n - j : LANES;
        NAME(pack)(&rows, j, lanes, 1, 1, features, turned + j / LANES * features, features, features);
    }
    NAME(multiply_small)(&(NAME(small_product)){
        .a = a, .a_row = row, .a_step = 1, .b = (const real *)turned, .b_step = LANES, .b_vector = features * LANES,
        .c = c, .c_row = PADDED(n), .m = m, .k = features, .n = PADDED(n)});
}

/* c = a b, or with `turned` aᵀ b, for an a of (m, k), or (k, m), whose rows are `a_row` apart. */
static void NAME(weighted_rows)(const real *a, int64_t a_row, int turned, const real *b, int64_t wide, int64_t m,
                                int64_t k, real *c) {
    NAME(multiply_small)(&(NAME(small_product)){
        .a = a, .a_row = turned ? 1 : a_row, .a_step = turned ? a_row : 1, .b = b, .b_step = wide, .b_vector = LANES,
        .c = c, .c_row = wide, .m = m, .k = k, .n = wide});
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
    real peak = -(real)INFINITY;
    for (int64_t lane = 0; lane < LANES; lane++) peak = most[lane] > peak ? most[lane] : peak;
    if (peak == -(real)INFINITY) peak = 0;
    for (int64_t j = 0; j < wide; j += LANES) {
        const vector power = NAME(exp_below_0)(NAME(load)(row + j, 1, LANES) - peak);
        NAME(store)(row + j, 1, LANES, power);
        sum += power;
    }
    return NAME(total)(sum);
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
        NAME(gather_head)(&t->v, n, head, t->s, t->e, 1, v, e);
        NAME(products_of_rows)(q, t->times, k, t->s, t->d, d, (vector *)turned, powers);
        for (int64_t r = 0; r < t->times; r++) {
            const real sum = NAME(powers_of_row)(powers + r * s, t->causal && r + 1 < t->s ? r + 1 : t->s, s);
            totals[r] = sum == 0 ? 1 : sum;
        }
        NAME(weighted_rows)(powers, s, 0, v, e, t->times, t->s, y);
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
        NAME(gather_head)(&t->q, n, head, t->times, t->d, (real)t->scale, q, d);
        NAME(gather_head)(&t->k, n, head, t->s, t->d, 1, k, d);
        NAME(gather_head)(&t->v, n, head, t->s, t->e, 1, v, e);
        NAME(gather_head)(&t->y, n, head, t->times, t->e, 1, y, e);
        NAME(gather_head)(&t->dy, n, head, t->times, t->e, 1, delta, e);
        for (int64_t r = 0; r < t->times; r++)
            for (int64_t f = 0; f < t->e; f++) delta[r * e + f] /= totals[r];
        NAME(weighted_rows)(powers, s, 1, delta, e, t->s, t->times, found);
        NAME(scatter_head)(&t->dv, n, head, t->s, t->e, 1, found, e);
        NAME(products_of_rows)(delta, t->times, v, t->s, t->e, e, (vector *)turned, ds);
        for (int64_t r = 0; r < t->times; r++) {
            vector sum = {0};
            for (int64_t f = 0; f < e; f += LANES)
                sum += NAME(load)(delta + r * e + f, 1, LANES) * NAME(load)(y + r * e + f, 1, LANES);
            const real mean = NAME(total)(sum);
            for (int64_t j = 0; j < t->s; j++) ds[r * s + j] = (ds[r * s + j] - mean) * powers[r * s + j];
        }
        NAME(weighted_rows)(ds, s, 1, q, d, t->s, t->times, found);
        NAME(scatter_head)(&t->dk, n, head, t->s, t->d, 1, found, d);
        if (!t->dq.data) continue;
        NAME(weighted_rows)(ds, s, 0, k, d, t->times, t->s, found);
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
