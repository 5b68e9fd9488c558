/* A convolution at stride 1 as a matrix product whose vectors hold neighbouring columns, and its tiles.
 *
 * In the order (H, C, W, N) a row of one channel is w · n numbers side by side, its columns, and a tap (i, j) of
 * a kernel shifts them by j · n. So the weights of some outputs are multiplied with the columns that each factor k,
 * a channel and a tap, meets. Sums of a tile of outputs and columns stay in registers. Columns are those of a row
 * in a frame of zeros; of all rows of such images at once, if rows are short (what lies between rows is thrown
 * away); or those of one position, if there are many images (without a frame). */

/* A block of `turn`: `high` rows of `length` numbers become `length` rows of `width`. Inlined, so that the transposed
 * vectors of a whole block stay in registers. */
INLINE void NAME(turn_block)(const real *from, int64_t from_row, int64_t high, int64_t length, real *to,
                             int64_t to_row, int64_t width) {
    vector square[LANES];
    UNROLL for (int64_t s = 0; s < LANES; s++)
        square[s] = s < high ? NAME(load)(from + s * from_row, 1, length) : (vector){0};
    NAME(transpose)(square);
    UNROLL for (int64_t s = 0; s < LANES; s++)
        if (s < length) NAME(store)(to + s * to_row, 1, width, square[s]);
}

/* to[j * to_row + i] = from[i * from_row + j] for i < rows, 0 for rows ≤ i < wide; j < columns. */
static void NAME(turn)(const real *from, int64_t from_row, int64_t rows, int64_t columns, real *to, int64_t to_row,
                       int64_t wide) {
    for (int64_t i = 0; i < wide; i += LANES)
        for (int64_t j = 0; j < columns; j += LANES) {
            const int64_t high = rows - i < LANES ? rows - i : LANES, width = wide - i < LANES ? wide - i : LANES;
            if (columns >= LANES && j > columns - LANES) j = columns - LANES; /* overlaps the block before */
            const int64_t length = columns < LANES ? columns : LANES;
            const real *block = from + i * from_row + j;
            real *turned = to + j * to_row + i;
            if (high == LANES && length == LANES)
                NAME(turn_block)(block, from_row, LANES, LANES, turned, to_row, LANES);
            else NAME(turn_block)(block, from_row, high, length, turned, to_row, width);
        }
}

/* Whether the numbers of a row of one channel lie side by side. */
INLINE int NAME(in_columns)(const images *x, int64_t n) { return x->w == n && (n == 1 || x->n == 1); }

/* A row of one channel of images, (w, n), to contiguous memory. */
static void NAME(columns_of)(const images *x, int64_t n, int64_t c, int64_t h, int64_t w, real *to) {
    const real *from = (const real *)x->data + c * x->c + h * x->h;
    if (NAME(in_columns)(x, n)) memcpy(to, from, w * n * sizeof(real));
    else if (x->w == 1 && n > 1) NAME(turn)(from, x->n, n, w, to, n, n);
    else
        for (int64_t q = 0; q < w; q++)
            for (int64_t m = 0; m < n; m++) to[q * n + m] = from[q * x->w + m * x->n];
}

/* A matrix product of weights and columns: y[o][r, q] = bias[o] + Σ_k weight[k][o] · x[r, q + offset[k]]. */
typedef struct {
    images x, y;           /* rows of columns: n = 1, w = the number of images */
    const int64_t *offset; /* of each factor k = (i, j, c), or (c, i, j) if all rows are one */
    const real *weight;    /* for each block of outputs [k][output] */
    const real *bias;      /* may be NULL */
    int64_t n, c, h, w, o, oh, ow, kh, kw, top, left;
    int64_t apart_h, apart_w; /* rows and columns between taps */
    int64_t images;           /* 1, or their number if each is a convolution of its own, with n = 1 */
    int at_once, by_position; /* all rows are one; columns are those of one position, and x has no frame */
    const convolution *finish;        /* ReLU, pooling and where, of a forward; else NULL */
} NAME(correlation);

#define HIGHEST 6 /* rows of a tile, with PANEL vectors each */

/* The number of rows of the block that begins at i; blocks are as equal as possible. */
INLINE int64_t NAME(block_of)(int64_t i, int64_t all, int64_t most) {
    const int64_t blocks = (all - i + most - 1) / most;
    return (all - i + blocks - 1) / blocks;
}

#define OF_A_WIDTH(DO, V) DO(1, V) DO(2, V) DO(3, V) DO(4, V) DO(5, V) DO(6, V)
#if PANEL > 2
#define OF_ALL_SIZES(DO) OF_A_WIDTH(DO, 1) OF_A_WIDTH(DO, 2) OF_A_WIDTH(DO, 3) OF_A_WIDTH(DO, 4)
#else
#define OF_ALL_SIZES(DO) OF_A_WIDTH(DO, 1) OF_A_WIDTH(DO, 2)
#endif

/* Columns of a tile: where they are in x and in the result, and which factors they meet. */
typedef struct {
    const real *x;
    real *out;
    uint8_t *where; /* with ReLU */
    int64_t from, out_row, rounds, first, last, round; /* factors [first, last) of each of `rounds`, `round` apart */
    int64_t width; /* of the columns from the tile on */
    int relu;
} NAME(columns);

/* R outputs of V vectors of columns. The last vector may overlap the one before. */
INLINE void NAME(columns_tile)(const int R, const int V, const NAME(columns) * t, const int64_t *offset,
                               const real *weight, const real *bias, int64_t at) {
    const int64_t left = t->width - at, lanes = t->width < LANES ? t->width : LANES;
    const int64_t last = lanes < LANES ? 0 : left < V * LANES ? left - LANES : (V - 1) * LANES;
    const real *x = t->x;
    vector sum[HIGHEST][PANEL];
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < V; v++) sum[r][v] = (vector){0} + (bias ? bias[r] : 0);
    }
    for (int64_t round = 0; round < t->rounds; round++) {
        const int64_t end_of_round = t->last + round * t->round;
        for (int64_t k = t->first + round * t->round; k < end_of_round; k++) {
            const real *column = x + (t->from + at + offset[k]), *w = weight + k * R;
            vector b[PANEL];
            UNROLL for (int v = 0; v < V - 1; v++) memcpy(b + v, column + v * LANES, sizeof(vector));
            memcpy(b + V - 1, column + last, sizeof(vector));
            UNROLL for (int r = 0; r < R; r++) {
                const real s = w[r];
                UNROLL for (int v = 0; v < V; v++) sum[r][v] += s * b[v];
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < V; v++) {
            vector y = sum[r][v];
            const int64_t to = at + r * t->out_row + (v == V - 1 ? last : v * LANES);
            if (t->relu) {
                const mask none = y <= 0; /* nan stays nan */
                y = NAME(choose)(none, (vector){0}, y);
                const NAME(bytes) places = __builtin_convertvector(none, NAME(bytes)); /* 0 or NOWHERE */
                if (lanes == LANES) memcpy(t->where + to, &places, sizeof places);
                else memcpy(t->where + to, &places, lanes);
            }
            NAME(store)(t->out + to, 1, lanes, y);
        }
    }
}

/* The columns from `from` to `to` of R outputs. */
static void NAME(columns_of_block)(const NAME(columns) * t, const int64_t *offset, const real *weight,
                                   const real *bias, int64_t outputs, int64_t from, int64_t to) {
    for (int64_t at = from; at < to;) {
        const int64_t vectors = (to - at + LANES - 1) / LANES, wide = NAME(block_of)(0, vectors, PANEL);
        switch (wide * 8 + outputs) {
#define COLUMNS_TILE(R, V) case V * 8 + R: NAME(columns_tile)(R, V, t, offset, weight, bias, at); break;
            OF_ALL_SIZES(COLUMNS_TILE)
#undef COLUMNS_TILE
        }
        at += wide * LANES;
    }
}
/* The factors of rows [i0, i1) and columns [j0, j1) of the kernels. */
static void NAME(choose_factors)(const NAME(correlation) * g, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                                 NAME(columns) * t) {
    const int whole_rows = j0 == 0 && j1 == g->kw;
    t->round = g->kw * g->c;
    t->rounds = whole_rows ? 1 : i1 - i0;
    t->first = (i0 * g->kw + j0) * g->c;
    t->last = whole_rows ? i1 * t->round : (i0 * g->kw + j1) * g->c;
    if (i1 <= i0 || j1 <= j0) t->rounds = 0;
}

/* The first of the taps, `apart` from each other, that is `distance` or further from the first. */
INLINE int64_t NAME(first_tap)(int64_t distance, int64_t apart) {
    return distance > 0 ? (distance + apart - 1) / apart : 0;
}

/* Outputs [o, o_end), which begin with a block, of a row of the convolution, `t->out` being its first. */
static void NAME(row_of_columns)(const NAME(correlation) * g, NAME(columns) * t, int64_t row, int64_t o,
                                 int64_t o_end) {
    const int64_t i0 = NAME(first_tap)(g->top - row, g->apart_h), factors = g->c * g->kh * g->kw;
    const int64_t reach = NAME(first_tap)(g->top + g->h - row, g->apart_h), i1 = reach < g->kh ? reach : g->kh;
    const int64_t pieces = g->by_position ? g->ow : 1;
    real *out = t->out;
    uint8_t *where = t->where;
    for (int64_t q = 0; q < pieces; q++) {
        int64_t j0 = 0, j1 = g->kw;
        t->width = g->n * (g->by_position ? 1 : g->ow);
        t->from = row * g->x.h;
        if (g->by_position) {
            t->from += (q - g->left) * g->n - g->top * g->x.h;
            j0 = NAME(first_tap)(g->left - q, g->apart_w);
            j1 = NAME(first_tap)(g->left + g->w - q, g->apart_w);
            if (j1 > g->kw) j1 = g->kw;
            t->out = out + q * g->n;
            t->where = AFTER(where, q * g->n);
        }
        if (g->at_once) {
            t->width = (g->oh - 1) * g->x.h + g->ow * g->n;
            NAME(choose_factors)(g, 0, g->kh, 0, g->kw, t);
        } else NAME(choose_factors)(g, i0, i1, j0, j1, t);
        /* Columns in groups that stay in the second-level cache for all outputs. */
        const int64_t room = 40000 / (g->c * (i1 - i0 < 1 ? 1 : i1 - i0)) / (PANEL * LANES) * (PANEL * LANES);
        const int64_t step = room > PANEL * LANES ? room : PANEL * LANES;
        for (int64_t from = 0, outputs; from < t->width; from += step) {
            const int64_t to = t->width - from < step + LANES ? t->width : from + step;
            for (int64_t b = o; b < o_end; b += outputs) {
                outputs = NAME(block_of)(b, g->o, HIGHEST);
                NAME(columns) own = *t;
                own.out += (b - o) * t->out_row;
                own.where = AFTER(t->where, (b - o) * t->out_row);
                NAME(columns_of_block)(&own, g->offset, g->weight + b * factors, AFTER(g->bias, b), outputs, from, to);
            }
            if (to == t->width) break;
        }
    }
}
