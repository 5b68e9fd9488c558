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
    const real *pairs; /* `weight` or `turned` for `correlate_pairs`; NULL where it is not used */
    int failed;
} NAME(job);

#define BLOCKS(n) (((n) + LANES - 1) / LANES)

/* One row of y from pool_h rows of a convolution. Inlined, so that the sizes are constants. */
INLINE void NAME(pool_row)(const int64_t pool_h, const int64_t pool_w, const convolution *t, int64_t block,
                           int64_t p, const vector *line) {
    const int64_t rows = t->oh / pool_h, columns = t->ow / pool_w, window = t->o * t->ow;
    const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
    for (int64_t o = 0; o < t->o; o++) {
        real *y = (real *)t->y.data + first * t->y.n + o * t->y.c + p * t->y.h;
        uint8_t *where = t->where + ((block * t->o + o) * rows + p) * columns * LANES;
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

static void NAME(forward_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    const convolution *t = job->t;
    const int64_t row = t->w + 2 * t->pad_w, plane = (t->h + 2 * t->pad_h) * row;
    const int64_t rows = t->oh / t->pool_h, window = t->o * t->ow;
    const int64_t pairs = job->pairs ? (t->ow + 1) / 2 : 0;
    const int64_t size = t->c * plane + t->pool_h * window + t->kh * TERMS * t->c * pairs;
    vector *x = take_scratch(size * sizeof(vector));
    if (!x) { job->failed = 1; return; }
    vector *line = x + t->c * plane;
    if (t->pad_h || t->pad_w) memset(x, 0, t->c * plane * sizeof(vector));
    NAME(row_task) r = {.plane = plane, .row = row, .step = t->stride_w, .c = t->c, .kh = t->kh, .di = 1,
                        .kw = t->kw, .left = t->pad_w, .right = t->pad_w + t->w, .ow = t->ow};
    NAME(ring) ring = {.x = x, .plane = plane, .row = row, .c = t->c, .kh = t->kh, .slots = t->kh,
                       .pairs = pairs, .rows = line + t->pool_h * window};
    for (int64_t block = part * BLOCKS(t->n) / parts; block < (part + 1) * BLOCKS(t->n) / parts; block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        NAME(pack)(&t->x, first, lanes, t->c, t->h, t->w, x + t->pad_h * row + t->pad_w, plane, row);
        const int in_pairs = pairs && NAME(moderate)(x, t->c * plane);
        ring.next = 0;
        for (int64_t p = 0; p < rows; p++) {
            for (int64_t s = 0; s < t->pool_h; s++) {
                const int64_t top = (p * t->pool_h + s) * t->stride_h;
                r.in = x + top * row;
                r.i0 = top < t->pad_h ? t->pad_h - top : 0;
                r.i1 = top + t->kh > t->pad_h + t->h ? t->pad_h + t->h - top : t->kh;
                r.out = line + s * window;
                if (in_pairs)
                    NAME(correlate_pairs)(&ring, top, r.i0, r.i1, 1, job->pairs, job->bias, r.out, t->ow, t->o);
                else NAME(correlate)(&r, job->weight, job->bias, t->o);
            }
            if (t->pool_h == 2 && t->pool_w == 2) NAME(pool_row)(2, 2, t, block, p, line);
            else NAME(pool_row)(t->pool_h, t->pool_w, t, block, p, line);
        }
    }
}

/* --- backward --- */

/* O × T sums Σ δ[r, q][o] · x[r, q][tap] over rows r and columns q; `all` outputs lie between the δ of
 * two columns. */
INLINE void NAME(tap_tile)(const int O, const int T, const vector *d, int64_t all, const vector *x,
                           const int64_t *tap, int64_t x_row, int64_t x_step, int64_t rows, int64_t columns,
                           vector *to) {
    vector sum[MOST_OUTPUTS][8];
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) sum[o][s] = to[o * T + s];
    }
    for (int64_t r = 0; r < rows; r++) {
        const vector *xr = x + r * x_row;
        for (int64_t q = 0; q < columns; q++, d += all, xr += x_step) {
            vector v[8];
            UNROLL for (int s = 0; s < T; s++) v[s] = xr[tap[s]];
            UNROLL for (int o = 0; o < O; o++) {
                vector delta = d[o];
                IN_REGISTER(delta);
                UNROLL for (int s = 0; s < T; s++) sum[o][s] += delta * v[s];
            }
        }
    }
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) to[o * T + s] = sum[o][s];
    }
}

INLINE real NAME(total)(vector v) {
    real sum = 0;
    for (int64_t lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
}

/* The totals of LANES vectors, as the lanes of one. */
INLINE vector NAME(totals)(const vector *from) {
    vector square[LANES];
    UNROLL for (int64_t i = 0; i < LANES; i++) square[i] = from[i];
    NAME(transpose)(square);
    vector sum = square[0];
    UNROLL for (int64_t i = 1; i < LANES; i++) sum += square[i];
    return sum;
}

/* Spread δ of one output, rows p to end of y, to the positions before pooling, which are zero elsewhere:
 * into `band`, with all outputs of a column side by side, and into `frame` unless NULL. The sum is added
 * to `total`. */
INLINE void NAME(spread)(const int64_t pool_h, const int64_t pool_w, const convolution *t, const vector *dy,
                         int64_t block, int64_t o, int64_t p, int64_t end, vector *band, vector *frame,
                         int64_t frame_row, int64_t frame_step, vector *total) {
    const int64_t rows = t->oh / pool_h, columns = t->ow / pool_w, row = t->ow * t->o;
    vector sum = {0};
    for (; p < end; p++, band += pool_h * row, frame += frame ? pool_h * frame_row : 0) {
        const uint8_t *where = t->where + ((block * t->o + o) * rows + p) * columns * LANES;
        for (int64_t q = 0; q < columns; q++) {
            const vector v = dy[(o * rows + p) * columns + q];
            vector *to = band + q * pool_w * t->o + o, *framed = frame + q * pool_w * frame_step;
            mask at = {0};
            if (t->where) {
                whole places[LANES]; /* from bytes; GCC's __builtin_convertvector does it one by one */
                for (int64_t lane = 0; lane < LANES; lane++) places[lane] = where[q * LANES + lane];
                memcpy(&at, places, sizeof at);
            }
            UNROLL_IF_KNOWN for (int64_t s = 0; s < pool_h; s++) {
                UNROLL_IF_KNOWN for (int64_t u = 0; u < pool_w; u++) {
                    const vector here = (vector)((mask)v & (at == (whole)(s * pool_w + u)));
                    to[s * row + u * t->o] = here;
                    if (frame) framed[s * frame_row + u * frame_step] = here;
                    sum += here;
                }
            }
        }
    }
    *total += sum;
}

/* Add the lanes of each sum of `dw` to `partial`, in the order of the weights, and clear them. `in_pairs`
 * they are those of `add_pair_taps`. */
static void NAME(collect)(const convolution *t, vector *dw, int in_pairs, real *partial) {
    const int64_t terms = in_pairs ? TERMS : 1, taps = in_pairs ? t->kh : t->kh * t->kw;
    const int64_t count = terms * t->o * t->c * taps;
    real *from = (real *)dw; /* totals take the places of sums that were read */
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) NAME(store)(from + i, 1, LANES, NAME(totals)(dw + i));
    for (; i < count; i++) from[i] = NAME(total)(dw[i]);
    for (int64_t term = 0; term < terms; term++) {
        int outputs;
        for (int64_t o = 0; o < t->o; o += outputs) {
            outputs = NAME(outputs)(o, t->o);
            int T = 1;
            switch (outputs) {
#define WIDTH(O, WIDE) case O: T = WIDE; break;
                TILES(WIDTH)
#undef WIDTH
            }
            for (int64_t c = 0; c < t->c; c++)
                for (int64_t k = 0; k < taps;) {
                    const int tile = k + T <= taps ? T : 1;
                    for (int u = 0; u < outputs; u++)
                        for (int s = 0; s < tile; s++) {
                            const real sum = *from++;
                            real *to = partial + ((o + u) * t->c + c) * t->kh * t->kw;
                            if (in_pairs) NAME(add_term)(to + (k + s) * t->kw, term, sum);
                            else to[k + s] += sum;
                        }
                    k += tile;
                }
        }
    }
    memset(dw, 0, count * sizeof(vector));
}

/* The first block of a group. */
#define FIRST_OF(group) ((group) * BLOCKS(t->n) / job->groups)

static void NAME(backward_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    const convolution *t = job->t;
    const int64_t row = t->w + 2 * t->pad_w, plane = (t->h + 2 * t->pad_h) * row;
    const int64_t rows = t->oh / t->pool_h, columns = t->ow / t->pool_w, taps = t->kh * t->kw;
    const int64_t weights = t->o * t->c * taps;
    int64_t group = part * job->groups / parts;
    const int64_t end_group = (part + 1) * job->groups / parts;
    if (group == end_group) return;
    /* δ is spread out in bands of rows that fit into the first-level cache together with those of x. For
     * ∂L/∂x, the convolution of δ with the rotated kernels, it is also spread out as a whole, with
     * stride_h - 1 rows of zeros between rows and a frame, so that a window begins at each pixel of x. */
    const int wants_dx = t->dx.data != NULL;
    const int64_t sh = t->stride_h, sw = t->stride_w, top = t->kh - 1 - t->pad_h, left = t->kw - 1 - t->pad_w;
    const int64_t d_row = t->w + t->kw - 1, d_plane = wants_dx ? (t->h + t->kh - 1) * d_row : 0;
    const int64_t widest = t->o < MOST_OUTPUTS ? t->o : MOST_OUTPUTS, lines = t->ow * t->pool_h;
    /* Pairs of columns, if used: ∂L/∂x has `pairs` of them, y has `halves`. Of few, the sums for ∂L/∂weight,
     * a third more than weights, would cost more than the products that are saved. */
    const int64_t pairs = job->pairs ? (t->w + 1) / 2 : 0;
    const int enough = sh == 1 && sw == 1 && NAME(worth_pairs)(t, t->ow) && t->oh * t->ow >= 32;
    const int64_t halves = enough ? (t->ow + 1) / 2 : 0;
    int64_t height = 24000 / (widest * (halves ? halves * t->pool_h : lines) * (int64_t)sizeof(vector));
    height = height < 1 ? 1 : height < rows ? height : rows;
    const int64_t slots = height * t->pool_h + t->kh - 1, sums = halves ? TERMS * t->o * t->c * t->kh : weights;
    const int64_t size = t->o * (height * lines + d_plane + rows * columns + 1) + t->c * (plane + t->w) + sums +
                      TERMS * t->kh * t->o * pairs +
                      TERMS * (slots * t->c + height * t->pool_h * t->o) * halves;
    vector *x = take_scratch(size * sizeof(vector) + taps * sizeof(int64_t));
    if (!x) { job->failed = 1; return; }
    vector *band = x + t->c * plane, *d = band + t->o * height * lines, *dw = d + t->o * d_plane;
    vector *db = dw + sums, *line = db + t->o, *dy = line + t->c * t->w;
    NAME(ring) ring = {.x = d, .plane = d_plane, .row = d_row, .c = t->o, .kh = t->kh, .slots = t->kh,
                       .pairs = pairs, .rows = dy + t->o * rows * columns};
    NAME(ring) seen = {.x = x, .plane = plane, .row = row, .c = t->c, .kh = t->kh, .slots = slots,
                       .pairs = halves, .rows = ring.rows + t->kh * TERMS * t->o * pairs};
    vector *deltas = seen.rows + slots * TERMS * t->c * halves;
    int64_t *tap = (int64_t *)(deltas + TERMS * height * t->pool_h * t->o * halves);
    for (int64_t k = 0; k < taps; k++) tap[k] = k / t->kw * row + k % t->kw;
    if (t->pad_h || t->pad_w) memset(x, 0, t->c * plane * sizeof(vector));
    memset(band, 0, t->o * (height * lines + d_plane) * sizeof(vector)); /* positions never written */
    memset(dw, 0, (sums + t->o) * sizeof(vector));
    real *partial = job->partial + group * (weights + t->o);
    memset(partial, 0, (end_group - group) * (weights + t->o) * sizeof(real));
    int in_halves = halves > 0; /* what the sums in `dw` are */
    for (int64_t block = FIRST_OF(group); block < FIRST_OF(end_group); block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        NAME(pack)(&t->x, first, lanes, t->c, t->h, t->w, x + t->pad_h * row + t->pad_w, plane, row);
        NAME(pack)(&t->y, first, lanes, t->o, rows, columns, dy, rows * columns, columns);
        const int moderate = (pairs || halves) && NAME(moderate)(dy, t->o * rows * columns);
        const int both = halves && moderate && NAME(moderate)(x, t->c * plane);
        if (both != in_halves) NAME(collect)(t, dw, in_halves, partial);
        in_halves = both;
        seen.next = 0;
        for (int64_t p = 0; p < rows; p += height) {
            const int64_t end = p + height < rows ? p + height : rows, r = p * t->pool_h;
            for (int64_t o = 0; o < t->o; o++) {
                vector *frame = wants_dx ? d + o * d_plane + (top + r * sh) * d_row + left : NULL;
                if (t->pool_h == 2 && t->pool_w == 2)
                    NAME(spread)(2, 2, t, dy, block, o, p, end, band, frame, sh * d_row, sw, db + o);
                else
                    NAME(spread)(t->pool_h, t->pool_w, t, dy, block, o, p, end, band, frame, sh * d_row, sw,
                                 db + o);
            }
            if (in_halves) {
                const int64_t high = (end - p) * t->pool_h;
                NAME(transform_band)(band, high, t->ow, t->o, deltas);
                NAME(add_pair_taps)(&seen, deltas, r, high, t->o, dw);
                continue;
            }
            vector *to = dw;
            int outputs;
            for (int64_t o = 0; o < t->o; o += outputs) {
                outputs = NAME(outputs)(o, t->o);
                for (int64_t c = 0; c < t->c; c++) {
                    const vector *xr = x + c * plane + r * sh * row;
                    int64_t k = 0;
                    switch (outputs) {
#define TAPS(O, T)                                                                                     \
    for (; k + T <= taps; k += T, to += O * T)                                                         \
        NAME(tap_tile)(O, T, band + o, t->o, xr, tap + k, sh * row, sw, (end - p) * t->pool_h, t->ow, to);
#define BOTH(O, T)                                                                                     \
    case O:                                                                                            \
        TAPS(O, T)                                                                                     \
        TAPS(O, 1)                                                                                     \
        break;
                        TILES(BOTH)
#undef TAPS
#undef BOTH
                    }
                }
            }
        }
        if (block + 1 == FIRST_OF(group + 1)) {
            NAME(collect)(t, dw, in_halves, partial);
            for (int64_t o = 0; o < t->o; o++) partial[weights + o] = NAME(total)(db[o]);
            memset(db, 0, t->o * sizeof(vector));
            partial += weights + t->o;
            group++;
        }
        if (!wants_dx) continue;
        NAME(row_task) g = {.plane = d_plane, .row = d_row, .step = 1, .c = t->o, .kh = t->kh, .di = sh,
                            .kw = t->kw, .left = left, .right = left + (t->ow - 1) * sw + 1,
                            .out = line, .ow = t->w};
        const int64_t bottom = top + (t->oh - 1) * sh + 1;
        ring.next = 0;
        for (int64_t h = 0; h < t->h; h++) {
            g.in = d + h * d_row;
            g.i0 = h < top ? top - h : (sh - (h - top) % sh) % sh; /* no row of zeros between */
            g.i1 = h + t->kh > bottom ? bottom - h : t->kh;
            if (pairs && moderate)
                NAME(correlate_pairs)(&ring, h, g.i0, g.i1, sh, job->pairs, NULL, line, t->w, t->c);
            else NAME(correlate)(&g, job->turned, NULL, t->c);
            NAME(unpack_row)(line, &t->dx, first, lanes, t->c, h, t->w);
        }
    }
}

#undef FIRST_OF

/* Some entries of the sum over groups, left in the first. */
static void NAME(sum_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    const convolution *t = job->t;
    const int64_t size = t->o * (t->c * t->kh * t->kw + 1);
    const int64_t from = part * size / parts, end = (part + 1) * size / parts;
    for (int64_t group = 1; group < job->groups; group++) {
        const real *sums = job->partial + group * size;
        for (int64_t i = from; i < end; i++) job->partial[i] += sums[i];
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
    const int64_t kernels = t->o * t->c * t->kh, weights = kernels * t->kw;
    const int in_pairs =
        t->stride_w == 1 && NAME(worth_pairs)(t, t->ow) && NAME(moderate_weights)(t->weight, weights);
    real *ordered = malloc((weights + in_pairs * TERMS * kernels) * sizeof(real));
    if (!ordered) return 1;
    NAME(order)(t->weight, ordered, t->o, t->c, t->kh, t->kw, 0);
    NAME(job) job = {.t = t, .weight = ordered, .bias = t->bias, .pairs = in_pairs ? ordered + weights : NULL};
    if (in_pairs) NAME(order_pairs)(ordered, ordered + weights, t->o, t->c, t->kh);
    in_parallel(NAME(forward_part), &job, t->threads);
    free(ordered);
    return job.failed;
}

int NAME(convolve_backward)(const convolution *t) {
    const int64_t kernels = t->o * t->c * t->kh, weights = kernels * t->kw, size = weights + t->o;
    /* ∂L/∂x is a convolution with steps of 1, whatever the stride */
    const int in_pairs =
        t->dx.data && NAME(worth_pairs)(t, t->w) && NAME(moderate_weights)(t->weight, weights);
    const int64_t groups = BLOCKS(t->n) < t->groups ? BLOCKS(t->n) : t->groups;
    real *memory = malloc((size * groups + weights + in_pairs * TERMS * kernels) * sizeof(real));
    if (!memory) return 1;
    real *turned = memory + size * groups;
    if (t->dx.data) NAME(order)(t->weight, turned, t->c, t->o, t->kh, t->kw, 1);
    NAME(job) job = {.t = t, .partial = memory, .groups = groups, .turned = turned,
                     .pairs = in_pairs ? turned + weights : NULL};
    if (in_pairs) NAME(order_pairs)(turned, turned + weights, t->c, t->o, t->kh);
    in_parallel(NAME(backward_part), &job, t->threads);
    in_parallel(NAME(sum_part), &job, size * groups < 32768 ? 1 : t->threads);
    memcpy(t->dweight, memory, weights * sizeof(real));
    if (t->dbias) memcpy(t->dbias, memory + weights, t->o * sizeof(real));
    free(memory);
    return job.failed;
}
