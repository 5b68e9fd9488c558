/* The rows of a convolution: y[o][q] = bias[o] + Σ weight[c, i, j][o] · in[c][i][q · step + j]. The sums
 * of a tile of outputs stay in registers. */

typedef struct {
    const vector *in; /* where the first window of the row begins, in the row that meets row i0 of the kernels */
    int64_t plane, row, step, c, kh, kw, i0, i1, di; /* rows of kernels: i0, i0 + di, … below i1 */
    int64_t j0, taps, dj; /* columns of kernels, `taps` in number: j0, j0 + dj, … */
    int64_t left, right;  /* columns of `in` that are not zero: [left, right) */
    vector *out;
    int64_t ow;
} NAME(row_task);

/* Add the products of O weights with T vectors that are `step` apart. */
INLINE void NAME(tap)(const int O, const int T, const vector *in, int64_t step, const real *w,
                      vector (*sum)[8]) {
    vector x[8];
    UNROLL for (int s = 0; s < T; s++) x[s] = in[s * step];
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) sum[o][s] += w[o] * x[s];
    }
}

INLINE void NAME(row_tile)(const int O, const int T, const NAME(row_task) * t, const real *weight,
                           const real *bias, vector *out, int64_t q) {
    vector sum[MOST_OUTPUTS][8];
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) sum[o][s] = (vector){0} + (bias ? bias[o] : 0);
    }
    const int64_t column = q * t->step, last = column + (T - 1) * t->step, dj = t->dj * O;
    const int64_t from = last < t->left ? t->left - last : 0; /* leave out taps on the frame */
    const int64_t end = column + t->taps > t->right ? t->right - column : t->taps;
    for (int64_t c = 0; c < t->c; c++) {
        const vector *in = t->in + c * t->plane + column;
        for (int64_t i = t->i0; i < t->i1; i += t->di, in += t->row) {
            const real *w = weight + ((c * t->kh + i) * t->kw + t->j0) * O;
            if (from == 0 && end == 3) { /* the loop unrolled: most kernels are 3 wide */
                UNROLL for (int64_t j = 0; j < 3; j++) NAME(tap)(O, T, in + j, t->step, w + j * dj, sum);
            } else
                for (int64_t j = from; j < end; j++) NAME(tap)(O, T, in + j, t->step, w + j * dj, sum);
        }
    }
    UNROLL for (int o = 0; o < O; o++) {
        UNROLL for (int s = 0; s < T; s++) out[o * t->ow + q + s] = sum[o][s];
    }
}

/* The number of outputs of the block that begins at o; blocks are as equal as possible. */
INLINE int NAME(outputs)(int64_t o, int64_t all) {
    const int64_t blocks = (all - o + MOST_OUTPUTS - 1) / MOST_OUTPUTS;
    return (int)((all - o + blocks - 1) / blocks);
}

#if MOST_OUTPUTS == 8
#define TILES(DO) DO(1, 8) DO(2, 8) DO(3, 8) DO(4, 6) DO(5, 4) DO(6, 4) DO(7, 3) DO(8, 3)
#else
#define TILES(DO) DO(1, 8) DO(2, 4) DO(3, 3) DO(4, 3)
#endif

static void NAME(correlate)(NAME(row_task) * t, const real *weight, const real *bias, int64_t all, fetches *soon) {
    int outputs;
    for (int64_t o = 0; o < all; o += outputs) {
        outputs = NAME(outputs)(o, all);
        const real *w = weight + o * t->c * t->kh * t->kw;
        vector *out = t->out + o * t->ow;
        const real *b = bias ? bias + o : NULL;
        int64_t q = 0;
        fetch(soon);
        switch (outputs) {
#define ROW(O, T)                                                                   \
    case O:                                                                         \
        for (; q + T <= t->ow; q += T) NAME(row_tile)(O, T, t, w, b, out, q);       \
        for (; q < t->ow; q++) NAME(row_tile)(O, 1, t, w, b, out, q);               \
        break;
            TILES(ROW)
#undef ROW
        }
    }
}

/* The weights in the order of `correlate`: [c][kh][kw][outputs] for each block of outputs. With `turned`
 * those of the transposed convolution: inputs and outputs exchanged, kernels rotated by 180°. */
static void NAME(order)(const real *weight, real *to, int64_t all, int64_t c, int64_t kh, int64_t kw,
                        int turned) {
    int outputs;
    for (int64_t first = 0; first < all; first += outputs) {
        outputs = NAME(outputs)(first, all);
        for (int64_t k = 0; k < c; k++)
            for (int64_t i = 0; i < kh; i++)
                for (int64_t j = 0; j < kw; j++)
                    for (int64_t o = first; o < first + outputs; o++)
                        *to++ = turned ? weight[((k * all + o) * kh + kh - 1 - i) * kw + kw - 1 - j]
                                       : weight[((o * c + k) * kh + i) * kw + j];
    }
}
