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
    const double even_a = (g0 + A2 * g2) * (1 / NA), odd_a = A1 / NA * g1;
    const double even_b = (g0 + B2 * g2) * (1 / NB), odd_b = B1 / NB * g1;
    to[0] = g0 * (1 / (A2 * (double)B2));
    to[apart] = even_a + odd_a;
    to[2 * apart] = even_a - odd_a;
    to[3 * apart] = even_b + odd_b;
    to[4 * apart] = even_b - odd_b;
    to[5 * apart] = g2;
}

/* From weights in the order of `correlate`: [term][c][outputs], with c · outputs for each block of outputs. Terms of
 * SIDE_BY_SIDE channels are written at once, as places of one term are often a power of two from the next one's. */
#define SIDE_BY_SIDE 8
static void NAME(order_terms)(const real *weight, real *to, int64_t all, int64_t c) {
    double g[9][MOST_OUTPUTS] = {{0}}, rows[3][6][MOST_OUTPUTS], terms[6][6][MOST_OUTPUTS];
    int outputs;
    for (int64_t first = 0; first < all; first += outputs, to += c * outputs) {
        outputs = NAME(outputs)(first, all);
        for (int64_t k = 0; k < c; k += SIDE_BY_SIDE) {
            const int64_t channels = c - k < SIDE_BY_SIDE ? c - k : SIDE_BY_SIDE;
            real together[TERMS][SIDE_BY_SIDE * MOST_OUTPUTS];
            for (int64_t i = 0; i < channels; i++, weight += 9 * outputs) {
                for (int tap = 0; tap < 9; tap++)
                    for (int o = 0; o < outputs; o++) g[tap][o] = weight[tap * outputs + o];
                for (int o = 0; o < MOST_OUTPUTS; o++) {
                    UNROLL for (int r = 0; r < 3; r++)
                        NAME(weight_terms)(&g[3 * r][o], MOST_OUTPUTS, &rows[r][0][o], MOST_OUTPUTS);
                    UNROLL for (int j = 0; j < 6; j++)
                        NAME(weight_terms)(&rows[0][j][o], 6 * MOST_OUTPUTS, &terms[0][j][o], 6 * MOST_OUTPUTS);
                }
                for (int term = 0; term < TERMS; term++)
                    for (int o = 0; o < outputs; o++)
                        together[term][i * outputs + o] = (real)terms[term / 6][term % 6][o];
            }
            for (int term = 0; term < TERMS; term++)
                memcpy(to + term * all * c + k * outputs, together[term], channels * outputs * sizeof(real));
        }
    }
}
#undef SIDE_BY_SIDE
