/* Softmax and cross-entropy, value and gradient, in one pass over the logits [sample][class]. LANES
 * threads share a sample, for few classes LANES = 1. Their results are combined pairwise in a fixed
 * order. */

#include "dependent.h"

struct cross_entropy_task {
    const real *logits, *weights; /* target probabilities; NULL with labels */
    const LABEL *labels;          /* NULL with probabilities */
    real *gradient, *partial;     /* partial: the loss of each block */
    real *total;                  /* the sum of these, if there is a counter */
    unsigned *counters;
    double scale;
    int n, classes;
};

#include "last.h"

#define THREADS 256
#define ROWS (THREADS / LANES)

__device__ inline real larger(real a, real b) { return a > b || a != a ? a : b; }
__device__ inline real sum_of(real a, real b) { return a + b; }

/* The reduction of `mine` by `combine` over each group of LANES threads (a power of two), for all. */
#define COMBINED(into, combine, mine)                                                                 \
    __syncthreads();                                                                                  \
    shared[threadIdx.x] = mine;                                                                       \
    for (int half = LANES / 2; half > 0; half /= 2) {                                                 \
        __syncthreads();                                                                              \
        if (lane < half) shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]); \
    }                                                                                                 \
    __syncthreads();                                                                                  \
    const real into = shared[threadIdx.x - lane];

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(const cross_entropy_task p) {
    await_earlier_kernels();
    __shared__ real shared[THREADS];
    const int lane = threadIdx.x % LANES, sample = blockIdx.x * ROWS + threadIdx.x / LANES;
    const int classes = sample < p.n ? p.classes : 0; /* none beyond the last sample */
    const real *z = p.logits + (long long)sample * p.classes;
    const real lowest = -1 / (real)0;
    real mine = lowest;
    for (int c = lane; c < classes; c += LANES) mine = larger(z[c], mine);
    COMBINED(peak, larger, mine)
    real norm = 0, total = p.labels ? 1 : 0, loss = 0;
    for (int c = lane; c < classes; c += LANES) norm += exp(z[c] - peak);
    COMBINED(whole, sum_of, norm)
    if (!p.labels) {
        real part = 0;
        for (int c = lane; c < classes; c += LANES) part += p.weights[(long long)sample * p.classes + c];
        COMBINED(all, sum_of, part)
        total = all;
    }
    const real logarithm = log(whole);
    const long long label = p.labels && classes ? (long long)p.labels[sample] : 0;
    const bool known = label >= 0 && label < p.classes;
    for (int c = lane; c < classes; c += LANES) {
        const real shifted = z[c] - peak;
        real t = c == label ? 1 : 0;
        if (!p.labels) t = p.weights[(long long)sample * p.classes + c];
        if (!known) t = 0 * lowest; /* nan */
        if (t != 0) loss += t * (shifted - logarithm);
        p.gradient[(long long)sample * p.classes + c] = (real)p.scale * (exp(shifted) / whole * total - t);
    }
    const auto over_block = [&](real own) { /* the sum of all threads' numbers, for the first one */
        __syncthreads();
        shared[threadIdx.x] = own;
        for (int half = THREADS / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        }
        return shared[0];
    };
    loss = over_block(loss);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = -(real)p.scale * loss;
    if (!p.counters || !is_last(p.counters, gridDim.x)) return; /* the whole block */
    const int count = ((int)gridDim.x - (int)threadIdx.x + THREADS - 1) / THREADS;
    loss = over_block(sum_of_parts(p.partial + threadIdx.x, THREADS, count));
    if (threadIdx.x == 0) *p.total = loss;
}
