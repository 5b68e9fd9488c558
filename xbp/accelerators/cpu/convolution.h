/* Convolution, ReLU and max pooling in one pass, for one floating-point type `real`.
 *
 * A block of images, one for each lane of a vector, is packed into [c][h][w][lane] with a frame of
 * zeros. All arithmetic is then between whole vectors of images and broadcast weights, for any sizes,
 * strides and paddings. The sums of a tile of outputs stay in registers, intermediate results in cache;
 * only the last result is written to memory.
 *
 * Gradients of parameters are summed over groups of blocks, and then over the groups: the groups, not the
 * threads, decide how a sum is rounded. */

/* --- forward --- */

typedef struct {
    const convolution *t;
    const pooling *pooling;
    const flattening *flattening;
    const real *weight, *bias;
    real *partial; /* backward: a weight and a bias gradient for each group */
    int64_t groups;
    const real *turned;
    const real *terms; /* `weight` or `turned` for `rows_in_tiles`; NULL where it is not used */
    int in_tiles;      /* backward: ∂L/∂weight, too */
    atomic_int failed;
} NAME(job);

#define BLOCKS(n) (((n) + LANES - 1) / LANES)

/* One row of y from pool_h rows of a convolution. Inlined, so that the sizes are constants. */
INLINE void NAME(pool_row)(const int64_t pool_h, const int64_t pool_w, const convolution *t, int64_t block,
                           int64_t p, const vector *line) {
    const int64_t rows = t->oh / pool_h, columns = t->ow / pool_w, window = t->o * t->ow;
    const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
    for (int64_t o = 0; o < t->o; o++) {
        real *y = (real *)t->y.data + first * t->y.n + o * t->y.c + p * t->y.h;
        uint8_t *where = AFTER(t->where, ((block * t->o + o) * rows + p) * columns * LANES);
        for (int64_t q = 0; q < columns; q++) {
            const vector *from = line + o * t->ow + q * pool_w;
            vector best = from[0];
            if (t->where) {
                mask at = {0};
                UNROLL_IF_KNOWN for (int64_t s = 0; s < pool_h; s++) {
                    UNROLL_IF_KNOWN for (int64_t u = 0; u < pool_w; u++) {
                        const vector v = from[s * window + u];
                        const mask better = (v > best) | (v != v); /* nan: the last of them */
                        best = NAME(choose)(better, v, best);
                        at = (better & (whole)(s * pool_w + u)) | (~better & at);
                    }
                }
                if (t->relu) {
                    const mask none = best <= 0;
                    best = NAME(choose)(none, (vector){0}, best);
                    at |= none; /* all bits set; the lowest eight are NOWHERE */
                }
                const NAME(bytes) places = __builtin_convertvector(at, NAME(bytes));
                memcpy(where + q * LANES, &places, sizeof places);
            }
            NAME(store)(y + q * t->y.w, t->y.n, lanes, best);
        }
    }
}

/* Rows p to end of y and of `where`, soon to be read or written. */
static void NAME(will_need_output)(fetches *f, const convolution *t, int64_t block, int64_t p, int64_t end) {
    const int64_t rows = t->oh / t->pool_h, columns = t->ow / t->pool_w, map = columns * LANES;
    const images y = {(real *)t->y.data + block * LANES, 1, t->y.c, t->y.h, t->y.w};
    if (t->y.n == 1) NAME(will_need)(f, &y, t->o, p, end, rows, columns);
    if (t->where && p < rows)
        f->of[f->count++] = (region){t->where + (block * t->o * rows + p) * map, rows * map, map, 64, t->o,
                                     (end < rows ? end : rows) - p, (map + 63) / 64};
}

/* Zeros around images of h rows and w columns. */
static void NAME(clear_frame)(vector *x, int64_t c, int64_t h, int64_t w, int64_t pad_h, int64_t pad_w) {
    const int64_t row = w + 2 * pad_w, plane = (h + 2 * pad_h) * row, size = sizeof(vector);
    if (pad_h == 0 && pad_w == 0) return;
    for (vector *end = x + c * plane; x < end; x += plane) {
        memset(x, 0, (pad_h * row + pad_w) * size);
        for (int64_t r = 1; r < h && pad_w; r++) memset(x + (pad_h + r) * row - pad_w, 0, 2 * pad_w * size);
        memset(x + (pad_h + h) * row - pad_w, 0, (pad_h * row + pad_w) * size);
    }
}

/* The rows of x, from the first on, that so many rows of the convolution need. */
INLINE int64_t NAME(rows_until)(const convolution *t, int64_t rows) {
    return (rows - 1) * t->stride_h + t->kh - t->pad_h;
}

/* Pack rows `from` to `until` of a block of images, or to the last one, where an image's numbers are neighbours.
 * Returns how many rows are packed now. */
static int64_t NAME(pack_rows)(const images *x, int64_t first, int64_t lanes, int64_t c, int64_t from, int64_t until,
                               int64_t h, int64_t w, vector *to, int64_t plane, int64_t row) {
    if (x->n != 1 || until > h) until = h;
    if (until <= from) return from;
    images some = *x;
    some.data = (real *)x->data + from * x->h;
    NAME(pack)(&some, first, lanes, c, until - from, w, to + from * row, plane, row);
    return until;
}

/* The images of a block: where they are, if their lanes are neighbours, else packed into `room`. */
static images NAME(whole_vectors)(const images *x, int64_t first, int64_t lanes, int64_t c, int64_t h, int64_t w,
                                  vector *room, int64_t plane, int64_t row) {
    if (x->n == 1 && lanes == LANES) return (images){(real *)x->data + first, 1, x->c, x->h, x->w};
    NAME(pack)(x, first, lanes, c, h, w, room, plane, row);
    return (images){room, 1, plane * LANES, row * LANES, LANES};
}

/* Rows of y from a block's rows in tiles; `lines` has room for pool_h - 1 more than a chunk. Returns whether
 * all numbers are finite. */
static int NAME(forward_in_tiles)(const NAME(job) *job, int64_t block, const NAME(framed) * x, NAME(chunks) k,
                                  vector *lines, vector *terms) {
    const convolution *t = job->t;
    const int64_t window = t->o * t->ow, first = block * LANES, step = 4 * k.high;
    const int plain = t->pool_h * t->pool_w == 1 && t->y.n == 1 && t->n - first >= LANES;
    uint8_t *where = plain && t->where ? t->where + block * window * t->oh * LANES : NULL;
    images y = {lines, 1, t->ow * LANES, window * LANES, LANES};
    if (plain) y = (images){(real *)t->y.data + first, 1, t->y.c, t->y.h, t->y.w};
    int64_t kept = 0; /* rows in `lines` that wait for the rest of their windows */
    int finite = 1;
    for (int64_t row = 0, p = 0; row < t->oh && finite; row += step) {
        const int64_t rows = t->oh - row < step ? t->oh - row : step;
        fetches soon = {0};
        if (plain) NAME(will_need_output)(&soon, t, block, row, row + rows);
        NAME(will_need)(&soon, &x->at, t->c, row + step + 2 - x->top, row + 2 * step + 2 - x->top, x->height, t->w);
        if (row + step >= t->oh && t->x.n == 1 && first + 2 * LANES <= t->n) {
            const images next = {(real *)t->x.data + first + LANES, 1, t->x.c, t->x.h, t->x.w};
            NAME(will_need)(&soon, &next, t->c, 0, step + 2 - x->top, t->h, t->w);
        }
        pace_fetches(&soon, NAME(calls)(t->o, t->ow, k));
        finite = NAME(rows_in_tiles)(x, k, t->c, t->o, job->terms, job->bias, row, rows, t->ow, &y, where,
                                     t->oh * t->ow * LANES, terms, &soon);
        if (plain) {
            y.data = (real *)y.data + step * y.h;
            where = AFTER(where, step * t->ow * LANES);
            continue;
        }
        const vector *line = lines;
        for (kept += rows; kept >= t->pool_h; kept -= t->pool_h, line += t->pool_h * window, p++)
            if (t->pool_h == 2 && t->pool_w == 2) NAME(pool_row)(2, 2, t, block, p, line);
            else NAME(pool_row)(t->pool_h, t->pool_w, t, block, p, line);
        if (kept && line > lines) memmove(lines, line, kept * window * sizeof(vector));
        y.data = lines + kept * window;
    }
    return finite;
}

static void NAME(forward_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    const convolution *t = job->t;
    const int64_t row = t->w + 2 * t->pad_w, plane = (t->h + 2 * t->pad_h) * row;
    const int64_t rows = t->oh / t->pool_h, window = t->o * t->ow;
    const NAME(chunks) cut = NAME(cut)(t->c + t->o, t->oh, t->ow);
    const int64_t high = job->terms ? 4 * cut.high + t->pool_h : t->pool_h;
    const int64_t size = t->c * plane + high * window + (job->terms ? NAME(room_for_tiles)(cut, t->c + t->o) : 0);
    vector *x = take_scratch(size * sizeof(vector));
    if (!x) { job->failed = 1; return; }
    vector *line = x + t->c * plane, *inside = x + t->pad_h * row + t->pad_w;
    int framed = 0; /* whether x has its frame of zeros */
    NAME(row_task) r = {.plane = plane, .row = row, .step = t->stride_w, .c = t->c, .kh = t->kh, .di = 1,
                        .kw = t->kw, .taps = t->kw, .dj = 1, .left = t->pad_w, .right = t->pad_w + t->w, .ow = t->ow};
    for (int64_t block = part * BLOCKS(t->n) / parts; block < (part + 1) * BLOCKS(t->n) / parts; block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        if (job->terms) {
            const images seen = NAME(whole_vectors)(&t->x, first, lanes, t->c, t->h, t->w, inside, plane, row);
            const NAME(framed) f = {seen, t->h, t->w, t->pad_h, t->pad_w, 0};
            if (NAME(forward_in_tiles)(job, block, &f, cut, line, line + high * window)) continue;
        }
        if (!framed) NAME(clear_frame)(x, t->c, t->h, t->w, t->pad_h, t->pad_w);
        framed = 1;
        int64_t packed = 0; /* rows of x */
        for (int64_t p = 0; p < rows; p++) {
            const int64_t until = NAME(rows_until)(t, (p + 1) * t->pool_h);
            packed = NAME(pack_rows)(&t->x, first, lanes, t->c, packed, until, t->h, t->w, inside, plane, row);
            fetches soon = {0};
            NAME(will_need_output)(&soon, t, block, p, p + 1);
            if (t->x.n == 1) {
                const images next = {(real *)t->x.data + first, 1, t->x.c, t->x.h, t->x.w};
                NAME(will_need)(&soon, &next, t->c, packed, packed + t->pool_h * t->stride_h, t->h, t->w);
            }
            pace_fetches(&soon, t->pool_h * ((t->o + MOST_OUTPUTS - 1) / MOST_OUTPUTS));
            for (int64_t s = 0; s < t->pool_h; s++) {
                const int64_t top = (p * t->pool_h + s) * t->stride_h;
                r.i0 = top < t->pad_h ? t->pad_h - top : 0;
                r.in = x + (top + r.i0) * row;
                r.i1 = top + t->kh > t->pad_h + t->h ? t->pad_h + t->h - top : t->kh;
                r.out = line + s * window;
                NAME(correlate)(&r, job->weight, job->bias, t->o, &soon);
            }
            if (t->pool_h == 2 && t->pool_w == 2) NAME(pool_row)(2, 2, t, block, p, line);
            else NAME(pool_row)(t->pool_h, t->pool_w, t, block, p, line);
        }
    }
}

/* --- flattening: each image of a batch stored with the batch innermost as one row --- */

static void NAME(flatten_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    const flattening *t = job->flattening;
    const int64_t size = t->c * t->h * t->w;
    vector *x = take_scratch(size * sizeof(vector));
    if (!x) { job->failed = 1; return; }
    for (int64_t block = part * BLOCKS(t->n) / parts; block < (part + 1) * BLOCKS(t->n) / parts; block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        NAME(pack)(&t->x, first, lanes, t->c, t->h, t->w, x, t->h * t->w, t->w);
        real *to = (real *)t->y + first * size;
        for (int64_t k = 0; k < size; k += LANES) {
            const int64_t count = size - k < LANES ? size - k : LANES;
            vector square[LANES];
            for (int64_t s = 0; s < LANES; s++) square[s] = x[s < count ? k + s : k];
            NAME(transpose)(square);
            for (int64_t lane = 0; lane < lanes; lane++)
                NAME(store)(to + lane * size + k, 1, count, square[lane]);
        }
    }
}

/* --- called from Python; return 1 if memory ran out, else 0 --- */

int NAME(flatten)(const flattening *t) {
    NAME(job) job = {.flattening = t};
    in_parallel(NAME(flatten_part), &job, t->threads);
    return job.failed;
}

int NAME(convolve)(const convolution *t) {
    const int64_t kernels = t->o * t->c, weights = kernels * t->kh * t->kw;
    const int in_tiles = t->stride_h == 1 && t->stride_w == 1 && NAME(worth_tiles)(t, t->oh, t->ow);
    real *ordered = malloc((weights + in_tiles * TERMS * kernels) * sizeof(real));
    if (!ordered) return 1;
    NAME(order)(t->weight, ordered, t->o, t->c, t->kh, t->kw, 0);
    NAME(job) job = {.t = t, .weight = ordered, .bias = t->bias, .terms = in_tiles ? ordered + weights : NULL};
    if (in_tiles) NAME(order_terms)(ordered, ordered + weights, t->o, t->c);
    in_parallel(NAME(forward_part), &job, t->threads);
    free(ordered);
    return job.failed;
}
