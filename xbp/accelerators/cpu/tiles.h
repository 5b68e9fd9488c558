/* A block of images in tiles of 4 × 4 outputs, by the products of winograd.h. */

/* Images of whole vectors, surrounded by zeros: strides are those of `images`, whose n is 1. */
typedef struct {
    images at;
    int64_t height, width;
    int64_t top, left; /* rows and columns of zeros before the first output's window */
    int64_t ring;      /* row r is kept where row r % ring was; 0: all rows are kept */
} NAME(framed);

INLINE const real *NAME(row_of)(const NAME(framed) * x, int64_t c, int64_t r) {
    return (const real *)x->at.data + c * x->at.c + (x->ring ? r % x->ring : r) * x->at.h;
}

/* How a block is cut: chunks of `high` × `wide` tiles, whose terms stay in the second-level cache beside what is
 * fetched for the next chunk. */
typedef struct {
    int64_t high, wide, tiles, plane; /* plane: vectors from one channel's terms to the next one's */
} NAME(chunks);

static NAME(chunks) NAME(cut)(int64_t channels, int64_t height, int64_t width) {
    const int64_t down = (height + 3) / 4, across = (width + 3) / 4;
    const int64_t fit = 300000 / (TERMS * channels * (int64_t)sizeof(vector)), most = fit < 4 ? 4 : fit;
    const int64_t pieces = (across + most - 1) / most;
    NAME(chunks) k = {.wide = (across + pieces - 1) / pieces, .high = 1};
    if (pieces == 1 && most / across > 1) k.high = most / across < down ? most / across : down;
    k.tiles = k.high * k.wide;
    k.plane = TERMS * k.tiles + 1; /* odd, so that channels do not share a set of the first-level cache */
    return k;
}

/* Vectors of memory for the terms of a channel's chunks, once, and between them. */
INLINE int64_t NAME(between)(NAME(chunks) k) { return 6 * (4 * k.wide + 2); }

/* How often `multiply_terms` and `add_terms` fetch for the rows of a chunk, with so many sums and `columns`. */
INLINE int64_t NAME(calls)(int64_t sums, int64_t columns, NAME(chunks) k) {
    return TERMS * ((sums + MOST_OUTPUTS - 1) / MOST_OUTPUTS) * ((columns + 4 * k.wide - 1) / (4 * k.wide));
}

/* Rows `from` to `end` of images, of at most `height`. */
INLINE void NAME(will_need)(fetches *f, const images *x, int64_t planes, int64_t from, int64_t end, int64_t height,
                            int64_t width) {
    const int64_t size = sizeof(real), until = end < height ? end : height;
    if (from >= until) return;
    f->of[f->count++] = (region){(const real *)x->data + from * x->h, x->c * size, x->h * size, x->w * size, planes,
                                 until - from, width};
}

/* Bᵀ d for columns `from` to `until` of six rows; `steps` are those from one column to the next. */
INLINE void NAME(columns_of_input)(const real *const *rows, const int64_t *steps, int64_t from, int64_t until,
                                   int64_t columns, vector *between) {
    for (int64_t k = from; k < until; k++) {
        vector d[6], v[6];
        UNROLL for (int i = 0; i < 6; i++) memcpy(d + i, rows[i] + k * steps[i], sizeof(vector));
        NAME(input_terms)(d, v);
        UNROLL for (int i = 0; i < 6; i++) between[i * columns + k] = v[i];
    }
}

/* The terms of one channel of x for high × wide tiles from (row, column) of the output on:
 * [term][tile], with `tiles` from one term to the next. */
static void NAME(tiles_of_input)(const NAME(framed) * x, int64_t c, int64_t row, int64_t column, int64_t high,
                                 int64_t wide, int64_t tiles, vector *between, vector *to) {
    static const vector nothing;
    const int64_t columns = 4 * wide + 2, left = column - x->left, step = x->at.w;
    const int64_t from = left < 0 ? -left : 0, until = left + columns > x->width ? x->width - left : columns;
    for (int64_t h = 0; h < high; h++, to += wide) {
        const real *rows[6];
        int64_t steps[6], within = 0;
        UNROLL for (int i = 0; i < 6; i++) {
            const int64_t r = row + 4 * h + i - x->top;
            const int inside = r >= 0 && r < x->height;
            within += inside;
            steps[i] = inside ? step : 0;
            rows[i] = inside ? NAME(row_of)(x, c, r) + left * step : (const real *)&nothing;
        }
        for (int64_t k = 0; k < columns; k++)
            if (k < from || k >= until) UNROLL for (int i = 0; i < 6; i++) between[i * columns + k] = nothing;
        if (within == 6)
            NAME(columns_of_input)(rows, (const int64_t[]){step, step, step, step, step, step}, from, until, columns,
                                   between);
        else NAME(columns_of_input)(rows, steps, from, until, columns, between);
        for (int i = 0; i < 6; i++)
            for (int64_t q = 0; q < wide; q++) {
                vector v[6];
                NAME(input_terms)(between + i * columns + 4 * q, v);
                UNROLL for (int j = 0; j < 6; j++) to[(6 * i + j) * tiles + q] = v[j];
            }
    }
}

/* O × T sums over the channels. */
INLINE void NAME(term_tile)(const int O, const int T, const vector *u, int64_t plane, int64_t c, const real *w,
                            vector *m) {
    vector sum[MOST_OUTPUTS][3] = {{{0}}};
    for (; c > 0; c--, u += plane, w += O) {
        vector x[3];
        UNROLL for (int s = 0; s < T; s++) x[s] = u[s];
        UNROLL for (int o = 0; o < O; o++) {
            UNROLL for (int s = 0; s < T; s++) sum[o][s] += w[o] * x[s];
        }
    }
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) m[o * plane + s] = sum[o][s];
    }
}

#if MOST_OUTPUTS == 8
#define EACH_OUTPUTS(DO) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8)
#else
#define EACH_OUTPUTS(DO) DO(1) DO(2) DO(3) DO(4)
#endif

/* The terms of all outputs for a chunk, from those of c channels. */
static void NAME(multiply_terms)(const vector *u, const real *weight, int64_t c, int64_t all, int64_t plane,
                                 int64_t tiles, vector *m, fetches *soon) {
    for (int term = 0; term < TERMS; term++, u += tiles, m += tiles) {
        int outputs;
        for (int64_t first = 0; first < all; first += outputs, weight += c * outputs) {
            outputs = NAME(outputs)(first, all);
            fetch(soon);
            vector *to = m + first * plane;
            switch (outputs) {
#define ROW(O)                                                                                         \
    case O:                                                                                            \
        for (int64_t q = 0; q < tiles;)                                                                   \
            if (tiles - q == 3 || tiles - q > 4)                                                          \
                NAME(term_tile)(O, 3, u + q, plane, c, weight, to + q), q += 3;                           \
            else if (tiles - q > 1) NAME(term_tile)(O, 2, u + q, plane, c, weight, to + q), q += 2;       \
            else NAME(term_tile)(O, 1, u + q, plane, c, weight, to + q), q++;                             \
        break;
                EACH_OUTPUTS(ROW)
#undef ROW
            }
        }
    }
}

/* One output of high × wide tiles from their terms: `rows` rows and `columns` columns of y, or with `relu` of
 * max(y, 0), and of `where`, whose rows are `where_row` apart (see `convolution`). Adds 0 · y to `check`. */
INLINE void NAME(tiles_to_output)(const int relu, const vector *m, int64_t high, int64_t wide, int64_t tiles,
                                  real bias, int64_t rows, int64_t columns, real *to, const images *y,
                                  uint8_t *where, int64_t where_row, vector *check) {
    vector seen = *check;
    for (int64_t h = 0; h < high; h++, m += wide, rows -= 4, to += 4 * y->h, where = AFTER(where, 4 * where_row))
        for (int64_t q = 0; q < wide; q++) {
            vector z[4][6];
            UNROLL for (int j = 0; j < 6; j++) {
                vector column[6], four[4];
                UNROLL for (int i = 0; i < 6; i++) column[i] = m[(6 * i + j) * tiles + q];
                NAME(output_of_terms)(column, four);
                UNROLL for (int r = 0; r < 4; r++) z[r][j] = four[r];
            }
            const int64_t last = columns - 4 * q;
            UNROLL for (int r = 0; r < 4; r++) {
                vector four[4];
                NAME(output_of_terms)(z[r], four);
                UNROLL for (int k = 0; k < 4; k++) {
                    four[k] += bias;
                    seen += four[k] * 0;
                }
                if (r >= rows) continue;
                real *line = to + r * y->h + 4 * q * y->w;
                UNROLL for (int k = 0; k < 4; k++) {
                    if (k >= last) continue;
                    if (relu) {
                        const mask none = four[k] <= 0;
                        const NAME(bytes) places = __builtin_convertvector(none, NAME(bytes)); /* NOWHERE or 0 */
                        memcpy(where + r * where_row + (4 * q + k) * LANES, &places, sizeof places);
                        four[k] = NAME(choose)(none, (vector){0}, four[k]); /* nan stays nan */
                    }
                    memcpy(line + k * y->w, four + k, sizeof(vector));
                }
            }
        }
    *check = seen;
}

/* Whether no lane is infinite or nan: `check` is a sum of such times 0. */
static int NAME(is_finite)(vector check) {
    for (int64_t lane = 0; lane < LANES; lane++)
        if (check[lane] != 0) return 0;
    return 1;
}

/* Vectors of workspace for `rows_in_tiles`. */
INLINE int64_t NAME(room_for_tiles)(NAME(chunks) k, int64_t channels) {
    return channels * k.plane + NAME(between)(k);
}

/* `rows` rows of y, at most 4 · high, from row `first` on, which is where y->data is, and `where` unless it is
 * NULL, for ReLU. Returns whether all numbers are finite before it. */
static int NAME(rows_in_tiles)(const NAME(framed) * x, NAME(chunks) k, int64_t c, int64_t all, const real *weight,
                               const real *bias, int64_t first, int64_t rows, int64_t width, const images *y,
                               uint8_t *where, int64_t where_plane, vector *u, fetches *soon) {
    vector *m = u + c * k.plane, *between = m + all * k.plane, check = {0};
    const int64_t high = (rows + 3) / 4;
    for (int64_t column = 0; column < width; column += 4 * k.wide) {
        const int64_t columns = width - column < 4 * k.wide ? width - column : 4 * k.wide, wide = (columns + 3) / 4;
        for (int64_t i = 0; i < c; i++)
            NAME(tiles_of_input)(x, i, first, column, high, wide, high * wide, between, u + i * k.plane);
        NAME(multiply_terms)(u, weight, c, all, k.plane, high * wide, m, soon);
        for (int64_t o = 0; o < all; o++) {
            const vector *from = m + o * k.plane;
            real *to = (real *)y->data + o * y->c + column * y->w, offset = bias ? bias[o] : 0;
            if (where)
                NAME(tiles_to_output)(1, from, high, wide, high * wide, offset, rows, columns, to, y,
                                      where + o * where_plane + column * LANES, width * LANES, &check);
            else
                NAME(tiles_to_output)(0, from, high, wide, high * wide, offset, rows, columns, to, y, NULL, 0, &check);
        }
    }
    return NAME(is_finite)(check);
}
