/* A linear layer, forward and backward, for sizes at which a BLAS spends more time on packing its
 * operands than on the product.
 *
 * All three products have the form c[i, :] = Σ_p a[i, p] · b[p, :], numbers of a times vectors along a
 * row of b. Only the forward's b, the transpose of the weights, is packed. */

typedef struct {
    const real *a, *b, *bias; /* bias may be NULL */
    real *c;
    int64_t m, k, n;            /* c: (m, n) */
    int64_t a_row, a_step;      /* a[i, p] is a[i * a_row + p * a_step] */
    int64_t b_step, b_vector;   /* vector v of row p of b begins at b[p * b_step + v * b_vector] */
    int64_t c_row;
    int relu, added; /* max(c, 0); to what is in c already */
} NAME(small_product);

/* R rows of V vectors of c, the last one with `last` numbers. It reads whole vectors of b in all rows of
 * b but the last. */
INLINE void NAME(product_tile)(const int R, const int V, const NAME(small_product) * t, int64_t i, int64_t v0,
                               int64_t last) {
    const real *a = t->a + i * t->a_row, *b = t->b + v0 * t->b_vector;
    real *c = t->c + i * t->c_row + v0 * LANES;
    vector sum[6][4];
    UNROLL for (int v = 0; v < V; v++) {
        const vector bias = t->bias ? NAME(load)(t->bias + (v0 + v) * LANES, 1, v == V - 1 ? last : LANES)
                                    : (vector){0};
        UNROLL for (int r = 0; r < R; r++) sum[r][v] = bias;
    }
    for (int64_t p = 0; p < t->k; p++, a += t->a_step, b += t->b_step) {
        vector x[4];
        UNROLL for (int v = 0; v < V - 1; v++) memcpy(x + v, b + v * t->b_vector, sizeof(vector));
        x[V - 1] = NAME(load)(b + (V - 1) * t->b_vector, 1, p < t->k - 1 ? LANES : last);
        UNROLL for (int r = 0; r < R; r++) {
            const real s = a[r * t->a_row];
            UNROLL for (int v = 0; v < V; v++) sum[r][v] += s * x[v];
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < V; v++) {
            vector y = sum[r][v];
            if (t->added) y += NAME(load)(c + r * t->c_row + v * LANES, 1, v == V - 1 ? last : LANES);
            if (t->relu) y = NAME(choose)(y <= 0, (vector){0}, y); /* nan stays nan */
            NAME(store)(c + r * t->c_row + v * LANES, 1, v == V - 1 ? last : LANES, y);
        }
    }
}

static void NAME(multiply_small)(const NAME(small_product) * t) {
    const int64_t vectors = (t->n + LANES - 1) / LANES;
    for (int64_t v = 0, wide; v < vectors; v += wide) {
        wide = vectors - v < PANEL ? vectors - v : PANEL;
        const int64_t end = (v + wide) * LANES, last = end < t->n ? LANES : t->n - (end - LANES);
        for (int64_t i = 0, high; i < t->m; i += high) {
            const int64_t blocks = (t->m - i + 5) / 6; /* of rows, as equal as possible */
            high = (t->m - i + blocks - 1) / blocks;
            switch (wide * 8 + high) {
#define TILE(R, V) case V * 8 + R: NAME(product_tile)(R, V, t, i, v, last); break;
#define COLUMNS(V) TILE(1, V) TILE(2, V) TILE(3, V) TILE(4, V) TILE(5, V) TILE(6, V)
                COLUMNS(1) COLUMNS(2)
#if PANEL > 2
                COLUMNS(3) COLUMNS(4)
#endif
            }
        }
    }
}

/* to += Σ rows: n of them, of `width` numbers, `stride` apart, one after the other. */
static void NAME(add_rows)(const real *rows, int64_t n, int64_t stride, int64_t width, real *to) {
    int64_t j = 0;
    for (; j + 4 * LANES <= width; j += 4 * LANES) {
        vector sum[4];
        memcpy(sum, to + j, sizeof sum);
        for (int64_t i = 0; i < n; i++) {
            UNROLL for (int v = 0; v < 4; v++) sum[v] += NAME(load)(rows + i * stride + j + v * LANES, 1, LANES);
        }
        memcpy(to + j, sum, sizeof sum);
    }
    for (; j < width; j += LANES) {
        const int64_t lanes = width - j < LANES ? width - j : LANES;
        vector sum = NAME(load)(to + j, 1, lanes);
        for (int64_t i = 0; i < n; i++) sum += NAME(load)(rows + i * stride + j, 1, lanes);
        NAME(store)(to + j, 1, lanes, sum);
    }
}

typedef struct {
    const affine *t;
    const real *delta; /* backward: ∂L/∂y, with relu times its slope */
    real *terms;       /* backward by outputs: ∂L/∂x of each part's outputs, after one another */
    atomic_int failed;
} NAME(affine_job);

/* y = x Wᵀ + b for some columns of y, that is some rows of W. */
static void NAME(affine_part)(void *task, int part, int parts) {
    NAME(affine_job) *job = task;
    const affine *t = job->t;
    const int64_t vectors = (t->out + LANES - 1) / LANES;
    const int64_t from = part * vectors / parts, to = (part + 1) * vectors / parts;
    if (from == to) return;
    vector *b = take_scratch((to - from) * t->in * sizeof(vector));
    if (!b) { job->failed = 1; return; }
    const images rows = {(void *)t->weight, t->in, t->in, t->in, 1};
    for (int64_t v = from; v < to; v++) {
        const int64_t first = v * LANES, lanes = t->out - first < LANES ? t->out - first : LANES;
        NAME(pack)(&rows, first, lanes, 1, 1, t->in, b + (v - from) * t->in, t->in, t->in);
    }
    const int64_t end = to * LANES < t->out ? to * LANES : t->out;
    NAME(multiply_small)(&(NAME(small_product)){
        .a = t->x, .a_row = t->in, .a_step = 1, .b = (real *)b, .b_step = LANES,
        .b_vector = t->in * LANES, .bias = t->bias ? (real *)t->bias + from * LANES : NULL,
        .c = (real *)t->y + from * LANES, .c_row = t->out, .m = t->n, .k = t->in, .n = end - from * LANES,
        .relu = t->relu});
}

/* Some rows of ∂L/∂x = δ W, or the terms of some rows of W in all rows; some rows of ∂L/∂W = δᵀ x, and some
 * entries of ∂L/∂b. */
static void NAME(affine_backward_part)(void *task, int part, int parts) {
    NAME(affine_job) *job = task;
    const affine *t = job->t;
    const real *dy = job->delta;
    const int64_t i = part * t->n / parts, j = (part + 1) * t->n / parts;
    const int64_t o = part * t->out / parts, end = (part + 1) * t->out / parts;
    if (job->terms)
        NAME(multiply_small)(&(NAME(small_product)){
            .a = dy + o, .a_row = t->out, .a_step = 1, .b = (real *)t->weight + o * t->in, .b_step = t->in,
            .b_vector = LANES, .c = job->terms + part * t->n * t->in, .c_row = t->in, .m = t->n, .k = end - o,
            .n = t->in});
    else if (t->dx)
        NAME(multiply_small)(&(NAME(small_product)){
            .a = dy + i * t->out, .a_row = t->out, .a_step = 1, .b = t->weight, .b_step = t->in,
            .b_vector = LANES, .c = (real *)t->dx + i * t->in, .c_row = t->in, .m = j - i, .k = t->out,
            .n = t->in});
    NAME(multiply_small)(&(NAME(small_product)){
        .a = dy + o, .a_row = 1, .a_step = t->out, .b = t->x, .b_step = t->in, .b_vector = LANES,
        .c = (real *)t->dweight + o * t->in, .c_row = t->in, .m = end - o, .k = t->n, .n = t->in});
    real *db = t->dbias;
    if (!db) return;
    memset(db + o, 0, (end - o) * sizeof(real));
    NAME(add_rows)(dy + o, t->n, t->out, end - o, db + o);
}

/* Some rows of ∂L/∂x, from the terms of all parts. */
static void NAME(affine_sum_part)(void *task, int part, int parts) {
    NAME(affine_job) *job = task;
    const affine *t = job->t;
    const int64_t size = t->n * t->in, from = part * t->n / parts * t->in, end = (part + 1) * t->n / parts * t->in;
    real *restrict dx = t->dx;
    for (int64_t k = from; k < end; k++) dx[k] = job->terms[k];
    for (int64_t other = 1; other < parts; other++) {
        const real *restrict terms = job->terms + other * size;
        for (int64_t k = from; k < end; k++) dx[k] += terms[k];
    }
}

/* Some rows of c of a matrix product. */
static void NAME(direct_part)(void *task, int part, int parts) {
    const product *t = task;
    const int64_t from = part * t->m / parts, end = (part + 1) * t->m / parts;
    const int turned = t->trans_a != NOT_TRANSPOSED;
    const int64_t a_row = turned ? 1 : t->lda, a_step = turned ? t->lda : 1;
    NAME(multiply_small)(&(NAME(small_product)){
        .a = (const real *)t->a + from * a_row, .a_row = a_row, .a_step = a_step, .b = t->b,
        .b_step = t->ldb, .b_vector = LANES, .c = (real *)t->c + from * t->n, .c_row = t->n,
        .m = end - from, .k = t->k, .n = t->n});
}

void NAME(multiply_direct)(product *t) { /* for a b not transposed and n ≥ LANES */
    in_parallel(NAME(direct_part), t, t->threads);
}

int NAME(affine)(const affine *t) {
    NAME(affine_job) job = {.t = t};
    in_parallel(NAME(affine_part), &job, t->threads);
    return job.failed;
}

int NAME(affine_backward)(const affine *t) {
    NAME(affine_job) job = {.t = t, .delta = t->dy};
    const real *y = t->y, *dy = t->dy;
    const int by_outputs = t->by_outputs && t->dx;
    real *memory = NULL;
    if (t->relu || by_outputs) {
        const int64_t slopes = t->relu ? t->n * t->out : 0, terms = by_outputs ? t->threads * t->n * t->in : 0;
        memory = malloc((slopes + terms) * sizeof(real));
        if (!memory) return 1;
        if (by_outputs) job.terms = memory + slopes;
        if (t->relu) job.delta = memory;
        for (int64_t k = 0; k < slopes; k++) memory[k] = y[k] <= 0 ? 0 : dy[k];
    }
    in_parallel(NAME(affine_backward_part), &job, t->threads);
    if (by_outputs) in_parallel(NAME(affine_sum_part), &job, t->threads);
    free(memory);
    return job.failed;
}
