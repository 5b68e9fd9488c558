/* Max and average pooling of images [channel][row][column][image]: one thread for each entry of the
 * output, so that no two threads add to one entry. */

#include "dependent.h"

struct pooling {
    const real *x, *dy;
    real *y, *dx;
    unsigned char *where; /* as in convolution.cu */
    int n;
};

#define NOWHERE 255
#define THREADS 128

extern "C" __global__ void __launch_bounds__(THREADS) pool(const pooling p) {
    await_earlier_kernels();
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= C * ROWS * COLUMNS * p.n) return;
    const int image = at % p.n, column = at / p.n % COLUMNS, row = at / p.n / COLUMNS % ROWS;
    const real *plane = p.x + at / p.n / COLUMNS / ROWS * H * W * p.n + image;
    real best = 0;
    int place = NOWHERE;
    #pragma unroll
    for (int k = 0; k < KH * KW; k++) {
        const int r = row * STRIDE_H - PAD_H + k / KW, q = column * STRIDE_W - PAD_W + k % KW;
        const bool inside = r >= 0 && r < H && q >= 0 && q < W;
        const real v = inside ? plane[(r * W + q) * p.n] : 0;
        if (AVERAGE) best += v;
        else if (inside && (place == NOWHERE || v > best || v != v)) best = v, place = k; /* nan: the last */
    }
    if (RELU && best <= 0) best = 0, place = NOWHERE;
    p.y[at] = AVERAGE ? best / (KH * KW) : best;
    if (!AVERAGE) p.where[at] = place;
}

/* ∂L/∂x of a pixel: the sum over the windows that contain it. */
extern "C" __global__ void __launch_bounds__(THREADS) pool_to_input(const pooling p) {
    await_earlier_kernels();
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= C * H * W * p.n) return;
    const int image = at % p.n, w = at / p.n % W + PAD_W, h = at / p.n / W % H + PAD_H;
    const int channel = at / p.n / W / H;
    real sum = 0;
    for (int row = h < KH ? 0 : (h - KH) / STRIDE_H + 1; row < ROWS && row * STRIDE_H <= h; row++)
        for (int column = w < KW ? 0 : (w - KW) / STRIDE_W + 1; column < COLUMNS && column * STRIDE_W <= w; column++) {
            const int entry = ((channel * ROWS + row) * COLUMNS + column) * p.n + image;
            const int place = (h - row * STRIDE_H) * KW + w - column * STRIDE_W;
            if (AVERAGE || p.where[entry] == place) sum += p.dy[entry];
        }
    p.dx[at] = AVERAGE ? sum / (KH * KW) : sum;
}
