/* Rows of several arrays, at positions that are on the device. */

#include "dependent.h"

#define THREADS 256

#include "rows.h"

/* The place in the source of row `to` of a batch. */
__device__ long long origin(const taking &p, long long to) {
    const long long start = p.starts ? p.starts[*p.at * p.width] : *p.at;
    return p.order[start + p.first + to * p.step];
}

/* A tile of SIDE × SIDE words, transposed in shared memory: neighbouring threads read neighbouring words of a row,
 * and write a word of neighbouring rows. */
#define SIDE 32
#define LINES (THREADS / SIDE)

template <typename word> __device__ void transpose(const table &it, const taking &p, word (*tile)[SIDE + 1]) {
    const long long across = (it.words + SIDE - 1) / SIDE, left = blockIdx.x % across * SIDE;
    const int top = blockIdx.x / across * SIDE, lane = threadIdx.x % SIDE, line = threadIdx.x / SIDE;
    const word *const source = (const word *)it.source;
    word *const target = (word *)it.to;
    if (top >= it.columns) return; /* the whole block */
    #pragma unroll
    for (int k = line; k < SIDE; k += LINES)
        if (top + k < it.columns && left + lane < it.words)
            tile[k][lane] = source[origin(p, top + k) * it.words + left + lane];
    __syncthreads();
    #pragma unroll
    for (int k = line; k < SIDE; k += LINES)
        if (top + lane < it.columns && left + k < it.words)
            target[(left + k) * it.columns + top + lane] = tile[lane][k];
}

/* The rows of a batch, and single rows; a block copies one row of one array, or a tile of rows and words. */
extern "C" __global__ void __launch_bounds__(THREADS) take(const taking p) {
    await_earlier_kernels();
    __shared__ long long tile[SIDE * (SIDE + 1)];
    const table &it = p.of[blockIdx.y];
    const long long to = blockIdx.x;
    if (it.columns && it.bytes == 8) transpose(it, p, (long long (*)[SIDE + 1])tile);
    else if (it.columns) transpose(it, p, (int (*)[SIDE + 1])tile);
    else if (to < (it.samples ? it.samples : 1)) copy_row(it, to, it.samples ? origin(p, to) : *p.at);
}

extern "C" __global__ void __launch_bounds__(THREADS) append(const taking p) {
    await_earlier_kernels();
    append_rows(p);
}
