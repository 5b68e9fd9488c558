#include "dependent.h"
#include "wide.h"

/* B for ∂L/∂W: for each channel and tap the pixels that it meets, along windows and images. Stages are
 * fetched in order. */
struct met {
    static constexpr int ALONG = DEPTH / VECTOR, EVERY = THREADS / ALONG, COUNT = CEIL(TILE_N, EVERY);
    const real *from;
    int n, k, end;          /* the thread's term */
    int image, row, column; /* its window */
    int at[COUNT], down[COUNT], right[COUNT]; /* its pixel, from that of the first window */
    several<VECTOR> held[COUNT];

    __device__ met(const real *x, int n, int first, int begin, int end) : from(x), n(n), end(end) {
        k = begin + threadIdx.x % ALONG * VECTOR;
        image = k % n, row = k / n / COLUMNS, column = k / n % COLUMNS;
        #pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int q = first + threadIdx.x / ALONG + i * EVERY, last = IN * TAPS - 1;
            const int it = q < last ? q : last, tap = it % TAPS;
            down[i] = tap / KW * DIL_H - PAD_H, right[i] = tap % KW * DIL_W - PAD_W;
            at[i] = (it / TAPS * H + down[i]) * W + right[i];
        }
    }
    __device__ void fetch(int) {
        const int r = row * STRIDE_H, q = column * STRIDE_W;
        #pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const bool rows = r + down[i] >= 0 && r + down[i] < H;
            const bool counts = k < end && rows && q + right[i] >= 0 && q + right[i] < W;
            read(held[i], from, (at[i] + r * W + q) * n + image, counts);
        }
        k += DEPTH;
        for (image += DEPTH; image >= n; image -= n)
            if (++column == COLUMNS) column = 0, row++;
    }
    __device__ void put(real (*to)[TILE_N + 4]) {
        #pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int q = threadIdx.x / ALONG + i * EVERY;
            if (TILE_N % EVERY && q >= TILE_N) continue;
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) to[threadIdx.x % ALONG * VECTOR + j][q] = held[i].at[j];
        }
    }
};

/* A part of ∂L/∂W and ∂L/∂b; `add_up` adds the parts. */
extern "C" __global__ void __launch_bounds__(BOUNDS) convolve_wide_to_weight(const wide p) {
    await_earlier_kernels();
    __shared__ stage stages[2];
    const int tiles = CEIL(OUT, TILE_M), all = ROWS * COLUMNS * p.n;
    const int part = blockIdx.y % p.parts, group = blockIdx.y / p.parts;
    const int top = blockIdx.x % tiles * TILE_M, left = blockIdx.x / tiles * TILE_N;
    const int output = group * OUT + top, outputs = gridDim.y / p.parts * OUT;
    const int begin = part * p.length, end = all - begin < p.length ? all : begin + p.length;
    contiguous<VECTOR> a(p.dy + output * all + begin, OUT - top, OUT % TILE_M == 0, all, end - begin);
    met b(p.x + group * IN * H * W * p.n, p.n, left, begin, end);
    sums sum;
    sum.multiply(a, b, end - begin, stages);
    real *const to = p.partial + part * outputs * (IN * TAPS + 1);
    #pragma unroll
    for (int r = 0; r < SUMS_M; r++)
        #pragma unroll
        for (int q = 0; q < SUMS_N; q++) {
            const int row = sum.row(r), column = left + sum.column(q);
            if (top + row < OUT && column < IN * TAPS) to[(output + row) * IN * TAPS + column] = sum.of[r][q];
        }
    if (left > 0) return; /* the whole block */
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < a.COUNT; i++) {
        const int row = threadIdx.x / a.ALONG + i * a.EVERY;
        if (row < TILE_M) stages[0].a[threadIdx.x % a.ALONG][row] = a.total[i];
    }
    __syncthreads();
    for (int row = threadIdx.x; row < TILE_M && top + row < OUT; row += THREADS) {
        real total = 0;
        for (int k = 0; k < a.ALONG; k++) total += stages[0].a[k][row];
        to[outputs * IN * TAPS + output + row] = total;
    }
}
