#include "dependent.h"
#include "wide.h"

/* B for y: the pixels of windows. */
struct windows : across {
    const real *from;
    int n, top, left; /* top, left: the first pixel of the window, perhaps in the padding */

    __device__ windows(const real *x, int n, int first) : n(n) {
        const int all = ROWS * COLUMNS * n, at = first + column();
        const place window(at < all ? at : all - VECTOR, ROWS * COLUMNS, n);
        from = x + window.image;
        top = window.position / COLUMNS * STRIDE_H - PAD_H;
        left = window.position % COLUMNS * STRIDE_W - PAD_W;
    }
    __device__ void fetch(int begin) {
        #pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int k = begin + term(i), tap = k % TAPS;
            const int r = top + tap / KW * DIL_H, q = left + tap % KW * DIL_W;
            const bool counts = k < IN * TAPS && r >= 0 && r < H && q >= 0 && q < W;
            read(held[i], from, ((k / TAPS * H + r) * W + q) * n, counts);
        }
    }
};

/* y, then ReLU if RELU. Neighbouring blocks share their windows. */
extern "C" __global__ void __launch_bounds__(BOUNDS) convolve_wide(const wide p) {
    await_earlier_kernels();
    __shared__ stage stages[2];
    const int tiles = CEIL(OUT, TILE_M), group = blockIdx.y, all = ROWS * COLUMNS * p.n;
    const int top = blockIdx.x % tiles * TILE_M, left = blockIdx.x / tiles * TILE_N;
    const int output = group * OUT + top;
    contiguous<1> a(p.weight + output * IN * TAPS, OUT - top, OUT % TILE_M == 0, IN * TAPS, IN * TAPS);
    windows b(p.x + group * IN * H * W * p.n, p.n, left);
    sums sum;
    sum.multiply(a, b, IN * TAPS, stages);
    #pragma unroll
    for (int q = 0; q < SUMS_N; q += VECTOR) {
        const int at = left + sum.column(q);
        if (at >= all) continue;
        const place window(at, ROWS * COLUMNS, p.n);
        real *const to = p.y + output * all + (IMAGES ? window.position * p.n + window.image : at);
        #pragma unroll
        for (int r = 0; r < SUMS_M; r++) {
            const int row = sum.row(r);
            if (top + row >= OUT) continue;
            const real bias = p.bias ? p.bias[output + row] : 0;
            several<VECTOR> v;
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                v.at[j] = sum.of[r][q + j] + bias;
                if (RELU && v.at[j] <= 0) v.at[j] = 0; /* nan stays nan */
            }
            *(several<VECTOR> *)(to + row * all) = v;
        }
    }
}
