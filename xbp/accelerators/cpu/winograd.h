/* Convolutions 3 × 3 at steps of 1 by fewer products: Winograd's F(4 × 4, 3 × 3).
 *
 * Four neighbouring outputs y_k = Σ_j g_j d_(k+j) are coefficients of a product of polynomials, which its
 * values at six points determine (Lavin & Gray 2016, section 4.3; Winograd 1980). With the points 0, ±a, ±b,
 * ∞, these are six products in place of twelve: y = Aᵀ (G g ∘ Bᵀ d); along rows and columns 36 in place of
 * 144, each summed over the channels first. Bᵀ comes from the polynomials that are 0 at all other points,
 *
 *     (x² - a²)(x² - b²),   x (x ± a)(x² - b²),   x (x² - a²)(x ± b),   x (x² - a²)(x² - b²),
 *
 * Aᵀ from the powers of the points, and G from those below 3, divided by N = 2a²(a² - b²) at ±a, 2b²(b² - a²)
 * at ±b and a²b² at 0. With a = 5/8 and b = 3/2, which float32 holds with their products, sums of 144 terms err
 * by twice the rounding error of a direct sum in the mean, with 1 and 2 by four times.
 *
 * Where an input is not finite, or a term overflows, so is an output of its tile: it is computed directly then. */

#define TERMS 36
#define FEWEST 8 /* channels and outputs: below, transformations cost more than they save */
#define A1 ((real)0.625)      /* a */
#define A2 ((real)0.390625)   /* a² */
#define A3 ((real)0.244140625)
#define B1 ((real)1.5)
#define B2 ((real)2.25)
#define B3 ((real)3.375)
#define NA (2 * 0.390625 * (0.390625 - 2.25))
#define NB (2 * 2.25 * (2.25 - 0.390625))

/* Whether (height, width) outputs are worth the tiles that cover them. */
INLINE int NAME(worth_tiles)(const convolution *t, int64_t height, int64_t width) {
    const int64_t tiles = (height + 3) / 4 * ((width + 3) / 4);
    return t->kh == 3 && t->kw == 3 && t->c >= FEWEST && t->o >= FEWEST && 8 * tiles <= height * width;
}

/* Bᵀ d */
INLINE void NAME(input_terms)(const vector *d, vector *v) {
    const vector even_a = d[4] - B2 * d[2], odd_a = A1 * (d[3] - B2 * d[1]);
    const vector even_b = d[4] - A2 * d[2], odd_b = B1 * (d[3] - A2 * d[1]);
    v[0] = A2 * B2 * d[0] + (d[4] - (A2 + B2) * d[2]);
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = A2 * B2 * d[1] + (d[5] - (A2 + B2) * d[3]);
}

/* Aᵀ m */
INLINE void NAME(output_of_terms)(const vector *m, vector *y) {
    const vector even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = A1 * odd_a + B1 * odd_b;
    y[2] = A2 * even_a + B2 * even_b;
    y[3] = A3 * odd_a + (B3 * odd_b + m[5]);
}

/* G g for three numbers `step` apart, in double precision, to places `apart`. */
INLINE void NAME(weight_terms)(const double *g, int64_t step, double *to, int64_t apart) {
    const double g0 = g[0], g1 = g[step], g2 = g[2 * step];
    const double even_a = (g0 + A2 * g2) / NA, odd_a = A1 / NA * g1;
    const double even_b = (g0 + B2 * g2) / NB, odd_b = B1 / NB * g1;
    to[0] = g0 / (A2 * B2);
    to[apart] = even_a + odd_a;
    to[2 * apart] = even_a - odd_a;
    to[3 * apart] = even_b + odd_b;
    to[4 * apart] = even_b - odd_b;
    to[5 * apart] = g2;
}

/* From weights in the order of `correlate`: [term][c][outputs], with c · outputs for each block of outputs. */
static void NAME(order_terms)(const real *weight, real *to, int64_t all, int64_t c) {
    int outputs;
    for (int64_t first = 0; first < all; first += outputs, to += c * outputs) {
        outputs = NAME(outputs)(first, all);
        for (int64_t k = 0; k < c; k++, weight += 9 * outputs) {
            double g[9][MOST_OUTPUTS], rows[3][6][MOST_OUTPUTS], terms[6][6][MOST_OUTPUTS];
            memset(g, 0, sizeof g);
            for (int tap = 0; tap < 9; tap++)
                for (int o = 0; o < outputs; o++) g[tap][o] = weight[tap * outputs + o];
            for (int o = 0; o < MOST_OUTPUTS; o++) {
                UNROLL for (int i = 0; i < 3; i++)
                    NAME(weight_terms)(&g[3 * i][o], MOST_OUTPUTS, &rows[i][0][o], MOST_OUTPUTS);
                UNROLL for (int j = 0; j < 6; j++)
                    NAME(weight_terms)(&rows[0][j][o], 6 * MOST_OUTPUTS, &terms[0][j][o], 6 * MOST_OUTPUTS);
            }
            for (int term = 0; term < TERMS; term++)
                for (int o = 0; o < outputs; o++)
                    to[(term * all * c) + k * outputs + o] = (real)terms[term / 6][term % 6][o];
        }
    }
}

/* --- a block of images in tiles --- */

/* Images of whole vectors, surrounded by zeros: strides are those of `images`, whose n is 1. */
typedef struct {
    images at;
    int64_t height, width;
    int64_t top, left; /* rows and columns of zeros before the first output's window */
} NAME(framed);

/* How a block is cut: chunks of `high` × `wide` tiles, whose terms stay in the second-level cache. */
typedef struct {
    int64_t high, wide, tiles, plane; /* plane: vectors from one channel's terms to the next one's */
} NAME(chunks);

static NAME(chunks) NAME(cut)(int64_t channels, int64_t height, int64_t width) {
    const int64_t down = (height + 3) / 4, across = (width + 3) / 4;
    const int64_t fit = 640000 / (TERMS * channels * (int64_t)sizeof(vector)), most = fit < 4 ? 4 : fit;
    const int64_t pieces = (across + most - 1) / most;
    NAME(chunks) k = {.wide = (across + pieces - 1) / pieces, .high = 1};
    if (pieces == 1 && most / across > 1) k.high = most / across < down ? most / across : down;
    k.tiles = k.high * k.wide;
    k.plane = TERMS * k.tiles + 1; /* odd, so that channels do not share a set of the first-level cache */
    return k;
}

/* Vectors of memory for the terms of a channel's chunks, once, and between them. */
INLINE int64_t NAME(between)(NAME(chunks) k) { return 6 * (4 * k.wide + 2); }

/* The terms of one channel of x for high × wide tiles from (row, column) of the output on:
 * [term][tile], with `tiles` from one term to the next. */
static void NAME(tiles_of_input)(const NAME(framed) * x, int64_t c, int64_t row, int64_t column, int64_t high,
                                 int64_t wide, int64_t tiles, vector *between, vector *to) {
    static const vector nothing;
    const int64_t columns = 4 * wide + 2, left = column - x->left;
    const int64_t from = left < 0 ? -left : 0, until = left + columns > x->width ? x->width - left : columns;
    for (int64_t h = 0; h < high; h++, to += wide) {
        const real *rows[6];
        int64_t steps[6];
        UNROLL for (int i = 0; i < 6; i++) {
            const int64_t r = row + 4 * h + i - x->top;
            const int inside = r >= 0 && r < x->height;
            steps[i] = inside ? x->at.w : 0;
            rows[i] = inside ? (const real *)x->at.data + c * x->at.c + r * x->at.h + left * x->at.w
                             : (const real *)&nothing;
        }
        for (int64_t k = 0; k < columns; k++) {
            vector d[6], v[6];
            if (k < from || k >= until) {
                UNROLL for (int i = 0; i < 6; i++) between[i * columns + k] = nothing;
                continue;
            }
            UNROLL for (int i = 0; i < 6; i++) {
                memcpy(d + i, rows[i] + k * steps[i], sizeof(vector));
                __builtin_prefetch(rows[i] + k * steps[i] + x->at.c); /* of the next channel */
            }
            NAME(input_terms)(d, v);
            UNROLL for (int i = 0; i < 6; i++) between[i * columns + k] = v[i];
        }
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
                                 int64_t tiles, vector *m) {
    for (int term = 0; term < TERMS; term++, u += tiles, m += tiles) {
        int outputs;
        for (int64_t first = 0; first < all; first += outputs, weight += c * outputs) {
            outputs = NAME(outputs)(first, all);
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
                               uint8_t *where, int64_t where_plane, vector *u) {
    vector *m = u + c * k.plane, *between = m + all * k.plane, check = {0};
    const int64_t high = (rows + 3) / 4;
    for (int64_t column = 0; column < width; column += 4 * k.wide) {
        const int64_t columns = width - column < 4 * k.wide ? width - column : 4 * k.wide, wide = (columns + 3) / 4;
        for (int64_t i = 0; i < c; i++)
            NAME(tiles_of_input)(x, i, first, column, high, wide, high * wide, between, u + i * k.plane);
        NAME(multiply_terms)(u, weight, c, all, k.plane, high * wide, m);
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
