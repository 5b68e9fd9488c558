/* Convolutions with many channels: y, ∂L/∂x and ∂L/∂W are each one matrix product C = A B, whose
 * operands are read where they lie, images as [channel][row][column][image]:
 *
 *              rows of C     columns of C        terms of a sum
 *     y        outputs       windows × images    channels × taps
 *     ∂L/∂x    channels      pixels × images     outputs × taps
 *     ∂L/∂W    outputs       channels × taps     windows × images
 *
 * A block computes TILE_M × TILE_N entries of C, a thread SUMS_M × SUMS_N of them in registers. Stages of
 * DEPTH terms of A and B are in shared memory, two at a time: while one is multiplied, the next one is
 * on its way to registers, VECTOR numbers with a load. The order of every sum is fixed.
 *
 * With groups, IN and OUT are the channels of one group. */

struct wide {
    const real *x, *weight, *bias, *dy;
    real *y, *dx, *partial;
    int n;
    int parts, length; /* of the terms of ∂L/∂W: the number of parts, and the terms of each */
};

#include "several.h"

#define TAPS (KH * KW)
#define CEIL(a, b) (((a) + (b) - 1) / (b))

constexpr int LANES = 16 / sizeof(real); /* numbers of the widest load */
constexpr int DOWN = TILE_M / SUMS_M, ACROSS = TILE_N / SUMS_N, THREADS = DOWN * ACROSS;
constexpr int WARP_M = DOWN < 4 ? DOWN : 4, WARP_N = 32 / WARP_M; /* the threads of a warp */
constexpr int WARPS_N = ACROSS / WARP_N;

/* At most 128 registers for a thread, so that a multiprocessor has 512 threads or more. */
#define BOUNDS THREADS, 512 / THREADS

/* from[at], …, or 0. Nothing waits for a number before it is used. */
template <int N> __device__ inline void read(several<N> &to, const real *from, int at, bool counts) {
    to = {};
    if (counts) to = *(const several<N> *)(from + at);
}

struct alignas(16) stage {
    real a[DEPTH][TILE_M + 4], b[DEPTH][TILE_N + 4]; /* + 4: a column is spread over several banks */
};

/* --- operands: `fetch` from memory to registers, `put` from there to shared memory ---------------- */

/* A row of A's tile. Rows beyond the last one repeat it; `whole` is known to the compiler. */
__device__ inline int row_of(int row, int rows, bool whole) {
    return whole || row < rows ? row : rows - 1;
}

/* A, whose rows are `step` apart and whose terms are contiguous. `total` adds up a thread's part of each
 * row, for ∂L/∂b. */
template <int WIDTH> struct contiguous {
    static constexpr int ALONG = DEPTH / WIDTH, EVERY = THREADS / ALONG, COUNT = CEIL(TILE_M, EVERY);
    const real *from;
    int rows, step, terms;
    bool whole;
    several<WIDTH> held[COUNT];
    real total[COUNT];

    __device__ contiguous(const real *from, int rows, bool whole, int step, int terms)
        : from(from), rows(rows), step(step), terms(terms), whole(whole) {
        for (int i = 0; i < COUNT; i++) total[i] = 0;
    }
    __device__ void fetch(int begin) {
        const int k = begin + threadIdx.x % ALONG * WIDTH;
        #pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int row = threadIdx.x / ALONG + i * EVERY;
            if (TILE_M % EVERY && row >= TILE_M) continue;
            read(held[i], from, row_of(row, rows, whole) * step + k, k < terms);
        }
    }
    __device__ void put(real (*to)[TILE_M + 4]) {
        const int k = threadIdx.x % ALONG * WIDTH;
        #pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int row = threadIdx.x / ALONG + i * EVERY;
            if (TILE_M % EVERY && row >= TILE_M) continue;
            #pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                to[k + j][row] = held[i].at[j];
                total[i] += held[i].at[j];
            }
        }
    }
};

/* A column of y or ∂L/∂x. Those of neighbouring positions come after each IMAGES images, so that the windows
 * of a tile overlap, and some of their pixels are in the first cache; with IMAGES = 0, after all images. */
struct place {
    int position, image;

    __device__ place(int column, int positions, int n) {
        const int images = IMAGES ? IMAGES : n, round = IMAGES ? column / (positions * images) : 0;
        position = column / images - round * positions, image = column % images + round * images;
    }
};

/* B for y and ∂L/∂x: VECTOR neighbouring columns of C, which are images at one position. */
struct across {
    static constexpr int ALONG = TILE_N / VECTOR, EVERY = THREADS / ALONG, COUNT = CEIL(DEPTH, EVERY);
    several<VECTOR> held[COUNT];

    __device__ static int column() { return threadIdx.x % ALONG * VECTOR; }
    __device__ static int term(int i) { return threadIdx.x / ALONG + i * EVERY; }
    __device__ void put(real (*to)[TILE_N + 4]) {
        #pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (DEPTH % EVERY == 0 || term(i) < DEPTH) *(several<VECTOR> *)&to[term(i)][column()] = held[i];
    }
};

/* --- the product ----------------------------------------------------------------------------------- */

/* A thread's sums. Their rows and columns lie in strips of LANES, which are read at once. */
struct sums {
    int x, y; /* the thread's place in the block */
    real of[SUMS_M][SUMS_N];

    __device__ sums() {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        x = warp % WARPS_N * WARP_N + lane % WARP_N, y = warp / WARPS_N * WARP_M + lane / WARP_N;
        #pragma unroll
        for (int r = 0; r < SUMS_M; r++)
            #pragma unroll
            for (int q = 0; q < SUMS_N; q++) of[r][q] = 0;
    }
    __device__ int row(int r) const { return (r / LANES * DOWN + y) * LANES + r % LANES; }
    __device__ int column(int q) const { return (q / LANES * ACROSS + x) * LANES + q % LANES; }

    template <class A, class B> __device__ void multiply(A &a, B &b, int terms, stage *stages) {
        a.fetch(0), b.fetch(0);
        for (int begin = 0, turn = 0; begin < terms; begin += DEPTH, turn ^= 1) {
            a.put(stages[turn].a), b.put(stages[turn].b);
            __syncthreads(); /* one is enough: nobody writes to a stage before all have left it */
            a.fetch(begin + DEPTH), b.fetch(begin + DEPTH); /* zeros after the last stage */
            #pragma unroll
            for (int k = 0; k < DEPTH; k++) {
                several<LANES> u[SUMS_M / LANES], v[SUMS_N / LANES];
                #pragma unroll
                for (int r = 0; r < SUMS_M / LANES; r++)
                    u[r] = *(const several<LANES> *)&stages[turn].a[k][row(r * LANES)];
                #pragma unroll
                for (int q = 0; q < SUMS_N / LANES; q++)
                    v[q] = *(const several<LANES> *)&stages[turn].b[k][column(q * LANES)];
                #pragma unroll
                for (int r = 0; r < SUMS_M; r++)
                    #pragma unroll
                    for (int q = 0; q < SUMS_N; q++)
                        of[r][q] += u[r / LANES].at[r % LANES] * v[q / LANES].at[q % LANES];
            }
        }
    }
};
