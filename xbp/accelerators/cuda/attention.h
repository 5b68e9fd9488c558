/* Attention by blocks: the scores of TILE_ROWS × TILE_COLUMNS pairs of a query and a key at a time, in
 * registers and shared memory, and none of them in memory (Milakov & Gimelshein 2018; Dao et al. 2022, 2023).
 *
 * A block has TILE_ROWS rows of its own, queries or keys of one head, and walks over the others,
 * TILE_COLUMNS of them at a time. A thread has the scores of TALL rows and WIDE columns, and EACH
 * features of its rows' sums. Features beyond those of the arrays, up to WIDTH, are zeros. The order of
 * every sum is fixed.
 *
 * A score that is hidden is -∞, so its weight is 0; but 0 · ∞ is nan, so what is multiplied by a hidden
 * weight matters where it is not finite. A block therefore leaves out scores that `CAUSAL` hides from all
 * of its rows only if all numbers they would meet are finite, which it looks up. (A product of finite
 * numbers that overflows there is not looked up.) */

#include "dependent.h"
#include "several.h"

struct rows { /* of the features of (sample, head, time), which are contiguous */
    real *at;
    long long sample, head; /* strides */
    int row;
};

struct attending {
    rows q, k, v, y, dy, dq, dk, dv;
    const real *mask;             /* of dropout, [sample][head][query][key], or NULL */
    const unsigned char *ignored; /* [sample][key], or NULL */
    real *logarithms;             /* log Σ e^s of each query: [sample][head][query] */
    double scale;
    int of_sample, all; /* heads */
    int queries, keys, d, e;
    int vectors; /* whether rows may be read by 16 bytes */
    int of_keys; /* blocks of the backward whose own rows are keys */
};

constexpr int LANES = 16 / sizeof(real); /* numbers of the widest load */
constexpr int DOWN = TILE_ROWS / TALL, ACROSS = TILE_COLUMNS / WIDE, THREADS = DOWN * ACROSS;
constexpr int EACH = WIDTH / ACROSS, TOGETHER = EACH % LANES == 0 ? LANES : EACH % 2 == 0 ? 2 : 1;
constexpr int ALONG = WIDTH / LANES, EVERY = THREADS / ALONG; /* loads of a row, and rows that are read at once */

/* At most 168 registers for a thread, so that a multiprocessor has 384 threads or more. */
#define BOUNDS THREADS, 384 / THREADS

template <int ROWS> struct alignas(16) tile {
    real at[ROWS][WIDTH + LANES]; /* + LANES: rows begin at different banks */
};

struct alignas(16) matrix {
    real at[TILE_ROWS][TILE_COLUMNS + LANES];
};

/* A thread's place: its rows are y + DOWN r, its columns x + ACROSS c, so that neighbouring threads read
 * neighbouring rows, which begin at different banks. */
struct place {
    int x, y;
    __device__ place() : x(threadIdx.x % ACROSS), y(threadIdx.x / ACROSS) {}
    __device__ int row(int r) const { return y + DOWN * r; }
    __device__ int column(int c) const { return x + ACROSS * c; }
    __device__ int feature(int i) const { return (i / TOGETHER * ACROSS + x) * TOGETHER + i % TOGETHER; }
};

struct larger { /* nan is the largest */
    static __device__ real of(real a, real b) { return a > b || a != a ? a : b; }
};
struct adding {
    static __device__ real of(real a, real b) { return a + b; }
};

/* The results of N neighbouring threads in one, for each of them. */
template <int N, typename how> __device__ real over(real mine) {
    #pragma unroll
    for (int half = N / 2; half > 0; half /= 2) mine = how::of(mine, __shfl_xor_sync(0xffffffff, mine, half));
    return mine;
}

/* --- rows in memory -------------------------------------------------------------------------------- */

/* The rows of a head. */
struct reader {
    real *from;
    int step, width;
    bool vectors;

    __device__ reader(const rows &of, const attending &p, int head, int width)
        : from(of.at + head / p.of_sample * of.sample + head % p.of_sample * of.head), step(of.row), width(width),
          vectors(p.vectors) {}
    /* LANES features of a row, zeros beyond the last one. */
    __device__ several<LANES> read(int row, int feature) const {
        const real *const at = from + (long long)row * step + feature;
        several<LANES> some = {};
        if (!vectors) {
            #pragma unroll
            for (int i = 0; i < LANES; i++)
                if (feature + i < width) some.at[i] = at[i];
        } else if (feature < width) some = *(const several<LANES> *)at;
        return some;
    }
    /* The rows first, …, first + ROWS - 1, zeros beyond the last one. */
    template <int ROWS> __device__ void fill(tile<ROWS> &to, int first, int count) const {
        const int begin = threadIdx.x / ALONG, feature = threadIdx.x % ALONG * LANES;
        if (begin >= EVERY) return; /* to a barrier of the block */
        #pragma unroll 4
        for (int i = begin; i < ROWS; i += EVERY) {
            several<LANES> some = {};
            if (first + i < count) some = read(first + i, feature);
            *(several<LANES> *)&to.at[i][feature] = some;
        }
    }
    /* Whether this thread's part of rows, begin ≤ row < end, has a number that is not finite. */
    __device__ bool strange(int begin, int end) const {
        const int feature = threadIdx.x % ALONG * LANES;
        real zero = 0;
        #pragma unroll 1
        for (int row = begin + threadIdx.x / ALONG; row < end; row += EVERY) {
            const several<LANES> some = read(row, feature);
            #pragma unroll
            for (int j = 0; j < LANES; j++) zero += 0 * some.at[j];
        }
        return zero != 0; /* nan */
    }
    __device__ void write(int row, const place &my, const real *sums) const {
        real *const to = from + (long long)row * step;
        #pragma unroll
        for (int i = 0; i < EACH; i++)
            if (my.feature(i) < width) to[my.feature(i)] = sums[i];
    }
};

/* --- products in shared memory ---------------------------------------------------------------------- */

/* to = a bᵀ, over the features. */
__device__ inline void multiply(real (*to)[WIDE], const tile<TILE_ROWS> &a, const tile<TILE_COLUMNS> &b,
                                const place &my) {
    #pragma unroll
    for (int r = 0; r < TALL; r++)
        #pragma unroll
        for (int c = 0; c < WIDE; c++) to[r][c] = 0;
    #pragma unroll 2
    for (int f = 0; f < WIDTH; f += LANES) {
        several<LANES> u[TALL], v[WIDE];
        #pragma unroll
        for (int r = 0; r < TALL; r++) u[r] = *(const several<LANES> *)&a.at[my.row(r)][f];
        #pragma unroll
        for (int c = 0; c < WIDE; c++) v[c] = *(const several<LANES> *)&b.at[my.column(c)][f];
        #pragma unroll
        for (int i = 0; i < LANES; i++)
            #pragma unroll
            for (int r = 0; r < TALL; r++)
                #pragma unroll
                for (int c = 0; c < WIDE; c++) to[r][c] += u[r].at[i] * v[c].at[i];
    }
}

/* to += weights b. */
__device__ inline void add_product(real (*to)[EACH], const matrix &weights, const tile<TILE_COLUMNS> &b,
                                   const place &my) {
    #pragma unroll 1
    for (int column = 0; column < TILE_COLUMNS; column += LANES) {
        several<LANES> u[TALL];
        #pragma unroll
        for (int r = 0; r < TALL; r++) u[r] = *(const several<LANES> *)&weights.at[my.row(r)][column];
        #pragma unroll
        for (int l = 0; l < LANES; l++)
            #pragma unroll
            for (int i = 0; i < EACH; i += TOGETHER) {
                const several<TOGETHER> v = *(const several<TOGETHER> *)&b.at[column + l][my.feature(i)];
                #pragma unroll
                for (int r = 0; r < TALL; r++)
                    #pragma unroll
                    for (int j = 0; j < TOGETHER; j++) to[r][i + j] += u[r].at[l] * v.at[j];
            }
    }
}
