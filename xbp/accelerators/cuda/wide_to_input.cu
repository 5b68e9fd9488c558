#include "dependent.h"
#include "wide.h"

/* The taps of kernels that meet a pixel: every STEP-th one, as the stride is the distance of windows.
 * The pixels of an image are of STEP_H × STEP_W classes, each with its own taps. With a dilation there
 * is one class with all taps, of which some miss the windows. */
#define STEP_H (DIL_H == 1 ? STRIDE_H : 1)
#define STEP_W (DIL_W == 1 ? STRIDE_W : 1)

struct reach {
    int h, w, height, width; /* the first pixel of the class, and the number of its rows and columns */
    int i, j, rows, columns; /* the first tap, and the number of their rows and columns */

    __device__ reach(int number) {
        h = number / STEP_W, w = number % STEP_W;
        height = CEIL(H - h, STEP_H), width = CEIL(W - w, STEP_W);
        i = (h + PAD_H) % STEP_H, j = (w + PAD_W) % STEP_W;
        rows = i < KH ? CEIL(KH - i, STEP_H) : 0, columns = j < KW ? CEIL(KW - j, STEP_W) : 0;
    }
    __device__ int taps() const { return rows * columns; }
};

/* A for ∂L/∂x: the kernels as [output and tap][channel]. */
struct turned {
    static constexpr int EVERY = THREADS / DEPTH, COUNT = CEIL(TILE_M, EVERY);
    const real *from;
    int rows;
    reach of;
    several<1> held[COUNT];

    __device__ turned(const real *from, int rows, reach of) : from(from), rows(rows), of(of) {}
    __device__ void fetch(int begin) {
        const int k = begin + threadIdx.x % DEPTH, taps = of.taps();
        const bool counts = k < OUT * taps;
        const int o = counts ? k / taps : 0, tap = counts ? k % taps : 0;
        const int i = counts ? of.i + tap / of.columns * STEP_H : 0;
        const int j = counts ? of.j + tap % of.columns * STEP_W : 0;
        const real *const kernel = from + o * IN * TAPS + i * KW + j;
        #pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const int row = threadIdx.x / DEPTH + c * EVERY;
            if (TILE_M % EVERY && row >= TILE_M) continue;
            read(held[c], kernel, row_of(row, rows, IN % TILE_M == 0) * TAPS, counts);
        }
    }
    __device__ void put(real (*to)[TILE_M + 4]) {
        #pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const int row = threadIdx.x / DEPTH + c * EVERY;
            if (TILE_M % EVERY && row >= TILE_M) continue;
            to[threadIdx.x % DEPTH][row] = held[c].at[0];
        }
    }
};

/* B for ∂L/∂x: ∂L/∂y of the windows that contain a pixel. */
struct covering : across {
    const real *from;
    int n, h, w; /* the pixel, counted from the padding's first */
    reach of;

    __device__ covering(const real *dy, int n, int first, reach of) : n(n), of(of) {
        const int all = of.height * of.width * n, at = first + column();
        const place pixel(at < all ? at : all - VECTOR, of.height * of.width, n);
        from = dy + pixel.image;
        h = of.h + pixel.position / of.width * STEP_H + PAD_H;
        w = of.w + pixel.position % of.width * STEP_W + PAD_W;
    }
    __device__ void fetch(int begin) {
        const int taps = of.taps() ? of.taps() : 1, columns = of.columns ? of.columns : 1;
        #pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int k = begin + term(i), tap = k % taps;
            const int down = h - (of.i + tap / columns * STEP_H) * DIL_H, row = down / STRIDE_H;
            const int right = w - (of.j + tap % columns * STEP_W) * DIL_W, column = right / STRIDE_W;
            const bool met = down >= 0 && right >= 0 && down % STRIDE_H == 0 && right % STRIDE_W == 0;
            const bool counts = k < OUT * of.taps() && met && row < ROWS && column < COLUMNS;
            read(held[i], from, ((k / taps * ROWS + row) * COLUMNS + column) * n, counts);
        }
    }
};

/* ∂L/∂x, for a class of pixels. */
extern "C" __global__ void __launch_bounds__(BOUNDS) convolve_wide_to_input(const wide p) {
    await_earlier_kernels();
    __shared__ stage stages[2];
    const reach of(blockIdx.y % (STEP_H * STEP_W));
    const int tiles = CEIL(IN, TILE_M), group = blockIdx.y / (STEP_H * STEP_W);
    const int top = blockIdx.x % tiles * TILE_M, left = blockIdx.x / tiles * TILE_N;
    const int channel = group * IN + top, all = of.height > 0 && of.width > 0 ? of.height * of.width * p.n : 0;
    if (left >= all) return; /* the whole block */
    turned a(p.weight + (group * OUT * IN + top) * TAPS, IN - top, of);
    covering b(p.dy + group * OUT * ROWS * COLUMNS * p.n, p.n, left, of);
    sums sum;
    sum.multiply(a, b, OUT * of.taps(), stages);
    #pragma unroll
    for (int q = 0; q < SUMS_N; q += VECTOR) {
        const int at = left + sum.column(q);
        if (at >= all) continue;
        const place pixel(at, of.height * of.width, p.n);
        const int h = of.h + pixel.position / of.width * STEP_H, w = of.w + pixel.position % of.width * STEP_W;
        #pragma unroll
        for (int r = 0; r < SUMS_M; r++) {
            const int row = sum.row(r);
            several<VECTOR> v;
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) v.at[j] = sum.of[r][q + j];
            real *const to = p.dx + (((channel + row) * H + h) * W + w) * p.n + pixel.image;
            if (top + row < IN) *(several<VECTOR> *)to = v;
        }
    }
}
