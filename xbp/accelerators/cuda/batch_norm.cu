/* Batch normalization, then ACTIVATION, of x [outer][channel][inner], in two passes each way: sums, then entries.
 *
 *     forward    the moments of each channel;    y = f(w x̂ + b), with x̂ = (x - μ) r
 *     backward   Σ δ x̂ and Σ δ;                  ∂L/∂x = w r (δ - (Σ δ + x̂ Σ δ x̂) / n)
 *
 * with δ = f′(w x̂ + b) ∂L/∂y, computed anew in place of being stored. The numbers of a channel are shared by
 * `parts` blocks, so that few channels keep many multiprocessors busy. Each block of the second pass adds the
 * sums of all parts, in the same fixed order.
 *
 * A block has THREADS / SIDE threads for each of SIDE neighbouring channels: for one where a channel's numbers are
 * neighbours in memory, else for 32, so that the threads of a warp read neighbours. */

#include "dependent.h"
#include "several.h"
#include "activations.h"

struct batch_norm {
    const real *x, *dy, *weight, *bias;
    const real *mean, *variance; /* running ones, or NULL for those of the batch */
    real *y, *dx, *partial;
    real *known; /* [5][channel]: a number k near the mean, μ - k, r, μ, the variance */
    real *sums;  /* [2][channel]: Σ δ x̂, Σ δ */
    double eps;
    int outer, channels, inner, parts;
};

#define THREADS 256
#define ROWS (THREADS / SIDE) /* threads of a channel */
#define LOADS (VECTOR > 1 ? 2 : 4) /* at once */

/* The numbers of a thread. Those of a channel are numbered in units of VECTOR. */
struct share {
    int channel, first, step, units;

    __device__ share(const batch_norm &p) {
        channel = blockIdx.y * SIDE + threadIdx.x % SIDE;
        first = blockIdx.x * ROWS + threadIdx.x / SIDE;
        step = gridDim.x * ROWS;
        units = channel < p.channels ? p.outer * (p.inner / VECTOR) : 0;
    }
    __device__ int at(const batch_norm &p, int unit) const {
        const unsigned i = unit * VECTOR, o = p.outer == 1 ? 0 : i / (unsigned)p.inner;
        return (o * p.channels + channel) * p.inner + (i - o * p.inner);
    }
};

/* The total of the first `rows` threads of each channel, added pairwise, for all of them. */
template <typename sum> __device__ sum total_of(sum mine, sum *shared, int rows) {
    shared[threadIdx.x] = mine;
    for (int half = THREADS / 2; half >= SIDE; half /= 2) {
        if (half >= rows * SIDE) continue; /* nothing there */
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] = shared[threadIdx.x] + shared[threadIdx.x + half];
    }
    __syncthreads();
    return shared[threadIdx.x % SIDE];
}

/* A first pass's result of each part, and their total in the second pass. */
template <typename sum> __device__ void keep(const batch_norm &p, const share &own, sum total) {
    if (threadIdx.x < SIDE && own.units) ((sum *)p.partial)[own.channel * p.parts + blockIdx.x] = total;
}
template <typename sum> __device__ sum total_of_parts(const batch_norm &p, const share &own, sum *shared) {
    sum mine = {};
    for (int part = threadIdx.x / SIDE; part < p.parts && own.units; part += ROWS)
        mine = mine + ((const sum *)p.partial)[own.channel * p.parts + part];
    return total_of(mine, shared, p.parts);
}

/* Of n numbers u = x - k: Σ u and Σ (u - mean u)². They are combined without cancellation (Chan, Golub & LeVeque
 * 1983, eq. 2.1). With a number k of the same channel, a mean far from 0 costs no precision. */
struct moments {
    real n, sum, squares;
};
__device__ inline moments operator+(const moments &a, const moments &b) {
    if (a.n == 0) return b;
    if (b.n == 0) return a;
    const real n = a.n + b.n, apart = a.sum / a.n - b.sum / b.n;
    return {n, a.sum + b.sum, a.squares + b.squares + apart * apart * (a.n * b.n / n)};
}

/* k: the channel's first number, if that is finite. */
__device__ inline real near_mean(const batch_norm &p, const share &own) {
    const real k = own.units ? p.x[(long long)own.channel * p.inner] : 0;
    return k - k == 0 ? k : 0;
}

extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_moments(const batch_norm p) {
    await_earlier_kernels();
    __shared__ moments shared[THREADS];
    const share own(p);
    const real k = near_mean(p, own);
    moments mine = {};
    for (int unit = own.first; unit < own.units; unit += LOADS * own.step) {
        several<VECTOR> u[LOADS];
        moments some = {};
        #pragma unroll
        for (int l = 0; l < LOADS; l++)
            if (unit + l * own.step < own.units) u[l] = *(const several<VECTOR> *)(p.x + own.at(p, unit + l * own.step));
        #pragma unroll
        for (int l = 0; l < LOADS; l++) {
            if (unit + l * own.step >= own.units) continue;
            some.n += VECTOR;
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) some.sum += u[l].at[j] -= k;
        }
        const real mean = some.sum / some.n;
        #pragma unroll
        for (int l = 0; l < LOADS; l++) {
            if (unit + l * own.step >= own.units) continue;
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) some.squares += (u[l].at[j] - mean) * (u[l].at[j] - mean);
        }
        mine = mine + some;
    }
    keep(p, own, total_of(mine, shared, ROWS));
}

/* What normalizes a channel. Rounded alike in every kernel, so that f has the same slope and value everywhere. */
struct channel {
    real k, mean, r, weight, bias;

    __device__ channel(const batch_norm &p, const share &own) {
        weight = p.weight && own.units ? p.weight[own.channel] : 1;
        bias = p.bias && own.units ? p.bias[own.channel] : 0;
    }
    __device__ void recall(const batch_norm &p, const share &own) {
        const real *const known = p.known + (own.units ? own.channel : 0);
        k = known[0], mean = known[p.channels], r = known[2 * p.channels];
    }
    __device__ real normal(real x) const { return (x - k - mean) * r; }
    __device__ real scaled(real normal) const { return fma(weight, normal, bias); }
    __device__ real through(real normal, real d) const {
        const real z = scaled(normal);
        return ACTIVATION::through(ACTIVATION::KEEPS_Y ? ACTIVATION::of(z) : z, d);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) batch_normalize(const batch_norm p) {
    await_earlier_kernels();
    __shared__ moments shared[THREADS];
    const share own(p);
    channel c(p, own);
    real variance;
    if (p.mean) {
        c.k = own.units ? p.mean[own.channel] : 0, c.mean = 0;
        variance = own.units ? p.variance[own.channel] : 1;
    } else {
        const moments all = total_of_parts(p, own, shared);
        c.k = near_mean(p, own), c.mean = all.sum / all.n, variance = all.squares / all.n;
    }
    c.r = 1 / sqrt(variance + (real)p.eps);
    if (blockIdx.x == 0 && threadIdx.x < SIDE && own.units) {
        const real known[] = {c.k, c.mean, c.r, c.k + c.mean, variance};
        #pragma unroll
        for (int i = 0; i < 5; i++) p.known[i * p.channels + own.channel] = known[i];
    }
    for (int unit = own.first; unit < own.units; unit += LOADS * own.step) {
        several<VECTOR> x[LOADS];
        #pragma unroll
        for (int l = 0; l < LOADS; l++)
            if (unit + l * own.step < own.units) x[l] = *(const several<VECTOR> *)(p.x + own.at(p, unit + l * own.step));
        #pragma unroll
        for (int l = 0; l < LOADS; l++) {
            if (unit + l * own.step >= own.units) continue;
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) x[l].at[j] = ACTIVATION::of(c.scaled(c.normal(x[l].at[j])));
            *(several<VECTOR> *)(p.y + own.at(p, unit + l * own.step)) = x[l];
        }
    }
}

struct products {
    real along, level; /* Σ δ x̂, Σ δ */
};
__device__ inline products operator+(const products &a, const products &b) {
    return {a.along + b.along, a.level + b.level};
}

/* x and ∂L/∂y of LOADS units. */
#define FETCH(x, d)                                                                                   \
    several<VECTOR> x[LOADS], d[LOADS];                                                               \
    _Pragma("unroll") for (int l = 0; l < LOADS; l++) {                                               \
        if (unit + l * own.step >= own.units) continue;                                               \
        const int at = own.at(p, unit + l * own.step);                                                \
        x[l] = *(const several<VECTOR> *)(p.x + at);                                                  \
        d[l] = *(const several<VECTOR> *)(p.dy + at);                                                 \
    }

extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_products(const batch_norm p) {
    await_earlier_kernels();
    __shared__ products shared[THREADS];
    const share own(p);
    channel c(p, own);
    c.recall(p, own);
    products mine = {};
    for (int unit = own.first; unit < own.units; unit += LOADS * own.step) {
        FETCH(x, d)
        #pragma unroll
        for (int l = 0; l < LOADS; l++) {
            if (unit + l * own.step >= own.units) continue;
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                const real normal = c.normal(x[l].at[j]), delta = c.through(normal, d[l].at[j]);
                mine.along += delta * normal, mine.level += delta;
            }
        }
    }
    keep(p, own, total_of(mine, shared, ROWS));
}

/* ∂L/∂w, ∂L/∂b, and ∂L/∂x unless dx is NULL. */
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_to_input(const batch_norm p) {
    await_earlier_kernels();
    __shared__ products shared[THREADS];
    const share own(p);
    channel c(p, own);
    const products all = total_of_parts(p, own, shared);
    if (blockIdx.x == 0 && threadIdx.x < SIDE && own.units) {
        p.sums[own.channel] = all.along;
        p.sums[p.channels + own.channel] = all.level;
    }
    if (!p.dx) return;
    c.recall(p, own);
    const real n = (real)p.outer * p.inner, scale = c.weight * c.r;
    const real along = p.mean ? 0 : all.along / n, level = p.mean ? 0 : all.level / n;
    for (int unit = own.first; unit < own.units; unit += LOADS * own.step) {
        FETCH(x, d)
        #pragma unroll
        for (int l = 0; l < LOADS; l++) {
            if (unit + l * own.step >= own.units) continue;
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                const real normal = c.normal(x[l].at[j]), delta = c.through(normal, d[l].at[j]);
                d[l].at[j] = (p.mean ? delta : delta - level - normal * along) * scale;
            }
            *(several<VECTOR> *)(p.dx + own.at(p, unit + l * own.step)) = d[l];
        }
    }
}

/* The update of running statistics: count + 1, and both averages moved by a share of the new values. */
struct tracking {
    real *mean, *variance;
    const real *new_mean, *new_variance;
    long long *count;
    double share, correction; /* correction: n / (n - 1), of the new variance */
    int channels;
};

extern "C" __global__ void __launch_bounds__(THREADS) track(const tracking p) {
    await_earlier_kernels();
    const int at = blockIdx.x * THREADS + threadIdx.x;
    const real share = (real)p.share, kept = (real)(1 - p.share);
    if (at == 0) *p.count += 1;
    if (at >= p.channels) return;
    p.mean[at] = kept * p.mean[at] + share * p.new_mean[at];
    p.variance[at] = kept * p.variance[at] + (real)(p.share * p.correction) * p.new_variance[at];
}
