/* Parts of the backward of a convolution with ReLU and max pooling. */

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
        fetches soon = {0};
        if (t->dx.n == 1) {
            const images dx = {(real *)t->dx.data + first, 1, t->dx.c, t->dx.h, t->dx.w};
            NAME(will_need)(&soon, &dx, t->c, h, h + 1, t->h, t->w);
            pace_fetches(&soon, (sw < t->w ? sw : t->w) * ((t->c + MOST_OUTPUTS - 1) / MOST_OUTPUTS));
        }
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
            NAME(correlate)(&g, job->turned, NULL, t->c, &soon);
            const images every = {(real *)t->dx.data + w * t->dx.w, t->dx.n, t->dx.c, t->dx.h, sw * t->dx.w};
            NAME(unpack_row)(line, &every, first, lanes, t->c, h, g.ow);
        }
    }
}

/* At most 4 · high rows of ∂L/∂x, from `row` on, in tiles; d is δ without a frame. Returns whether all numbers are
 * finite. */
static int NAME(input_gradient_in_tiles)(const NAME(job) *job, int64_t first, int64_t lanes, const NAME(framed) * d,
                                         NAME(chunks) k, int64_t row, vector *lines, vector *terms, fetches *soon) {
    const convolution *t = job->t;
    const int64_t window = t->c * t->w, rows = t->h - row < 4 * k.high ? t->h - row : 4 * k.high;
    const int plain = t->dx.n == 1 && lanes == LANES;
    images dx = {lines, 1, t->w * LANES, window * LANES, LANES};
    if (plain) dx = (images){(real *)t->dx.data + first + row * t->dx.h, 1, t->dx.c, t->dx.h, t->dx.w};
    if (!NAME(rows_in_tiles)(d, k, t->o, t->c, job->terms, NULL, row, rows, t->w, &dx, NULL, 0, terms, soon)) return 0;
    for (int64_t r = 0; r < rows && !plain; r++)
        NAME(unpack_row)(lines + r * window, &t->dx, first, lanes, t->c, row + r, t->w);
    return 1;
}

/* The first block of a group. */
#define FIRST_OF(group) ((group) * BLOCKS(t->n) / job->groups)
