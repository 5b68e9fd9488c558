/* ∂L/∂weight by the products of winograd.h, transposed: with δ = ∂L/∂y of a tile, and M the sums of
 *
 *     Bᵀ d B ∘ A δ Aᵀ
 *
 * over tiles and images, ∂L/∂g = Gᵀ M G. Here the lanes are 16 outputs and not images: a sum over images needs
 * no adding up of lanes, and M is not larger than four weights. */

/* A δ */
INLINE void NAME(delta_terms)(const vector *d, vector *v) {
    const vector even_a = d[0] + A2 * d[2], odd_a = A1 * d[1] + A3 * d[3];
    const vector even_b = d[0] + B2 * d[2], odd_b = B1 * d[1] + B3 * d[3];
    v[0] = d[0];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = d[3];
}

/* Gᵀ m */
INLINE void NAME(weight_of_terms)(const vector *m, vector *g) {
    const vector even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    const real na = (real)(1 / NA), nb = (real)(1 / NB);
    g[0] = m[0] / (A2 * B2) + (even_a * na + even_b * nb);
    g[1] = odd_a * (A1 * na) + odd_b * (B1 * nb);
    g[2] = m[5] + (even_a * (A2 * na) + even_b * (B2 * nb));
}

INLINE int64_t NAME(groups)(int64_t outputs) { return (outputs + LANES - 1) / LANES; }

/* The terms of δ for a group of outputs: [term][tile][image][group], `apart` from one term to the next one.
 * Adds δ, a vector of images for each output, to `sums`. */
static void NAME(tiles_of_delta)(const NAME(framed) * d, int64_t o, int64_t outputs, int64_t row, int64_t column,
                                 int64_t high, int64_t wide, int64_t groups, int64_t apart, vector *turned,
                                 vector *sums, vector *to) {
    for (int64_t tile = 0; tile < high * wide; tile++, to += LANES * groups) {
        const int64_t top = row + tile / wide * 4, left = column + tile % wide * 4;
        for (int64_t at = 0; at < 16; at++) {
            const int64_t r = top + at / 4, k = left + at % 4;
            vector square[LANES];
            if (r >= d->height || k >= d->width) {
                memset(turned + at * LANES, 0, LANES * sizeof(vector));
                continue;
            }
            const real *from = NAME(row_of)(d, o, r) + k * d->at.w;
            for (int64_t s = 0; s < LANES; s++) {
                if (s >= outputs) {
                    square[s] = (vector){0};
                    continue;
                }
                memcpy(square + s, from + s * d->at.c, sizeof(vector));
                sums[s] += square[s];
            }
            NAME(transpose)(square);
            UNROLL for (int64_t lane = 0; lane < LANES; lane++) turned[at * LANES + lane] = square[lane];
        }
        for (int64_t lane = 0; lane < LANES; lane++) {
            vector z[6][4];
            UNROLL for (int k = 0; k < 4; k++) {
                vector four[4], v[6];
                UNROLL for (int r = 0; r < 4; r++) four[r] = turned[(4 * r + k) * LANES + lane];
                NAME(delta_terms)(four, v);
                UNROLL for (int i = 0; i < 6; i++) z[i][k] = v[i];
            }
            UNROLL for (int i = 0; i < 6; i++) {
                vector v[6];
                NAME(delta_terms)(z[i], v);
                UNROLL for (int j = 0; j < 6; j++) to[(6 * i + j) * apart + lane * groups] = v[j];
            }
        }
    }
}

/* Add to M, for C channels and G groups of outputs, the sums over n pairs of a tile and an image. */
INLINE void NAME(weight_tile)(const int C, const int G, const real *u, int64_t plane, const vector *d,
                              int64_t groups, int64_t n, vector *m) {
    vector sum[MOST_OUTPUTS][2] = {{{0}}};
    for (int64_t k = 0; k < n; k++, d += groups) {
        vector delta[2];
        UNROLL for (int s = 0; s < G; s++) delta[s] = d[s];
        UNROLL for (int c = 0; c < C; c++) {
            const real x = u[c * plane + k];
            UNROLL for (int s = 0; s < G; s++) sum[c][s] += x * delta[s];
        }
    }
    UNROLL for (int c = 0; c < C; c++) {
        UNROLL for (int s = 0; s < G; s++) m[c * groups + s] += sum[c][s];
    }
}

/* Add to M, [term][c][group], the products of a chunk. */
static void NAME(add_terms)(const vector *u, int64_t plane, const vector *d, int64_t apart, int64_t c,
                            int64_t groups, int64_t tiles, vector *m, fetches *soon) {
    for (int term = 0; term < TERMS; term++, u += tiles, d += apart) {
        int count;
        for (int64_t first = 0; first < c; first += count, m += count * groups) {
            count = NAME(outputs)(first, c);
            fetch(soon);
            const real *x = (const real *)(u + first * plane);
            for (int64_t g = 0; g < groups; g += 2)
                switch (count) {
#define BOTH(C)                                                                                        \
    case C:                                                                                            \
        if (g + 1 < groups)                                                                            \
            NAME(weight_tile)(C, 2, x, plane * LANES, d + g, groups, tiles * LANES, m + g);            \
        else NAME(weight_tile)(C, 1, x, plane * LANES, d + g, groups, tiles * LANES, m + g);           \
        break;
                    EACH_OUTPUTS(BOTH)
#undef BOTH
                }
        }
    }
}

/* ∂L/∂weight in the order of the weights, from M; returns whether all are finite. */
static int NAME(collect_terms)(const convolution *t, const vector *m, real *weight) {
    const int64_t groups = NAME(groups)(t->o), apart = t->c * groups;
    vector check = {0};
    for (int64_t c = 0; c < t->c; c++)
        for (int64_t g = 0; g < groups; g++) {
            vector rows[6][3];
            UNROLL for (int i = 0; i < 6; i++) {
                vector six[6];
                UNROLL for (int j = 0; j < 6; j++) six[j] = m[(6 * i + j) * apart + c * groups + g];
                NAME(weight_of_terms)(six, rows[i]);
            }
            UNROLL for (int j = 0; j < 3; j++) {
                vector six[6], three[3];
                UNROLL for (int i = 0; i < 6; i++) six[i] = rows[i][j];
                NAME(weight_of_terms)(six, three);
                UNROLL for (int i = 0; i < 3; i++) {
                    check += three[i] * 0;
                    for (int64_t o = g * LANES; o < (g + 1) * LANES && o < t->o; o++)
                        weight[(o * t->c + c) * 9 + 3 * i + j] = three[i][o - g * LANES];
                }
            }
        }
    return NAME(is_finite)(check);
}
