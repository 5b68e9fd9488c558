/* ∂L/∂W and ∂L/∂b of all layers of a network, from what whole.cu leaves, in one launch: of linear layers
 * ∂L/∂W = Σ ∂L/∂(W x + b) xᵀ over the samples, by tiles; of convolutions the sums of the blocks' shares. And the
 * sum of the blocks' parts of a loss. */

#include "dependent.h"

#define MOST 16
#define THREADS 256
#define TALL 16 /* outputs of a tile */
#define WIDE 32 /* its inputs */
#define DEPTH 32 /* samples at a time */
#define EACH 4 /* outputs of a thread, for one input */
#define TEAM (TALL / EACH * WIDE) /* threads of a tile; two teams share the samples */
#define DELTAS (DEPTH * TALL / THREADS) /* numbers that a thread loads */
#define INPUTS (DEPTH * WIDE / THREADS)

struct product {
    const real *delta, *x;
    real *weight, *bias;     /* bias: or NULL */
    long long sample, entry; /* steps in x */
    int outputs, inputs;
    int end; /* the number of blocks up to its last one */
};

struct products {
    product of[MOST];
    const real *partial; /* [row][sum] */
    real *total;
    real *loss; /* the last sum, or NULL */
    int count, rows, sums;
    int n;
};

__device__ void multiply(const product &p, int n, int tile, real *deltas, real *inputs, real *others) {
    const int across = (p.inputs + WIDE - 1) / WIDE, top = tile / across * TALL, left = tile % across * WIDE;
    const int team = threadIdx.x / TEAM, column = threadIdx.x % WIDE, row = threadIdx.x % TEAM / WIDE * EACH;
    const bool along = p.entry == 1; /* neighbouring threads read neighbouring numbers of x */
    real next_delta[DELTAS], next_input[INPUTS], sum[EACH] = {}, whole[EACH] = {};
    auto load = [&](int at) {
        #pragma unroll
        for (int i = 0; i < DELTAS; i++) {
            const int e = i * THREADS + threadIdx.x, o = top + e % TALL, k = at + e / TALL;
            const bool inside = o < p.outputs && k < n;
            next_delta[i] = inside ? p.delta[(long long)k * p.outputs + o] : 0;
        }
        #pragma unroll
        for (int i = 0; i < INPUTS; i++) {
            const int e = i * THREADS + threadIdx.x, c = left + (along ? e % WIDE : e / DEPTH);
            const int k = at + (along ? e / WIDE : e % DEPTH);
            next_input[i] = c < p.inputs && k < n ? p.x[k * p.sample + c * p.entry] : 0;
        }
    };
    load(0);
    for (int at = 0; at < n; at += DEPTH) {
        if (at > 0) __syncthreads();
        #pragma unroll
        for (int i = 0; i < DELTAS; i++) deltas[i * THREADS + threadIdx.x] = next_delta[i];
        #pragma unroll
        for (int i = 0; i < INPUTS; i++) {
            const int e = i * THREADS + threadIdx.x;
            inputs[along ? e / WIDE * (WIDE + 1) + e % WIDE : e % DEPTH * (WIDE + 1) + e / DEPTH] = next_input[i];
        }
        __syncthreads();
        if (at + DEPTH < n) load(at + DEPTH);
        #pragma unroll 8
        for (int k = team; k < DEPTH; k += THREADS / TEAM) {
            const real v = inputs[k * (WIDE + 1) + column];
            #pragma unroll
            for (int r = 0; r < EACH; r++) {
                const real d = deltas[k * TALL + row + r];
                sum[r] += d * v;
                whole[r] += d;
            }
        }
    }
    const int own = threadIdx.x % TEAM;
    #pragma unroll
    for (int r = 0; r < EACH; r++)
        if (team == 1) others[r * TEAM + own] = sum[r], others[(EACH + r) * TEAM + own] = whole[r];
    __syncthreads();
    if (team == 1) return;
    #pragma unroll
    for (int r = 0; r < EACH; r++) {
        const int o = top + row + r;
        if (o >= p.outputs) continue;
        if (left + column < p.inputs)
            p.weight[(long long)o * p.inputs + left + column] = sum[r] + others[r * TEAM + own];
        if (p.bias && left + column == 0) p.bias[o] = whole[r] + others[(EACH + r) * TEAM + own];
    }
}

/* total[i] = Σ_k partial[k][i] for the WIDE neighbours of a block; each of its warps adds some of the rows. */
__device__ void add_up(const products &p, int block, real *others) {
    const int i = block * WIDE + threadIdx.x % WIDE, warp = threadIdx.x / WIDE;
    real sum = 0;
    #pragma unroll 8
    for (int k = warp; k < p.rows; k += THREADS / WIDE) sum += i < p.sums ? p.partial[(long long)k * p.sums + i] : 0;
    others[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || i >= p.sums) return;
    real total = 0;
    #pragma unroll
    for (int k = 0; k < THREADS / WIDE; k++) total += others[k * WIDE + threadIdx.x];
    if (p.loss && i == p.sums - 1) *p.loss = total;
    else p.total[i] = total;
}

extern "C" __global__ void __launch_bounds__(THREADS) whole_weights(const products p) {
    await_earlier_kernels();
    __shared__ real deltas[DEPTH * TALL], inputs[DEPTH * (WIDE + 1)], others[2 * EACH * TEAM];
    int k = 0, before = 0;
    while (k < p.count && (int)blockIdx.x >= p.of[k].end) before = p.of[k++].end;
    if (k < p.count) multiply(p.of[k], p.n, blockIdx.x - before, deltas, inputs, others);
    else add_up(p, blockIdx.x - before, others);
}
