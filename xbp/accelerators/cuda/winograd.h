/* Convolutions 3 × 3 at steps of 1 by fewer products: Winograd's F(4 × 4, 3 × 3) (Lavin & Gray 2016; Winograd 1980).
 *
 * Numbers are values of polynomials at six points, 0, ±a, ±b, ∞; the matrices are those of
 * xbp/accelerators/cpu/winograd.h, which derives them. With d a tile of 6 × 6 pixels, g a kernel, and δ = ∂L/∂y of
 * a tile of 4 × 4,
 *
 *     y = Aᵀ M A           M = Σ_channels U ∘ V     U = G g Gᵀ     V = Bᵀ d B
 *     ∂L/∂g = Gᵀ S G       S = Σ_tiles D ∘ V        D = A δ Aᵀ
 *
 * and ∂L/∂x is a convolution of δ with the kernels turned round. For each of the 36 terms of a tile M and S are
 * products of matrices, those of wide.h with kernels 1 × 1 in 36 groups. Here are the transformations before and
 * after them. V, D and M lie in memory as [term][channel][tile and image], with `length` columns, a multiple
 * of four; beyond the last tile D is 0. */

#define THREADS 128 /* of a block; a thread has one tile of one image */
#define BOUNDS THREADS, 32 / sizeof(real) /* at most 64 registers, or 128, which hold the 36 numbers of a tile */
#define TERMS 36
#define NOWHERE 255 /* a maximum that ReLU made 0 */
#define CEIL(a, b) (((a) + (b) - 1) / (b))

constexpr double a1 = 0.625, a2 = a1 * a1, b1 = 1.5, b2 = b1 * b1;
constexpr double na = 2 * a2 * (a2 - b2), nb = 2 * b2 * (b2 - a2);
#define A1 ((real)a1)
#define A2 ((real)a2)
#define A3 ((real)(a2 * a1))
#define B1 ((real)b1)
#define B2 ((real)b2)
#define B3 ((real)(b2 * b1))

struct winograd {
    const real *x, *dy, *mask; /* mask: y, if it was rectified; where it is not positive, ∂L/∂y counts as 0 */
    const real *weight, *bias, *terms;
    real *v, *d, *e, *u, *to; /* V of x, D of ∂L/∂y, V of ∂L/∂y, U; what is not wanted is null */
    unsigned char *where;     /* if maxima of windows 2 × 2 follow: their places, 0 to 3 or NOWHERE */
    int n, channels, outputs, groups, h, w, rows, columns, top, left; /* top, left: the padding */
    int parts, relu, back; /* parts of the sums S; back: for ∂L/∂x, whose kernels are turned round */
};

/* --- six numbers in place, `STEP` apart ------------------------------------------------------------ */

/* Bᵀ d */
template <int STEP> __device__ inline void of_pixels(real *d) {
    const real d0 = d[0], d1 = d[STEP], d2 = d[2 * STEP], d3 = d[3 * STEP], d4 = d[4 * STEP], d5 = d[5 * STEP];
    const real even_a = d4 - B2 * d2, odd_a = A1 * (d3 - B2 * d1);
    const real even_b = d4 - A2 * d2, odd_b = B1 * (d3 - A2 * d1);
    d[0] = A2 * B2 * d0 + (d4 - (A2 + B2) * d2);
    d[STEP] = even_a + odd_a, d[2 * STEP] = even_a - odd_a;
    d[3 * STEP] = even_b + odd_b, d[4 * STEP] = even_b - odd_b;
    d[5 * STEP] = A2 * B2 * d1 + (d5 - (A2 + B2) * d3);
}

/* A δ, from four numbers */
template <int STEP> __device__ inline void of_gradient(real *d) {
    const real d0 = d[0], d1 = d[STEP], d2 = d[2 * STEP], d3 = d[3 * STEP];
    const real even_a = d0 + A2 * d2, odd_a = A1 * d1 + A3 * d3;
    const real even_b = d0 + B2 * d2, odd_b = B1 * d1 + B3 * d3;
    d[STEP] = even_a + odd_a, d[2 * STEP] = even_a - odd_a;
    d[3 * STEP] = even_b + odd_b, d[4 * STEP] = even_b - odd_b;
    d[5 * STEP] = d3;
}

/* Aᵀ m, four numbers */
template <int STEP> __device__ inline void to_pixels(real *m) {
    const real even_a = m[STEP] + m[2 * STEP], odd_a = m[STEP] - m[2 * STEP];
    const real even_b = m[3 * STEP] + m[4 * STEP], odd_b = m[3 * STEP] - m[4 * STEP];
    m[0] = m[0] + even_a + even_b;
    m[STEP] = A1 * odd_a + B1 * odd_b;
    m[2 * STEP] = A2 * even_a + B2 * even_b;
    m[3 * STEP] = A3 * odd_a + (B3 * odd_b + m[5 * STEP]);
}

/* Gᵀ m, three numbers */
template <int STEP> __device__ inline void to_taps(real *m) {
    const real even_a = m[STEP] + m[2 * STEP], odd_a = m[STEP] - m[2 * STEP];
    const real even_b = m[3 * STEP] + m[4 * STEP], odd_b = m[3 * STEP] - m[4 * STEP];
    m[0] = m[0] * (real)(1 / (a2 * b2)) + (even_a * (real)(1 / na) + even_b * (real)(1 / nb));
    m[STEP] = odd_a * (real)(a1 / na) + odd_b * (real)(b1 / nb);
    m[2 * STEP] = m[5 * STEP] + (even_a * (real)(a2 / na) + even_b * (real)(b2 / nb));
}

/* G g, in double precision, from three numbers to six others */
__device__ inline void of_taps(double g0, double g1, double g2, double *to, int step) {
    const double even_a = (g0 + a2 * g2) * (1 / na), odd_a = a1 / na * g1;
    const double even_b = (g0 + b2 * g2) * (1 / nb), odd_b = b1 / nb * g1;
    to[0] = g0 * (1 / (a2 * b2));
    to[step] = even_a + odd_a, to[2 * step] = even_a - odd_a;
    to[3 * step] = even_b + odd_b, to[4 * step] = even_b - odd_b;
    to[5 * step] = g2;
}

/* --- images, and the tiles that cover them --------------------------------------------------------- */

struct images {
    const real *from, *mask;
    const unsigned char *where;
    int h, w, n;

    __device__ real at(int channel, int r, int q, int image) const {
        if (r < 0 || r >= h || q < 0 || q >= w) return 0;
        if (where) {
            if (r / 2 >= h / 2 || q / 2 >= w / 2) return 0;
            const int i = ((channel * (h / 2) + r / 2) * (w / 2) + q / 2) * n + image;
            return where[i] == r % 2 * 2 + q % 2 ? from[i] : 0;
        }
        const int i = ((channel * h + r) * w + q) * n + image;
        return mask && mask[i] <= 0 ? 0 : from[i]; /* as `rectify` */
    }
};

struct tiles {
    int wide, count, length; /* the tiles of a row, all tiles and images, and the latter with the columns beyond */

    __device__ tiles(int h, int w, int n)
        : wide(CEIL(w, 4)), count(CEIL(h, 4) * wide * n), length(CEIL(count, 4) * 4) {}
};

__device__ inline images inputs_of(const winograd &p) { return {p.x, nullptr, nullptr, p.h, p.w, p.n}; }
__device__ inline images gradients_of(const winograd &p) {
    return {p.dy, p.mask, p.where, p.rows, p.columns, p.n};
}
