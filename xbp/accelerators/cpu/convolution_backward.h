/* The backward of a convolution with ReLU and max pooling. */

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
 * into `band`, with all outputs of a column side by side, and into `frame`, each unless NULL. The sum is
 * added to `total`. */
INLINE void NAME(spread)(const int64_t pool_h, const int64_t pool_w, const convolution *t, const images *dy,
                         int64_t block, int64_t o, int64_t p, int64_t end, vector *band, vector *frame,
                         int64_t frame_row, int64_t frame_step, vector *total) {
    const int64_t rows = t->oh / pool_h, columns = t->ow / pool_w, row = t->ow * t->o;
    vector sum = {0};
    for (; p < end; p++, band = AFTER(band, pool_h * row), frame = AFTER(frame, pool_h * frame_row)) {
        const uint8_t *where = AFTER(t->where, ((block * t->o + o) * rows + p) * columns * LANES);
        for (int64_t q = 0; q < columns; q++) {
            vector v;
            memcpy(&v, (const real *)dy->data + o * dy->c + p * dy->h + q * dy->w, sizeof v);
            vector *to = AFTER(band, q * pool_w * t->o + o), *framed = AFTER(frame, q * pool_w * frame_step);
            mask at = {0};
            if (t->where) {
                whole places[LANES]; /* from bytes; GCC's __builtin_convertvector does it one by one */
                for (int64_t lane = 0; lane < LANES; lane++) places[lane] = where[q * LANES + lane];
                memcpy(&at, places, sizeof at);
            }
            UNROLL_IF_KNOWN for (int64_t s = 0; s < pool_h; s++) {
                UNROLL_IF_KNOWN for (int64_t u = 0; u < pool_w; u++) {
                    const vector here = (vector)((mask)v & (at == (whole)(s * pool_w + u)));
                    if (to) to[s * row + u * t->o] = here;
                    if (frame) framed[s * frame_row + u * frame_step] = here;
                    sum += here;
                }
            }
        }
    }
    *total += sum;
}

/* The lanes of each sum of `dw` added up, in the order of the weights, in `partial`. */
static void NAME(collect)(const convolution *t, vector *dw, real *partial) {
    const int64_t taps = t->kh * t->kw, count = t->o * t->c * taps;
    real *from = (real *)dw; /* totals take the places of sums that were read */
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) NAME(store)(from + i, 1, LANES, NAME(totals)(dw + i));
    for (; i < count; i++) from[i] = NAME(total)(dw[i]);
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
                    for (int s = 0; s < tile; s++) partial[((o + u) * t->c + c) * taps + k + s] = *from++;
                k += tile;
            }
    }
}

/* δ in a frame of zeros, for one axis of x: the first δ is at `begin`, of `size` places in all. */
typedef struct { int64_t begin, size; } NAME(frame);

static NAME(frame) NAME(frame_of)(int64_t pixels, int64_t kernel, int64_t pad, int64_t stride) {
    const int64_t ahead = kernel - 1 - pad, begin = (ahead + stride - 1) / stride;
    return (NAME(frame)){begin, begin + (pixels - 1 + pad) / stride + 1};
}

/* ∂L/∂x of a block is the convolution of δ, in a frame of zeros and with stride_h - 1 rows and stride_w - 1
 * columns of zeros between its own, with the kernels rotated. The zeros between are left out: every stride_w-th
 * column of x meets the same columns of the kernels, and neighbours of δ. */
static void NAME(input_gradient)(const NAME(job) *job, int64_t first, int64_t lanes, const vector *frame,
                                 vector *line) {
    const convolution *t = job->t;
    const int64_t sh = t->stride_h, sw = t->stride_w, top = t->kh - 1 - t->pad_h, left = t->kw - 1 - t->pad_w;
    const NAME(frame) down = NAME(frame_of)(t->h, t->kh, t->pad_h, sh);
    const NAME(frame) across = NAME(frame_of)(t->w, t->kw, t->pad_w, sw);
    const int64_t row = across.size, bottom = top + (t->oh - 1) * sh + 1;
    NAME(row_task) g = {.plane = down.size * row, .row = row, .step = 1, .c = t->o, .kh = t->kh, .di = sh, .dj = sw,
                        .kw = t->kw, .out = line};
    for (int64_t h = 0; h < t->h; h++) {
        g.i0 = h < top ? top - h : (sh - (h - top) % sh) % sh; /* no row of zeros between */
        g.i1 = h + t->kh > bottom ? bottom - h : t->kh;
        const vector *in = frame + ((h + g.i0 - top) / sh + down.begin) * row + across.begin;
        for (int64_t w = 0; w < sw && w < t->w; w++) { /* columns w, w + sw, … */
            g.j0 = ((left - w) % sw + sw) % sw;
            g.taps = (t->kw - g.j0 + sw - 1) / sw;
            g.left = (left - w - g.j0) / sw; /* exact */
            g.right = g.left + t->ow;
            g.in = in - g.left;
            g.ow = (t->w - w + sw - 1) / sw;
            NAME(correlate)(&g, job->turned, NULL, t->c);
            const images every = {(real *)t->dx.data + w * t->dx.w, t->dx.n, t->dx.c, t->dx.h, sw * t->dx.w};
            NAME(unpack_row)(line, &every, first, lanes, t->c, h, g.ow);
        }
    }
}

/* The same in tiles, from δ without its frame; returns whether all numbers are finite. */
static int NAME(input_gradient_in_tiles)(const NAME(job) *job, int64_t first, int64_t lanes, const images *delta,
                                         NAME(chunks) k, vector *lines, vector *terms) {
    const convolution *t = job->t;
    const NAME(framed) d = {*delta, t->oh, t->ow, t->kh - 1 - t->pad_h, t->kw - 1 - t->pad_w};
    const int64_t window = t->c * t->w, step = 4 * k.high;
    const int plain = t->dx.n == 1 && lanes == LANES;
    images dx = {lines, 1, t->w * LANES, window * LANES, LANES};
    for (int64_t row = 0; row < t->h; row += step) {
        const int64_t rows = t->h - row < step ? t->h - row : step;
        if (plain) dx = (images){(real *)t->dx.data + first + row * t->dx.h, 1, t->dx.c, t->dx.h, t->dx.w};
        if (!NAME(rows_in_tiles)(&d, k, t->o, t->c, job->terms, NULL, row, rows, t->w, &dx, NULL, 0, terms))
            return 0;
        for (int64_t r = 0; r < rows && !plain; r++)
            NAME(unpack_row)(lines + r * window, &t->dx, first, lanes, t->c, row + r, t->w);
    }
    return 1;
}

/* The first block of a group. */
#define FIRST_OF(group) ((group) * BLOCKS(t->n) / job->groups)

/* Both gradients of a group in tiles. Returns whether ∂L/∂weight is finite; if not, it has to be summed anew. */
static int NAME(backward_in_tiles)(NAME(job) *job, int64_t group) {
    const convolution *t = job->t;
    const int64_t rows = t->oh / t->pool_h, columns = t->ow / t->pool_w, groups = NAME(groups)(t->o);
    const int64_t size = t->c * t->h * t->w, d_plane = t->oh * t->ow, d_size = t->o * d_plane;
    const int64_t row = t->w + t->kw - 1, plane = (t->h + t->kh - 1) * row;
    const NAME(chunks) own = NAME(cut)(t->c + groups * LANES, t->oh, t->ow), back = NAME(cut)(t->c + t->o, t->h, t->w);
    const int64_t apart = own.tiles * LANES * groups + 1, sums = TERMS * t->c * groups, padded = groups * LANES;
    const int64_t lines = t->dx.data ? 4 * back.high * t->c * t->w : 0;
    const int64_t room = NAME(room_for_tiles)(own, t->c) + TERMS * apart + 16 * LANES;
    const int64_t other = t->dx.data ? NAME(room_for_tiles)(back, t->c + t->o) : 0;
    vector *x = take_scratch((size + 2 * d_size + t->o * plane + lines + sums + padded + (room > other ? room : other)) *
                             (int64_t)sizeof(vector));
    if (!x) { job->failed = 1; return 1; }
    vector *dy = x + size, *d = dy + d_size, *frame = d + d_size, *line = frame + t->o * plane, *m = line + lines;
    vector *db = m + sums, *u = db + padded, *between = u + t->c * own.plane;
    vector *turned = between + NAME(between)(own), *deltas = turned + 16 * LANES;
    memset(d, 0, d_size * sizeof(vector)); /* positions never written */
    memset(m, 0, (sums + padded) * sizeof(vector));
    for (int64_t block = FIRST_OF(group); block < FIRST_OF(group + 1); block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        images delta = {d, 1, d_plane * LANES, t->ow * LANES, LANES};
        if (t->where) {
            vector total = {0};
            const images given = NAME(whole_vectors)(&t->y, first, lanes, t->o, rows, columns, dy, rows * columns,
                                                     columns);
            for (int64_t o = 0; o < t->o; o++) {
                vector *to = d + o * d_plane;
                if (t->pool_h == 1 && t->pool_w == 1)
                    NAME(spread)(1, 1, t, &given, block, o, 0, rows, NULL, to, t->ow, 1, &total);
                else if (t->pool_h == 2 && t->pool_w == 2)
                    NAME(spread)(2, 2, t, &given, block, o, 0, rows, NULL, to, t->ow, 1, &total);
                else NAME(spread)(t->pool_h, t->pool_w, t, &given, block, o, 0, rows, NULL, to, t->ow, 1, &total);
            }
        } else delta = NAME(whole_vectors)(&t->y, first, lanes, t->o, t->oh, t->ow, d, d_plane, t->ow);
        const images seen = NAME(whole_vectors)(&t->x, first, lanes, t->c, t->h, t->w, x, t->h * t->w, t->w);
        const NAME(framed) given = {seen, t->h, t->w, t->pad_h, t->pad_w}, slopes = {delta, t->oh, t->ow, 0, 0};
        for (int64_t r = 0; r < t->oh; r += 4 * own.high)
            for (int64_t q = 0; q < t->ow; q += 4 * own.wide) {
                const int64_t down = (t->oh - r + 3) / 4, across = (t->ow - q + 3) / 4;
                const int64_t high = down < own.high ? down : own.high, wide = across < own.wide ? across : own.wide;
                for (int64_t c = 0; c < t->c; c++)
                    NAME(tiles_of_input)(&given, c, r, q, high, wide, high * wide, between, u + c * own.plane);
                for (int64_t g = 0; g < groups; g++) {
                    const int64_t o = g * LANES, outputs = t->o - o < LANES ? t->o - o : LANES;
                    NAME(tiles_of_delta)(&slopes, o, outputs, r, q, high, wide, groups, apart, turned, db + o, deltas + g);
                }
                NAME(add_terms)(u, own.plane, deltas, apart, t->c, groups, high * wide, m);
            }
        if (!t->dx.data || NAME(input_gradient_in_tiles)(job, first, lanes, &delta, back, line, u)) continue;
        memset(frame, 0, t->o * plane * sizeof(vector));
        for (int64_t o = 0; o < t->o; o++)
            for (int64_t r = 0; r < t->oh; r++)
                for (int64_t q = 0; q < t->ow; q++)
                    memcpy(frame + o * plane + (t->kh - 1 - t->pad_h + r) * row + t->kw - 1 - t->pad_w + q,
                           (const real *)delta.data + o * delta.c + r * delta.h + q * delta.w, sizeof(vector));
        NAME(input_gradient)(job, first, lanes, frame, line);
    }
    real *partial = job->partial + group * (t->o * t->c * 9 + t->o);
    for (int64_t o = 0; o < t->o; o++) partial[t->o * t->c * 9 + o] = NAME(total)(db[o]);
    return NAME(collect_terms)(t, m, partial);
}

/* Both gradients of a group directly, or ∂L/∂weight alone if ∂L/∂x was computed in tiles. */
static void NAME(backward_directly)(NAME(job) *job, int64_t group) {
    const convolution *t = job->t;
    const int64_t row = t->w + 2 * t->pad_w, plane = (t->h + 2 * t->pad_h) * row;
    const int64_t rows = t->oh / t->pool_h, columns = t->ow / t->pool_w, taps = t->kh * t->kw;
    const int64_t weights = t->o * t->c * taps;
    /* δ is spread out in bands of rows that fit into the first-level cache together with those of x. For
     * ∂L/∂x, the convolution of δ with the rotated kernels, it is also spread out as a whole, with
     * a frame, so that a window begins at each pixel of x. */
    const int wants_dx = t->dx.data && !job->in_tiles;
    const int64_t sh = t->stride_h, sw = t->stride_w;
    const NAME(frame) down = NAME(frame_of)(t->h, t->kh, t->pad_h, sh);
    const NAME(frame) across = NAME(frame_of)(t->w, t->kw, t->pad_w, sw);
    const int64_t d_row = across.size, d_plane = wants_dx ? down.size * d_row : 0;
    const int64_t widest = t->o < MOST_OUTPUTS ? t->o : MOST_OUTPUTS, lines = t->ow * t->pool_h;
    const NAME(chunks) cut = NAME(cut)(t->c + t->o, t->h, t->w);
    const int in_tiles = wants_dx && job->terms;
    int64_t height = 24000 / (widest * lines * (int64_t)sizeof(vector));
    height = height < 1 ? 1 : height < rows ? height : rows;
    const int64_t size = t->o * (height * lines + d_plane + rows * columns + 1) + weights +
                      t->c * (plane + (in_tiles ? 4 * cut.high : 1) * t->w) +
                      (in_tiles ? NAME(room_for_tiles)(cut, t->c + t->o) : 0);
    vector *x = take_scratch(size * sizeof(vector) + taps * sizeof(int64_t));
    if (!x) { job->failed = 1; return; }
    vector *band = x + t->c * plane, *d = band + t->o * height * lines, *dw = d + t->o * d_plane;
    vector *db = dw + weights, *dy = db + t->o, *line = dy + t->o * rows * columns;
    vector *terms = line + t->c * (in_tiles ? 4 * cut.high : 1) * t->w;
    int64_t *tap = (int64_t *)(x + size);
    for (int64_t k = 0; k < taps; k++) tap[k] = k / t->kw * row + k % t->kw;
    if (t->pad_h || t->pad_w) memset(x, 0, t->c * plane * sizeof(vector));
    memset(band, 0, t->o * (height * lines + d_plane) * sizeof(vector)); /* positions never written */
    memset(dw, 0, (weights + t->o) * sizeof(vector));
    real *partial = job->partial + group * (weights + t->o);
    for (int64_t block = FIRST_OF(group); block < FIRST_OF(group + 1); block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        NAME(pack)(&t->x, first, lanes, t->c, t->h, t->w, x + t->pad_h * row + t->pad_w, plane, row);
        const images given = NAME(whole_vectors)(&t->y, first, lanes, t->o, rows, columns, dy, rows * columns,
                                                 columns);
        for (int64_t p = 0; p < rows; p += height) {
            const int64_t end = p + height < rows ? p + height : rows, r = p * t->pool_h;
            for (int64_t o = 0; o < t->o; o++) {
                vector *frame = wants_dx ? d + o * d_plane + (down.begin + r) * d_row + across.begin : NULL;
                if (t->pool_h == 2 && t->pool_w == 2)
                    NAME(spread)(2, 2, t, &given, block, o, p, end, band, frame, d_row, 1, db + o);
                else
                    NAME(spread)(t->pool_h, t->pool_w, t, &given, block, o, p, end, band, frame, d_row, 1, db + o);
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
        if (!wants_dx) continue;
        const images delta = {d + down.begin * d_row + across.begin, 1, d_plane * LANES, d_row * LANES, LANES};
        if (!in_tiles || !NAME(input_gradient_in_tiles)(job, first, lanes, &delta, cut, line, terms))
            NAME(input_gradient)(job, first, lanes, d, line);
    }
    NAME(collect)(t, dw, partial);
    for (int64_t o = 0; o < t->o; o++) partial[weights + o] = NAME(total)(db[o]);
}

#undef FIRST_OF

static void NAME(backward_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    for (int64_t group = part * job->groups / parts; group < (part + 1) * job->groups / parts; group++)
        if (!job->in_tiles || !NAME(backward_in_tiles)(job, group)) NAME(backward_directly)(job, group);
}

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

int NAME(convolve_backward)(const convolution *t) {
    const int64_t kernels = t->o * t->c, weights = kernels * t->kh * t->kw, size = weights + t->o;
    /* With a stride, most products in tiles of ∂L/∂x would be with zeros. */
    const int by_ones = t->stride_h == 1 && t->stride_w == 1;
    const int dx_in_tiles = by_ones && t->dx.data && NAME(worth_tiles)(t, t->h, t->w);
    const int in_tiles = by_ones && NAME(worth_tiles)(t, t->oh, t->ow) && (dx_in_tiles || !t->dx.data);
    const int64_t groups = BLOCKS(t->n) < t->groups ? BLOCKS(t->n) : t->groups;
    real *memory = malloc((size * groups + weights + dx_in_tiles * TERMS * kernels) * sizeof(real));
    if (!memory) return 1;
    real *turned = memory + size * groups;
    if (t->dx.data) NAME(order)(t->weight, turned, t->c, t->o, t->kh, t->kw, 1);
    NAME(job) job = {.t = t, .partial = memory, .groups = groups, .turned = turned, .in_tiles = in_tiles,
                     .terms = dx_in_tiles ? turned + weights : NULL};
    if (dx_in_tiles) NAME(order_terms)(turned, turned + weights, t->c, t->o);
    in_parallel(NAME(backward_part), &job, t->threads);
    in_parallel(NAME(sum_part), &job, size * groups < 32768 ? 1 : t->threads);
    memcpy(t->dweight, memory, weights * sizeof(real));
    if (t->dbias) memcpy(t->dbias, memory + weights, t->o * sizeof(real));
    free(memory);
    return job.failed;
}
