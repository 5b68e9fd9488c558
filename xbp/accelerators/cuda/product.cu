/* C = A B for small matrices, with any strides, and what belongs to a linear layer besides: a bias, a
 * rectifier, and in its backward the rectifier's slope and the bias's gradient. A block for
 * SIDE × SIDE entries, a thread for 4 × 4.
 *
 * A small product has few such tiles, and a long sum in each. So where SIDE is 16, the 16 threads
 * that make a tile come in 16 GROUPS, each of which takes a sixteenth of the sum; the groups' sums are
 * added in their order. With SIDE 64 there is one group. */

struct product {
    const real *a, *b;
    const real *bias; /* a number for each column of C, or none */
    const real *mask; /* like A, if MASKED: where it is at most 0, A counts as 0 */
    real *c, *sums;   /* SUMS: of the rows of A */
    long long a_row, a_column, b_row, b_column; /* steps from row to row, from column to column */
    int m, n, k;
};

#define THREADS 256
#define ACROSS (SIDE / 4)
#define GROUPS (THREADS / (ACROSS * ACROSS))
#define DEPTH (2048 / SIDE) /* how much of the sum is in shared memory at a time */
#define PITCH (SIDE + 4)    /* so that not all of a column lie in one bank */

/* A stripe of DEPTH × SIDE numbers into shared memory, along whichever way lies dense in memory. */
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
    if (!SUMS || left > 0) return; /* all threads of the block, or none */
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
