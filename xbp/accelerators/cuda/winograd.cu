#include "dependent.h"
#include "winograd.h"

/* --- before the products --------------------------------------------------------------------------- */

/* A tile of SIZE × SIZE pixels, the one at column `at` of a row of terms, and its terms. Columns beyond the last
 * tile meet no ∂L/∂y: below the image it is 0. */
template <int SIZE, class Transform>
__device__ inline void transform(const images &of, const tiles &t, int top, int left, int channels, int channel,
                                 int at, real *to, Transform each) {
    if (at >= t.length) return;
    const int tile = at / of.n, image = at % of.n;
    const int row = tile / t.wide * 4 - top, column = tile % t.wide * 4 - left;
    real d[6][6];
    #pragma unroll
    for (int r = 0; r < SIZE; r++)
        #pragma unroll
        for (int q = 0; q < SIZE; q++) d[r][q] = of.at(channel, row + r, column + q, image);
    #pragma unroll
    for (int q = 0; q < SIZE; q++) each.down(&d[0][q]);
    to += channel * t.length + at;
    #pragma unroll
    for (int r = 0; r < 6; r++) {
        each.along(d[r]);
        #pragma unroll
        for (int q = 0; q < 6; q++) to[(6 * r + q) * channels * t.length] = d[r][q];
    }
}

struct pixels {
    __device__ void down(real *d) { of_pixels<6>(d); }
    __device__ void along(real *d) { of_pixels<1>(d); }
};

struct gradients {
    __device__ void down(real *d) { of_gradient<6>(d); }
    __device__ void along(real *d) { of_gradient<1>(d); }
};

/* U of a kernel, the one at place `pair` of a term: [output][channel of the group], or if `back`
 * [channel][output of the group]. */
__device__ inline void transform_kernel(const winograd &p, int pair) {
    const int in = p.channels / p.groups, out = p.outputs / p.groups, pairs = p.outputs * in;
    if (pair >= pairs) return;
    const int channel = pair / out, output = channel / in * out + pair % out;
    const real *const g = p.weight + (p.back ? output * in + channel % in : pair) * 9;
    double rows[6][3];
    #pragma unroll
    for (int q = 0; q < 3; q++)
        of_taps(g[p.back ? 8 - q : q], g[p.back ? 5 - q : 3 + q], g[p.back ? 2 - q : 6 + q], &rows[0][q], 3);
    #pragma unroll
    for (int r = 0; r < 6; r++) {
        double of[6];
        of_taps(rows[r][0], rows[r][1], rows[r][2], of, 1);
        #pragma unroll
        for (int q = 0; q < 6; q++) p.u[(6 * r + q) * pairs + pair] = (real)of[q];
    }
}

/* All that a pass needs: blocks for each channel of x, for each output of ∂L/∂y, and for kernels. */
extern "C" __global__ void __launch_bounds__(BOUNDS) winograd_terms(const winograd p) {
    await_earlier_kernels();
    const int at = blockIdx.x * THREADS + threadIdx.x;
    const tiles of_y(p.rows, p.columns, p.n), of_x(p.h, p.w, p.n);
    int line = blockIdx.y;
    if (p.v && line < p.channels) {
        transform<6>(inputs_of(p), of_y, p.top, p.left, p.channels, line, at, p.v, pixels());
        return;
    }
    line -= p.v ? p.channels : 0;
    if (p.d && line < p.outputs) {
        transform<4>(gradients_of(p), of_y, 0, 0, p.outputs, line, at, p.d, gradients());
        if (p.e) transform<6>(gradients_of(p), of_x, 2 - p.top, 2 - p.left, p.outputs, line, at, p.e, pixels());
        return;
    }
    line -= p.d ? p.outputs : 0;
    transform_kernel(p, line * gridDim.x * THREADS + at);
}

/* --- after them ------------------------------------------------------------------------------------ */

/* The sum of an entry by its definition. */
__device__ inline real direct(const winograd &p, const images &from, int channel, int r, int q, int image) {
    const int in = p.channels / p.groups, out = p.outputs / p.groups;
    const int terms = p.back ? out : in, group = channel / (p.back ? in : out);
    real sum = 0;
    #pragma unroll 1
    for (int k = 0; k < terms; k++) {
        const int output = p.back ? group * out + k : channel, own = p.back ? channel % in : k;
        #pragma unroll 1
        for (int tap = 0; tap < 9; tap++) {
            const real pixel = from.at(group * terms + k, r + tap / 3, q + tap % 3, image);
            sum += pixel * p.weight[(output * in + own) * 9 + (p.back ? 8 - tap : tap)];
        }
    }
    return sum;
}

/* The maximum of a window 2 × 2, as in pooling.cu. */
struct maximum {
    real best = 0;
    int place = NOWHERE;

    __device__ void meet(real v, int k) {
        if (k == 0 || v > best || v != v) best = v, place = k;
    }
    __device__ void store(const winograd &p, int channel, int row, int column, int image) {
        if (row / 2 >= p.rows / 2 || column / 2 >= p.columns / 2) return;
        const int i = ((channel * (p.rows / 2) + row / 2) * (p.columns / 2) + column / 2) * p.n + image;
        if (p.relu && best <= 0) best = 0, place = NOWHERE;
        p.to[i] = best, p.where[i] = place;
    }
};

/* y, with bias, then maxima if `where`, then ReLU if `relu`; or ∂L/∂x; from M. Where an input is not finite, or a term overflows, so is an
 * entry of its tile: that tile is computed directly then. */
extern "C" __global__ void __launch_bounds__(BOUNDS) winograd_output(const winograd p) {
    await_earlier_kernels();
    const int at = blockIdx.x * THREADS + threadIdx.x, channel = blockIdx.y;
    const int h = p.back ? p.h : p.rows, w = p.back ? p.w : p.columns, channels = gridDim.y;
    const tiles t(h, w, p.n);
    if (at >= t.count) return;
    const int tile = at / p.n, image = at % p.n, row = tile / t.wide * 4, column = tile % t.wide * 4;
    real m[6][6];
    #pragma unroll
    for (int r = 0; r < 6; r++)
        #pragma unroll
        for (int q = 0; q < 6; q++) m[r][q] = p.terms[((6 * r + q) * channels + channel) * t.length + at];
    #pragma unroll
    for (int q = 0; q < 6; q++) to_pixels<6>(&m[0][q]);
    real check = 0;
    #pragma unroll
    for (int r = 0; r < 4; r++) {
        to_pixels<1>(m[r]);
        #pragma unroll
        for (int q = 0; q < 4; q++) check += m[r][q] * 0;
    }
    const real bias = p.bias ? p.bias[channel] : 0;
    maximum window;
    const bool pooled = p.where && !p.back;
    real *const to = p.to + ((channel * h + row) * w + column) * p.n + image;
    if (check != 0) { /* nan */
        const images from = p.back ? gradients_of(p) : inputs_of(p);
        const int top = row - (p.back ? 2 - p.top : p.top), left = column - (p.back ? 2 - p.left : p.left);
        #pragma unroll 1
        for (int k = 0; k < 16; k++) { /* window by window */
            const int r = k / 8 * 2 + k % 4 / 2, q = k / 4 % 2 * 2 + k % 2;
            const real y = direct(p, from, channel, top + r, left + q, image) + bias;
            if (pooled) {
                window.meet(y, k % 4);
                if (k % 4 == 3) window.store(p, channel, row + r - 1, column + q - 1, image);
            } else if (row + r < h && column + q < w) to[(r * w + q) * p.n] = p.relu && y <= 0 ? 0 : y;
        }
        return;
    }
    if (pooled) {
        #pragma unroll
        for (int k = 0; k < 16; k++) {
            const int r = k / 8 * 2 + k % 4 / 2, q = k / 4 % 2 * 2 + k % 2;
            window.meet(m[r][q] + bias, k % 4);
            if (k % 4 == 3) window.store(p, channel, row + r - 1, column + q - 1, image);
        }
        return;
    }
    #pragma unroll
    for (int r = 0; r < 4; r++)
        #pragma unroll
        for (int q = 0; q < 4; q++) {
            const real y = m[r][q] + bias;
            if (row + r < h && column + q < w) to[(r * w + q) * p.n] = p.relu && y <= 0 ? 0 : y;
        }
}
