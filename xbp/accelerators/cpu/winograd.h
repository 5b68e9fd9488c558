/* Rows of a convolution with kernels 3 wide at steps of 1, by fewer products: Winograd's F(2, 3).
 *
 * Two neighbouring outputs of a row g of a kernel see four numbers d. Four products give both, where
 * six would be summed directly (Lavin & Gray 2016, section 4.1):
 *
 *     m0 = (d0 - d2) g0,                    m3 = (d1 - d3) g2,
 *     m1 = (d1 + d2) (g0 + g1 + g2) / 2,    y0 = m0 + m1 + m2,
 *     m2 = (d2 - d1) (g0 - g1 + g2) / 2,    y1 = m1 - m2 - m3.
 *
 * m0 to m3 are summed over channels and rows of kernels first. Each row of x is transformed once, and
 * kept while kernels see it. */

#define TERMS 4
#define FEWEST 8 /* channels and outputs: below, transformations cost more than they save */
/* Numbers beyond it are multiplied directly: their differences might overflow, and infinities cancel. */
#define MODERATE ((real)0x1p50)

static int NAME(moderate)(const vector *x, int64_t n) {
    mask fits = ~(mask){0};
    for (int64_t i = 0; i < n; i++) fits &= (x[i] <= MODERATE) & (x[i] >= -MODERATE);
    for (int64_t lane = 0; lane < LANES; lane++)
        if (!fits[lane]) return 0;
    return 1;
}

static int NAME(moderate_weights)(const real *weight, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!(weight[i] <= MODERATE && weight[i] >= -MODERATE)) return 0;
    return 1;
}

INLINE int NAME(worth_pairs)(const convolution *t, int64_t width) {
    return t->kw == 3 && t->c >= FEWEST && t->o >= FEWEST && width >= 4;
}

/* From weights in the order of `correlate`: [term][kh][c][outputs] for each block of outputs. */
static void NAME(order_pairs)(const real *weight, real *to, int64_t all, int64_t c, int64_t kh) {
    int outputs;
    for (int64_t first = 0; first < all; first += outputs, weight += c * kh * 3 * outputs) {
        outputs = NAME(outputs)(first, all);
        const int64_t size = kh * c * outputs;
        for (int64_t i = 0; i < kh; i++)
            for (int64_t k = 0; k < c; k++)
                for (int64_t o = 0; o < outputs; o++, to++) {
                    const real *g = weight + (k * kh + i) * 3 * outputs + o;
                    const real g0 = g[0], g1 = g[outputs], g2 = g[2 * outputs];
                    to[0] = g0;
                    to[size] = (g0 + g1 + g2) / 2;
                    to[2 * size] = (g0 - g1 + g2) / 2;
                    to[3 * size] = g2;
                }
        to += (TERMS - 1) * size;
    }
}

typedef struct {
    const vector *x; /* with its frame */
    int64_t plane, row, c, kh, pairs, slots;
    int64_t next;    /* the row to transform next */
    vector *rows; /* the last transformed rows: [slot][term][c][pairs] */
} NAME(ring);

/* Transform the rows of x up to `end`, of which those from `begin` on are needed. */
static void NAME(transform_rows)(NAME(ring) * t, int64_t begin, int64_t end) {
    const int64_t size = t->c * t->pairs;
    for (int64_t h = begin > t->next ? begin : t->next; h < end; h++) {
        vector *to = t->rows + h % t->slots * TERMS * size;
        for (int64_t c = 0; c < t->c; c++) {
            const vector *d = t->x + c * t->plane + h * t->row;
            for (int64_t q = 0; q < t->pairs; q++, d += 2, to++) {
                to[0] = d[0] - d[2];
                to[size] = d[1] + d[2];
                to[2 * size] = d[2] - d[1];
                to[3 * size] = 2 * q + 3 < t->row ? d[1] - d[3] : d[1]; /* an odd last column */
            }
        }
    }
    if (end > t->next) t->next = end;
}

/* O outputs of T pairs of columns, from the kernels' rows i0, i0 + di, … below i1 on rows from `top` on. */
INLINE void NAME(pair_tile)(const int O, const int T, const NAME(ring) * t, int64_t top, int64_t i0, int64_t i1,
                            int64_t di, const real *weight, const real *bias, vector *out, int64_t ow,
                            int64_t q) {
    vector y0[MOST_OUTPUTS][8], y1[MOST_OUTPUTS][8];
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) y0[o][s] = y1[o][s] = (vector){0} + (bias ? bias[o] : 0);
    }
    for (int term = 0; term < TERMS; term++) {
        vector sum[MOST_OUTPUTS][8] = {{{0}}};
        for (int64_t i = i0; i < i1; i += di) {
            const vector *in = t->rows + ((top + i) % t->slots * TERMS + term) * t->c * t->pairs + q;
            const real *w = weight + (term * t->kh + i) * t->c * O;
            for (int64_t c = 0; c < t->c; c++, in += t->pairs, w += O) {
                vector x[8];
                UNROLL for (int s = 0; s < T; s++) x[s] = in[s];
                UNROLL for (int o = 0; o < O; o++) {
                    UNROLL for (int s = 0; s < T; s++) sum[o][s] += w[o] * x[s];
                }
            }
        }
        UNROLL for (int o = 0; o < O; o++) {
            UNROLL for (int s = 0; s < T; s++) {
                if (term < 3) y0[o][s] += sum[o][s];
                if (term == 1) y1[o][s] += sum[o][s];
                if (term > 1) y1[o][s] -= sum[o][s];
            }
        }
    }
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) {
            vector *to = out + o * ow + 2 * (q + s);
            to[0] = y0[o][s];
            if (2 * (q + s) + 1 < ow) to[1] = y1[o][s];
        }
    }
}

/* As `correlate`, for the row of y whose windows begin at row `top` of x. */
static void NAME(correlate_pairs)(NAME(ring) * t, int64_t top, int64_t i0, int64_t i1, int64_t di,
                                  const real *weight, const real *bias, vector *out, int64_t ow, int64_t all) {
    NAME(transform_rows)(t, top + i0, top + i1);
    int outputs;
    for (int64_t o = 0; o < all; o += outputs) {
        outputs = NAME(outputs)(o, all);
        const real *w = weight + o * t->c * t->kh * TERMS, *b = bias ? bias + o : NULL;
        vector *to = out + o * ow;
        int64_t q = 0;
        switch (outputs) {
#define ROW(O, T)                                                                                      \
    case O:                                                                                            \
        for (; q + T <= t->pairs; q += T)                                                              \
            NAME(pair_tile)(O, T, t, top, i0, i1, di, w, b, to, ow, q);                                \
        for (; q < t->pairs; q++) NAME(pair_tile)(O, 1, t, top, i0, i1, di, w, b, to, ow, q);          \
        break;
            TILES(ROW)
#undef ROW
        }
    }
}

/* --- ∂L/∂weight: with δ of a pair of columns, the transpose of the above ---
 *
 *     M0 = Σ δ0 (d0 - d2),           M3 = Σ δ1 (d1 - d3),           ∂L/∂g0 = M0 + (M1 + M2) / 2,
 *     M1 = Σ (δ0 + δ1) (d1 + d2),    M2 = Σ (δ0 - δ1) (d2 - d1),    ∂L/∂g1 = (M1 - M2) / 2,
 *                                                                   ∂L/∂g2 = (M1 + M2) / 2 - M3. */

/* Rows of δ, [row][column][all], as [term][row][pair][all]. */
static void NAME(transform_band)(const vector *band, int64_t rows, int64_t columns, int64_t all, vector *to) {
    const int64_t pairs = (columns + 1) / 2, size = rows * pairs * all;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t q = 0; q < pairs; q++)
            for (int64_t o = 0; o < all; o++, to++) {
                const vector *d = band + (r * columns + 2 * q) * all + o;
                const vector d1 = 2 * q + 1 < columns ? d[all] : (vector){0};
                to[0] = d[0];
                to[size] = d[0] + d1;
                to[2 * size] = d[0] - d1;
                to[3 * size] = d1;
            }
}

/* O × T sums of a term, for T rows of kernels; x is a channel in slot 0. */
INLINE void NAME(pair_taps)(const int O, const int T, const NAME(ring) * t, const vector *d, int64_t all,
                            const vector *x, int64_t slot, int64_t rows, vector *to) {
    vector sum[MOST_OUTPUTS][8];
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) sum[o][s] = to[o * T + s];
    }
    for (int64_t r = 0; r < rows; r++) {
        const vector *row[8];
        UNROLL for (int s = 0; s < T; s++) {
            const int64_t at = slot + r + s;
            row[s] = x + (at < t->slots ? at : at - t->slots) * TERMS * t->c * t->pairs;
        }
        for (int64_t q = 0; q < t->pairs; q++, d += all) {
            vector v[8];
            UNROLL for (int s = 0; s < T; s++) v[s] = row[s][q];
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

/* Add a sum of M to ∂L/∂g. */
INLINE void NAME(add_term)(real *g, int64_t term, real sum) {
    const real half = sum / 2;
    if (term == 0) g[0] += sum;
    if (term == 1) g[0] += half, g[1] += half, g[2] += half;
    if (term == 2) g[0] += half, g[1] -= half, g[2] += half;
    if (term == 3) g[2] -= sum;
}

/* Add to M a band of transformed δ, whose first row sees x from row `top` on. */
static void NAME(add_pair_taps)(NAME(ring) * t, const vector *d, int64_t top, int64_t rows, int64_t all,
                                vector *to) {
    NAME(transform_rows)(t, top, top + rows + t->kh - 1);
    for (int64_t term = 0; term < TERMS; term++, d += rows * t->pairs * all) {
        int outputs;
        for (int64_t o = 0; o < all; o += outputs) {
            outputs = NAME(outputs)(o, all);
            for (int64_t c = 0; c < t->c; c++) {
                const vector *x = t->rows + (term * t->c + c) * t->pairs;
                int64_t i = 0;
                switch (outputs) {
#define TAPS(O, T)                                                                                     \
    for (; i + T <= t->kh; i += T, to += O * T)                                                        \
        NAME(pair_taps)(O, T, t, d + o, all, x, (top + i) % t->slots, rows, to);
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
}
