#include "dependent.h"
#include "winograd.h"

#define LINE 32  /* neighbouring entries of a term, one for each thread of a warp */
#define WARPS 12 /* which share the terms */
#define SHARING 384

/* ∂L/∂b is Σδ, the value at 1 of the polynomials whose values at the points are the sums of D; those at ±a and ±b
 * determine it (Lagrange). */
constexpr double at_a = (b2 - 1) / (b2 - a2) / 2, at_b = (1 - a2) / (b2 - a2) / 2;

__device__ inline real value_at_one(const real *m, int step) {
    const real plus = m[step] * (real)(at_a * (1 + 1 / a1)) + m[2 * step] * (real)(at_a * (1 - 1 / a1));
    return plus + (m[3 * step] * (real)(at_b * (1 + 1 / b1)) + m[4 * step] * (real)(at_b * (1 - 1 / b1)));
}

/* A thread's part of ∂L/∂W of a pair of an output and a channel, or of ∂L/∂b, by its definition. */
__device__ inline void direct(const winograd &p, bool of_bias, int entry, real *sum) {
    const int in = p.channels / p.groups, out = p.outputs / p.groups;
    const int output = of_bias ? entry : entry / in, channel = of_bias ? 0 : output / out * in + entry % in;
    const images x = inputs_of(p), dy = gradients_of(p);
    for (int tap = 0; tap < 9; tap++) sum[tap] = 0;
    for (int k = threadIdx.x; k < p.rows * p.columns * p.n; k += SHARING) {
        const int row = k / p.n / p.columns, column = k / p.n % p.columns;
        const real delta = dy.at(output, row, column, k % p.n);
        if (of_bias) sum[0] += delta;
        else
            #pragma unroll
            for (int tap = 0; tap < 9; tap++)
                sum[tap] += delta * x.at(channel, row - p.top + tap / 3, column - p.left + tap % 3, k % p.n);
    }
}

/* From the parts of S: ∂L/∂W, and behind it ∂L/∂b. A block has LINE kernels or outputs; its warps add up the parts of
 * 3 terms each, in order. What is not finite then is computed directly, by the whole block. */
extern "C" __global__ void __launch_bounds__(SHARING) winograd_to_weight(const winograd p) {
    await_earlier_kernels();
    __shared__ real terms[TERMS][LINE], found[9 * LINE], shares[9][SHARING];
    __shared__ bool finite[LINE];
    const int pairs = p.outputs * (p.channels / p.groups), of_pairs = CEIL(pairs, LINE);
    const bool of_bias = blockIdx.x >= of_pairs;
    const int entries = of_bias ? p.outputs : pairs, each = of_bias ? 1 : 9;
    const int first = (blockIdx.x - (of_bias ? of_pairs : 0)) * LINE;
    const int lane = threadIdx.x % LINE, warp = threadIdx.x / LINE, entry = first + lane;
    const real *const from = p.terms + (of_bias ? TERMS * pairs : 0) + entry;
    real sum[TERMS / WARPS] = {};
    #pragma unroll 4
    for (int part = 0; part < p.parts && entry < entries; part++)
        #pragma unroll
        for (int k = 0; k < TERMS / WARPS; k++)
            sum[k] += from[part * TERMS * (pairs + p.outputs) + (warp + k * WARPS) * entries];
    #pragma unroll
    for (int k = 0; k < TERMS / WARPS; k++) terms[warp + k * WARPS][lane] = sum[k];
    __syncthreads();
    if (warp == 0) {
        real m[6][6], check = 0;
        #pragma unroll
        for (int k = 0; k < TERMS; k++) m[k / 6][k % 6] = terms[k][lane];
        if (of_bias) {
            real along[6];
            #pragma unroll
            for (int r = 1; r < 5; r++) along[r] = value_at_one(m[r], 1);
            check = found[lane] = value_at_one(along, 1);
            check *= 0;
        } else {
            #pragma unroll
            for (int q = 0; q < 6; q++) to_taps<6>(&m[0][q]);
            #pragma unroll
            for (int r = 0; r < 3; r++) {
                to_taps<1>(m[r]);
                #pragma unroll
                for (int q = 0; q < 3; q++) found[9 * lane + 3 * r + q] = m[r][q], check += m[r][q] * 0;
            }
        }
        finite[lane] = check == 0;
    }
    __syncthreads();
    for (int k = 0; k < LINE && first + k < entries; k++) {
        if (finite[k]) continue; /* for the whole block */
        real own[9];
        direct(p, of_bias, first + k, own);
        #pragma unroll
        for (int tap = 0; tap < 9; tap++) shares[tap][threadIdx.x] = own[tap];
        __syncthreads();
        if (threadIdx.x < each) {
            real total = 0;
            for (int share = 0; share < SHARING; share++) total += shares[threadIdx.x][share];
            found[each * k + threadIdx.x] = total;
        }
        __syncthreads();
    }
    real *const to = p.to + (of_bias ? 9 * pairs : 0) + each * first;
    for (int i = threadIdx.x; i < each * LINE && i < each * (entries - first); i += SHARING) to[i] = found[i];
}
