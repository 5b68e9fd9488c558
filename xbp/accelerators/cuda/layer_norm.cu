/* Normalization of each row of a matrix x [row][column], and its gradients:
 *
 *     y = w x̂ + b,   x̂ = (x - μ) r;   ∂L/∂x = r (g - mean g - x̂ mean(g x̂)) with g = w δ, δ = ∂L/∂y;
 *     ∂L/∂w = Σ δ x̂ and ∂L/∂b = Σ δ over the rows.
 *
 * Without CENTRE μ is 0, and so is "mean g". A row is in the first-level cache when it is read again. In a group norm
 * GROUPS rows are a sample, and PIXELS neighbouring columns a channel, which have one w and one b; else both are 1. */

#include "dependent.h"
#include "several.h"
#include "along_rows.h"
#include "last.h"

struct layer_norm {
    const real *x, *dy, *weight, *bias;
    real *y, *dx, *partial;
    real *total; /* the sum of the parts, if there are counters */
    unsigned *counters;
    real *known; /* [3][row]: the mean, what its rounding error left, r */
    double eps;
    int rows, size; /* size: of a row, a multiple of VECTOR */
};

struct row {
    int lane, at, size; /* size: 0 beyond the last row */
    long long begin;

    __device__ row(const layer_norm &p) {
        lane = threadIdx.x % LANES * VECTOR;
        at = blockIdx.x * ROWS + threadIdx.x / LANES;
        size = at < p.rows ? p.size : 0;
        begin = (long long)at * p.size;
    }
    /* of a column, where its w and b are */
    __device__ int parameter(int j) const { return at % GROUPS * (size / PIXELS) + j / PIXELS; }
};
#define COLUMNS(j) for (int j = own.lane; j < own.size; j += LANES * VECTOR)

__device__ inline several<VECTOR> load(const real *from) { return *(const several<VECTOR> *)from; }

/* x̂, of a number of the row. */
struct normalizer {
    real first, rest, r;

    __device__ real of(real x) const { return (x - first - rest) * r; }
};
__device__ inline normalizer recalled(const layer_norm &p, int at) {
    return {p.known[at], p.known[p.rows + at], p.known[2 * p.rows + at]};
}

extern "C" __global__ void __launch_bounds__(THREADS) normalize(const layer_norm p) {
    await_earlier_kernels();
    __shared__ real shared[THREADS];
    const row own(p);
    normalizer with = {};
    if (CENTRE) {
        real sum = 0;
        COLUMNS(j) {
            const several<VECTOR> x = load(p.x + own.begin + j);
            #pragma unroll
            for (int k = 0; k < VECTOR; k++) sum += x.at[k];
        }
        with.first = over_row<adding>(sum, shared) / p.size;
    }
    real sum = 0, squares = 0; /* of deviations from the rounded mean */
    COLUMNS(j) {
        const several<VECTOR> x = load(p.x + own.begin + j);
        #pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            const real d = x.at[k] - with.first;
            sum += d, squares += d * d;
        }
    }
    if (CENTRE) with.rest = over_row<adding>(sum, shared) / p.size;
    real variance = over_row<adding>(squares, shared) / p.size - with.rest * with.rest;
    if (variance < 0) variance = 0;
    with.r = 1 / sqrt(variance + (real)p.eps);
    if (own.lane == 0 && own.size) {
        p.known[own.at] = with.first;
        p.known[p.rows + own.at] = with.rest;
        p.known[2 * p.rows + own.at] = with.r;
    }
    COLUMNS(j) {
        several<VECTOR> y = load(p.x + own.begin + j);
        #pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            y.at[k] = with.of(y.at[k]);
            if (p.weight) y.at[k] *= p.weight[own.parameter(j + k)];
            if (p.bias) y.at[k] += p.bias[own.parameter(j + k)];
        }
        *(several<VECTOR> *)(p.y + own.begin + j) = y;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) normalize_to_input(const layer_norm p) {
    await_earlier_kernels();
    __shared__ real shared[THREADS];
    const row own(p);
    const normalizer with = recalled(p, own.size ? own.at : 0);
    real along = 0, level = 0;
    COLUMNS(j) {
        const several<VECTOR> x = load(p.x + own.begin + j), d = load(p.dy + own.begin + j);
        #pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            const real g = p.weight ? p.weight[own.parameter(j + k)] * d.at[k] : d.at[k];
            along += g * with.of(x.at[k]), level += g;
        }
    }
    along = over_row<adding>(along, shared) / p.size;
    level = CENTRE ? over_row<adding>(level, shared) / p.size : 0;
    COLUMNS(j) {
        const several<VECTOR> x = load(p.x + own.begin + j);
        several<VECTOR> d = load(p.dy + own.begin + j);
        #pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            const real g = p.weight ? p.weight[own.parameter(j + k)] * d.at[k] : d.at[k];
            d.at[k] = (g - with.of(x.at[k]) * along - level) * with.r;
        }
        *(several<VECTOR> *)(p.dx + own.begin + j) = d;
    }
}

/* partial [part][2][column]: Σ δ x̂ and Σ δ over a part of the rows. A block has 32 columns; each of its warps adds every
 * eighth row. */
#define LINE 32
#define WARPS (THREADS / LINE)

extern "C" __global__ void __launch_bounds__(THREADS) normalize_to_weight(const layer_norm p) {
    await_earlier_kernels();
    __shared__ real sums[2][WARPS][LINE];
    const int lane = threadIdx.x % LINE, warp = threadIdx.x / LINE, column = blockIdx.x * LINE + lane;
    real along = 0, level = 0;
    #pragma unroll 4
    for (int at = blockIdx.y * WARPS + warp; at < p.rows; at += gridDim.y * WARPS) {
        const long long place = (long long)at * p.size + column;
        const real d = column < p.size ? p.dy[place] : 0, x = column < p.size ? p.x[place] : 0;
        along += d * recalled(p, at).of(x), level += d;
    }
    sums[0][warp][lane] = along, sums[1][warp][lane] = level;
    __syncthreads();
    const bool adds = warp < 2 && column < p.size; /* two warps, one for each sum */
    real total = 0;
    #pragma unroll
    for (int k = 0; k < WARPS; k++) total += adds ? sums[warp][k][lane] : 0;
    if (adds) p.partial[(blockIdx.y * 2 + warp) * p.size + column] = total;
    if (!p.counters || !is_last(p.counters + blockIdx.x, gridDim.y)) return; /* the whole block */
    const int crew = WARPS / 2, which = warp % 2, member = warp / 2; /* each crew-th part, from the member-th on */
    const int count = ((int)gridDim.y - member + crew - 1) / crew;
    const real *const own = p.partial + (member * 2 + which) * p.size + column;
    sums[which][member][lane] = column < p.size ? sum_of_parts(own, crew * 2 * p.size, count) : 0;
    __syncthreads();
    if (!adds) return;
    total = 0;
    #pragma unroll
    for (int k = 0; k < crew; k++) total += sums[warp][k][lane];
    p.total[warp * p.size + column] = total;
}

/* partial [part][2][channel]: the same sums over a part of a channel's pixels in all samples, for a group norm. */
extern "C" __global__ void __launch_bounds__(THREADS) normalize_to_channel(const layer_norm p) {
    await_earlier_kernels();
    __shared__ real sums[2][THREADS];
    const int channel = blockIdx.x, each = p.size / PIXELS, count = p.rows / GROUPS * PIXELS;
    real along = 0, level = 0;
    #pragma unroll 4
    for (int k = blockIdx.y * THREADS + threadIdx.x; k < count; k += gridDim.y * THREADS) {
        const int at = k / PIXELS * GROUPS + channel / each;
        const long long place = (long long)at * p.size + channel % each * PIXELS + k % PIXELS;
        const real d = p.dy[place];
        along += d * recalled(p, at).of(p.x[place]), level += d;
    }
    sums[0][threadIdx.x] = along, sums[1][threadIdx.x] = level;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            for (int k = 0; k < 2; k++) sums[k][threadIdx.x] += sums[k][threadIdx.x + half];
    }
    __syncthreads();
    if (threadIdx.x < 2) p.partial[(blockIdx.y * 2 + threadIdx.x) * gridDim.x + channel] = sums[threadIdx.x][0];
    if (!p.counters || !is_last(p.counters + blockIdx.x, gridDim.y)) return; /* the whole block */
    const int crew = THREADS / 2, which = threadIdx.x % 2, member = threadIdx.x / 2;
    const int parts = gridDim.y, places = gridDim.x, own = (parts - member + crew - 1) / crew;
    sums[which][member] = sum_of_parts(p.partial + (member * 2 + which) * places + channel, crew * 2 * places, own);
    __syncthreads();
    if (threadIdx.x >= 2) return;
    real total = 0;
    for (int k = 0; k < crew && k < parts; k++) total += sums[threadIdx.x][k];
    p.total[threadIdx.x * places + channel] = total;
}
