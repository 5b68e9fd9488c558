/* C = A B for small matrices with any strides, and the rest of a linear layer: the bias, ReLU, and in the
 * backward ReLU's slope and the bias's gradient. A block computes SIDE × SIDE entries, a thread 4 × 4.
 *
 * A small product has few such tiles, with long sums. For SIDE = 16 a block therefore has 16 GROUPS of
 * the 16 threads that a tile needs; each group adds a sixteenth of the terms, and the groups' sums are
 * added in a fixed order. For SIDE = 64 there is one group. */

struct product {
    const real *a, *b;
    const real *bias; /* one number for each column of C, or NULL */
    const real *mask; /* if MASKED: A counts as 0 where this array of A's layout is ≤ 0 */
    real *c, *sums;   /* sums: the sums of the rows of A, if SUMS */
    long long a_row, a_column, b_row, b_column; /* steps from row to row, from column to column */
    int m, n, k;
};

#define THREADS 256
#define ACROSS (SIDE / 4)
#define GROUPS (THREADS / (ACROSS * ACROSS))
#define DEPTH (2048 / SIDE) /* terms in shared memory at a time */
#define PITCH (SIDE + 4)    /* spreads a column over several banks */

/* Copy a stripe of DEPTH × SIDE numbers to shared memory, along the contiguous direction. */
__device__ inline void stage(real *to, const real *from, const real *mask, int depth, int side,
                             long long step, long long step_side) {
    for (int e = threadIdx.x; e < DEPTH * SIDE; e += THREADS) {
        const int k = step == 1 ? e % DEPTH : e / SIDE, s = step == 1 ? e / DEPTH : e % SIDE;
        const long long at = k * step + s * step_side;
        const bool counts = k < depth && s < side && (!mask || !(mask[at] <= 0));
        to[k * PITCH + s] = counts ? from[at] : 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) multiply(const product p) {
    __shared__ real room[2 * DEPTH * PITCH];
    real *const a = room, *const b = room + DEPTH * PITCH;
    const int column = threadIdx.x % ACROSS * 4, row = threadIdx.x / ACROSS % ACROSS * 4;
    const int group = threadIdx.x / (ACROSS * ACROSS);
    const int top = blockIdx.x * SIDE, left = blockIdx.y * SIDE;
    real sum[4][4] = {}, whole[4] = {};
    for (int begin = 0; begin < p.k; begin += DEPTH) {
        const int depth = p.k - begin < DEPTH ? p.k - begin : DEPTH;
        __syncthreads();
        const long long at = begin * p.a_column + top * p.a_row;
        stage(a, p.a + at, MASKED ? p.mask + at : 0, depth, p.m - top, p.a_column, p.a_row);
        stage(b, p.b + begin * p.b_row + left * p.b_column, 0, depth, p.n - left, p.b_row, p.b_column);
        __syncthreads();
        #pragma unroll 4
        for (int k = group; k < DEPTH; k += GROUPS)
            #pragma unroll
            for (int r = 0; r < 4; r++) {
                const real v = a[k * PITCH + row + r];
                if (SUMS) whole[r] += v;
                #pragma unroll
                for (int q = 0; q < 4; q++) sum[r][q] += v * b[k * PITCH + column + q];
            }
    }
    __syncthreads();
    #pragma unroll
    for (int r = 0; r < 4; r++)
        #pragma unroll
        for (int q = 0; q < 4; q++) room[(group * SIDE + row + r) * SIDE + column + q] = sum[r][q];
    __syncthreads();
    for (int e = threadIdx.x; e < SIDE * SIDE; e += THREADS) {
        const int i = top + e / SIDE, j = left + e % SIDE;
        if (i >= p.m || j >= p.n) continue;
        real total = p.bias ? p.bias[j] : 0;
        #pragma unroll
        for (int g = 0; g < GROUPS; g++) total += room[g * SIDE * SIDE + e];
        p.c[(long long)i * p.n + j] = RELU && total <= 0 ? 0 : total; /* nan stays nan */
    }
    if (!SUMS || left > 0) return; /* uniform over the block */
    __syncthreads();
    #pragma unroll
    for (int r = 0; r < 4; r++)
        if (column == 0) room[group * SIDE + row + r] = whole[r];
    __syncthreads();
    if (threadIdx.x < SIDE && top + threadIdx.x < p.m) {
        real total = 0;
        #pragma unroll
        for (int g = 0; g < GROUPS; g++) total += room[g * SIDE + threadIdx.x];
        p.sums[top + threadIdx.x] = total;
    }
}
