/* Convolutions at stride 1 by the tiles of columns.h: for few images, which fill no vector, for kernels 1 × 1, and
 * for large kernels of small images, which are mostly padding. */

/* One row of one output of y, of all images or of one, from rows of a convolution that are `from_h` apart. Inlined,
 * so that sizes are constants. */
INLINE void NAME(finish_row)(const int64_t pool_h, const int64_t pool_w, const convolution *t, const real *from,
                             int64_t from_h, int64_t n, int64_t image, int64_t o, int64_t p) {
    const int64_t to = o * t->y.c + p * t->y.h + image, step = t->n;
    real *y = (real *)t->y.data + to;
    uint8_t *where = AFTER(t->where, to);
    for (int64_t q = 0; q < t->ow / pool_w; q++)
        for (int64_t m = 0; m < n; m++) {
            const real *window = from + q * pool_w * n + m;
            real best = window[0];
            int at = 0;
            UNROLL_IF_KNOWN for (int64_t s = 0; s < pool_h; s++) {
                UNROLL_IF_KNOWN for (int64_t u = 0; u < pool_w; u++) {
                    const real v = window[s * from_h + u * n];
                    const int better = v > best || v != v; /* nan: the last of them */
                    best = better ? v : best;
                    at = better ? (int)(s * pool_w + u) : at;
                }
            }
            if (t->relu && best <= 0) {
                best = 0;
                at = NOWHERE;
            }
            y[q * step + m] = best;
            if (where) where[q * step + m] = (uint8_t)at;
        }
}

/* Rows [p, end) of some outputs of y from a strip of the convolution. */
static void NAME(finish_rows)(const NAME(correlation) * g, const real *strip, int64_t row, int64_t plane, int64_t m,
                              int64_t o, int64_t outputs, int64_t p, int64_t end) {
    const convolution *t = g->finish;
    const int64_t n = g->n;
    for (int64_t i = 0; i < outputs; i++)
        for (int64_t r = p; r < end; r++) {
            const real *from = strip + i * plane + (r - p) * (t ? t->pool_h : 1) * row;
            if (!t) memcpy((real *)g->y.data + (o + i) * g->y.c + r * g->y.h, from, g->ow * g->n * sizeof(real));
            else if (t->pool_h == 1 && t->pool_w == 1) NAME(finish_row)(1, 1, t, from, row, n, m, o + i, r);
            else if (t->pool_h == 2 && t->pool_w == 2) NAME(finish_row)(2, 2, t, from, row, n, m, o + i, r);
            else NAME(finish_row)(t->pool_h, t->pool_w, t, from, row, n, m, o + i, r);
        }
}
/* A part of the rows and blocks of outputs; 0 if there is no memory. */
static int NAME(correlate_columns)(const NAME(correlation) * g, int part, int parts) {
    const convolution *t = g->finish;
    const int64_t pool_h = t ? t->pool_h : 1, high = g->at_once ? g->oh / pool_h : 1, rows = g->oh / pool_h / high;
    const int64_t blocks = (g->o + HIGHEST - 1) / HIGHEST, items = g->images * rows * blocks;
    const int64_t row = g->at_once ? g->x.h : g->ow * g->n, plane = (g->at_once ? g->oh : pool_h) * row + LANES;
    const int direct = !g->at_once && (!t || t->pool_h * t->pool_w == 1);
    real *strip = direct ? NULL : take_scratch(HIGHEST * plane * (int64_t)sizeof(real));
    if (!direct && !strip) return 0;
    int64_t item = part * items / parts;
    const int64_t end = (part + 1) * items / parts;
    int64_t first = 0;
    for (int64_t b = 0; b < item % blocks; b++) first += NAME(block_of)(first, g->o, HIGHEST);
    while (item < end) {
        const int64_t image = item / blocks / rows, p = item / blocks % rows;
        const int64_t left = end - item, more = blocks - item % blocks;
        int64_t o_end = first;
        for (int64_t b = 0; b < (direct ? (left < more ? left : more) : 1); b++, item++)
            o_end += NAME(block_of)(o_end, g->o, HIGHEST);
        NAME(columns) columns = {.x = (const real *)g->x.data + image * g->x.n};
        if (direct) {
            const int64_t to = p * g->y.h + first * g->y.c;
            columns.out = (real *)g->y.data + to;
            columns.out_row = g->y.c;
            columns.relu = t && t->relu;
            columns.where = columns.relu ? t->where + to : NULL;
            NAME(row_of_columns)(g, &columns, p, first, o_end);
        } else {
            columns.out_row = plane;
            for (int64_t s = 0; s < (g->at_once ? 1 : pool_h); s++) {
                columns.out = strip + s * row;
                NAME(row_of_columns)(g, &columns, p * pool_h + s, first, o_end);
            }
            NAME(finish_rows)(g, strip, row, plane, image, first, o_end - first, p * high, (p + 1) * high);
        }
        first = o_end < g->o ? o_end : 0;
    }
    return 1;
}

/* --- what is made ready before the products, in parts --- */

/* Where rows of channels begin in memory of `high` rows of `wide` positions. */
static images NAME(rows_of_columns)(real *data, int64_t n, int64_t c, int64_t high, int64_t wide, int at_once) {
    if (at_once) return (images){data, 1, high * wide * n, wide * n, n};
    return (images){data, 1, wide * n, c * wide * n, n};
}

/* A row of a frame: zeros, and between them (w, n) numbers, whose place is returned. */
static real *NAME(frame_row)(const images *frame, int64_t c, int64_t row, int64_t left, int64_t width, int64_t right) {
    real *to = (real *)frame->data + c * frame->c + row * frame->h;
    memset(to, 0, left * sizeof(real));
    memset(to + left + width, 0, right * sizeof(real));
    return to + left;
}

/* The weights [k][output] of blocks of outputs. With `turned` those of the transposed convolution. */
static void NAME(order_factors)(const NAME(correlation) * g, const real *weight, int turned, real *to, int part,
                                int parts) {
    const int64_t taps = g->kh * g->kw, blocks = (g->o + HIGHEST - 1) / HIGHEST;
    int64_t first = 0, outputs;
    for (int64_t b = 0; b < blocks; b++, first += outputs) {
        outputs = NAME(block_of)(first, g->o, HIGHEST);
        if (b < part * blocks / parts || b >= (part + 1) * blocks / parts) continue;
        for (int64_t c = 0; c < g->c; c++)
            for (int64_t tap = 0; tap < taps; tap++) {
                const int64_t k = g->at_once ? c * taps + tap : tap * g->c + c;
                real *own = to + first * g->c * taps + k * outputs;
                for (int64_t o = first; o < first + outputs; o++)
                    *own++ = turned ? weight[(c * g->o + o) * taps + taps - 1 - tap]
                                    : weight[(o * g->c + c) * taps + tap];
            }
    }
}

static void NAME(set_offsets)(const NAME(correlation) * g, int64_t *offset) {
    for (int64_t c = 0; c < g->c; c++)
        for (int64_t i = 0; i < g->kh; i++)
            for (int64_t j = 0; j < g->kw; j++)
                offset[g->at_once ? (c * g->kh + i) * g->kw + j : (i * g->kw + j) * g->c + c] =
                    c * g->x.c + i * g->apart_h * g->x.h + j * g->apart_w * g->n;
}

/* Fewer vectors if all rows are one? */
static int NAME(better_at_once)(int64_t rows, int64_t columns, int64_t pitch) {
    return rows * ((columns + LANES - 1) / LANES) > ((rows - 1) * pitch + columns + LANES - 1) / LANES;
}

/* --- forward --- */

typedef struct {
    const convolution *t;
    NAME(correlation) g;
    real *ordered;
    int laid; /* x is laid out anew */
    atomic_int failed;
} NAME(positions_job);

/* Rows of x in a frame, in the order in which x lies in memory. */
static void NAME(lay_rows)(const convolution *t, const images *frame, int64_t top, int64_t left, int part, int parts) {
    const int64_t n = t->n, high = t->h + 2 * top, wide = t->w + 2 * left, from = part * high / parts;
    const int64_t rows = (part + 1) * high / parts - from;
    const int by_channel = t->x.c > t->x.h;
    for (int64_t at = 0; at < rows * t->c; at++) {
        const int64_t row = from + (by_channel ? at % rows : at / t->c), c = by_channel ? at / rows : at % t->c;
        const int inside = row >= top && row < top + t->h;
        real *to = NAME(frame_row)(frame, c, row, left * n, inside ? t->w * n : 0, (inside ? left : wide - left) * n);
        if (inside) NAME(columns_of)(&t->x, n, c, row - top, t->w, to);
    }
}

static void NAME(prepare_positions)(void *task, int part, int parts) {
    NAME(positions_job) *job = task;
    NAME(order_factors)(&job->g, job->t->weight, 0, job->ordered, part, parts);
    if (job->laid) NAME(lay_rows)(job->t, &job->g.x, job->g.by_position ? 0 : job->g.top,
                                  job->g.by_position ? 0 : job->g.left, part, parts);
}

static void NAME(positions_part)(void *task, int part, int parts) {
    NAME(positions_job) *job = task;
    if (!NAME(correlate_columns)(&job->g, part, parts)) job->failed = 1;
}

int NAME(convolve_positions)(const convolution *t) {
    const int64_t n = t->n, factors = t->c * t->kh * t->kw;
    const int by_position = t->kh * t->kw > 1 && n >= 2 * LANES;
    /* Images in row-major order are not rearranged if there are few outputs, whose order is changed instead. */
    const int by_image = t->kh * t->kw == 1 && !t->pad_h && !t->pad_w && n > 1 && t->x.w == 1 && t->x.h == t->w &&
                         t->h * t->w >= LANES && t->o <= 2 * HIGHEST && t->c >= 4 * t->o;
    const int64_t top = by_position ? 0 : t->pad_h, left = by_position ? 0 : t->pad_w;
    const int64_t high = t->h + 2 * top, wide = t->w + 2 * left;
    const int long_enough = by_position || t->ow * n >= LANES; /* vectors do not reach beyond a row */
    const int laid = !by_image && (top || left || !long_enough || !NAME(in_columns)(&t->x, n));
    const int at_once = by_image || (laid && !by_position && NAME(better_at_once)(t->oh, t->ow * n, wide * n));
    const int64_t frame = laid ? t->c * high * wide * n + LANES : 0;
    int64_t *offset = malloc(factors * sizeof(int64_t) + (factors * t->o + frame) * sizeof(real));
    if (!offset) return 1;
    real *ordered = (real *)(offset + factors), *data = ordered + factors * t->o;
    NAME(positions_job) job = {.t = t, .ordered = ordered, .laid = laid, .g = {
        .x = laid ? NAME(rows_of_columns)(data, n, t->c, high, wide, at_once) : t->x, .y = t->y, .offset = offset,
        .weight = ordered, .bias = t->bias, .n = by_image ? 1 : n, .images = by_image ? n : 1, .c = t->c, .h = t->h,
        .w = t->w, .o = t->o, .oh = t->oh, .ow = t->ow, .kh = t->kh, .kw = t->kw, .top = t->pad_h,
        .left = t->pad_w, .apart_h = t->apart_h, .apart_w = t->apart_w, .at_once = at_once,
        .by_position = by_position, .finish = t}};
    NAME(set_offsets)(&job.g, offset);
    in_parallel(NAME(prepare_positions), &job, t->threads);
    in_parallel(NAME(positions_part), &job, t->threads);
    free(offset);
    return job.failed;
}
