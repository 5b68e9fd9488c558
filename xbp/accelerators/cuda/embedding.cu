/* Rows of a table by index, and sums of rows that share an index, in the order of the rows. */

#include "dependent.h"

struct looking_up {
    const real *from; /* the table, or the rows to add up */
    const LABEL *index;
    real *to;
    long long padding; /* an index that is left out of sums */
    int n, width, length; /* n: the rows; length: those of the table */
};

#define THREADS 128

/* to[i] = table[index[i]], or nan; a block copies one row. */
extern "C" __global__ void __launch_bounds__(THREADS) look_up(const looking_up p) {
    await_earlier_kernels();
    const long long i = blockIdx.x, at = (long long)p.index[i];
    const bool known = at >= 0 && at < p.length;
    const real *const from = p.from + (known ? at : 0) * p.width, none = 0 * (-1 / (real)0); /* nan */
    for (int j = threadIdx.x; j < p.width; j += THREADS) p.to[i * p.width + j] = known ? from[j] : none;
}

/* to [part][row][column]: the sum of from[i] over a part of the i with index[i] = row. A block finds them THREADS at a
 * time, and adds them up, each thread one column. */
extern "C" __global__ void __launch_bounds__(THREADS) scatter_add(const looking_up p) {
    await_earlier_kernels();
    __shared__ bool counts[THREADS];
    __shared__ int found;
    const int tiles = (p.width + THREADS - 1) / THREADS, row = blockIdx.x / tiles;
    const int column = blockIdx.x % tiles * THREADS + threadIdx.x;
    const int chunks = (p.n + THREADS - 1) / THREADS;
    real sum = 0;
    for (int chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
        const int first = chunk * THREADS, i = first + threadIdx.x;
        const bool mine = i < p.n && (long long)p.index[i] == row && row != p.padding;
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
        counts[threadIdx.x] = mine;
        if (mine) found = 1; /* whoever writes, it is 1 */
        __syncthreads();
        if (found && column < p.width) {
            #pragma unroll 8
            for (int k = 0; k < THREADS; k++)
                sum += counts[k] ? p.from[(long long)(first + k) * p.width + column] : 0;
        }
        __syncthreads();
    }
    if (column < p.width) p.to[((long long)blockIdx.y * p.length + row) * p.width + column] = sum;
}

/* to[row] = 0 for all rows. */
extern "C" __global__ void __launch_bounds__(THREADS) clear(const looking_up p) {
    await_earlier_kernels();
    const long long size = (long long)p.length * p.width, step = (long long)gridDim.x * THREADS;
    for (long long k = (long long)blockIdx.x * THREADS + threadIdx.x; k < size; k += step) p.to[k] = 0;
}

/* The same sums as `scatter_add`, in the same order, where most rows of `to` get none: the blocks of row i write them
 * if it is the first one with its index. `to` has been cleared. */
extern "C" __global__ void __launch_bounds__(THREADS) scatter_few(const looking_up p) {
    await_earlier_kernels();
    __shared__ bool counts[THREADS];
    __shared__ int found;
    const int tiles = (p.width + THREADS - 1) / THREADS, i = blockIdx.x / tiles;
    const int column = blockIdx.x % tiles * THREADS + threadIdx.x;
    const long long row = (long long)p.index[i];
    if (row < 0 || row >= p.length || row == p.padding) return; /* the whole block, and below */
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    bool earlier = false;
    for (int k = threadIdx.x; k < i; k += THREADS) earlier = earlier || (long long)p.index[k] == row;
    if (earlier) found = 1; /* whoever writes, it is 1 */
    __syncthreads();
    if (found) return;
    real sum = 0;
    for (int first = i; first < p.n; first += THREADS) {
        const int k = first + threadIdx.x;
        const bool mine = k < p.n && (long long)p.index[k] == row;
        __syncthreads();
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
        counts[threadIdx.x] = mine;
        if (mine) found = 1;
        __syncthreads();
        if (!found || column >= p.width) continue;
        #pragma unroll 8
        for (int j = 0; j < THREADS; j++) sum += counts[j] ? p.from[(long long)(first + j) * p.width + column] : 0;
    }
    if (column < p.width) p.to[row * p.width + column] = sum;
}
