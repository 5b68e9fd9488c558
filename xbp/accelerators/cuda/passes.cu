/* Updates of arrays: one pass over memory each, for several arrays in one launch. */

#include "dependent.h"

#define THREADS 256
#define MOST 64 /* arrays in one launch */

#include "rows.h"

struct arrays {
    real *to, *a, *b;
    const real *c;
    long long size;
};

struct number { /* `value`, or a number on the device that may change between replays of a graph */
    const void *at;
    double value;
    long long bytes;
};

struct pass {
    arrays of[MOST];
    number s, t, u, v, w;
    taking rider; /* rows that a block beyond the arrays' appends, if */
    int riding;
};

/* Whether this block is beyond those of the arrays. The first such block appends rows. */
__device__ inline bool rides(const pass &p) {
    if (!p.riding || blockIdx.y + 1 < gridDim.y) return false;
    if (blockIdx.x == 0) append_rows(p.rider);
    return true;
}

__device__ inline double read(const number &it) {
    return !it.at ? it.value : it.bytes == 4 ? *(const float *)it.at : *(const double *)it.at;
}

/* A grid-stride loop: entry i, i + step, … for each thread. */
#define ENTRIES(i)                                                                                    \
    const long long step = (long long)gridDim.x * THREADS;                                            \
    for (long long i = (long long)blockIdx.x * THREADS + threadIdx.x; i < of.size; i += step)

#define PASS(name, what)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const pass p) {                        \
        await_earlier_kernels();                                                                      \
        if (rides(p)) return;                                                                         \
        const arrays of = p.of[blockIdx.y];                                                           \
        const real s = (real)read(p.s), t = (real)read(p.t), u = (real)read(p.u);                     \
        (void)s, (void)t, (void)u;                                                                    \
        ENTRIES(i) what;                                                                              \
    }

PASS(add_scaled, of.to[i] += s * of.a[i])
PASS(plus_scaled, of.to[i] = of.a[i] + s * of.b[i])
PASS(accumulate, of.to[i] = s * of.to[i] + t * of.a[i])
PASS(rescale, of.to[i] *= s)
PASS(average, of.to[i] = s * of.to[i] + (real)(1 - read(p.s)) * of.a[i])
PASS(average_product, of.to[i] = s * of.to[i] + (real)(1 - read(p.s)) * of.a[i] * of.b[i])
PASS(normalized_step, of.to[i] -= s * of.a[i] / (t * sqrt(of.b[i]) + u))

/* Adam: a ← s a + (1 - s) c, b ← t b + (1 - t) c², to ← to - u a / (v √b + w). */
extern "C" __global__ void __launch_bounds__(THREADS) adaptive_step(const pass p) {
    await_earlier_kernels();
    if (rides(p)) return;
    const arrays of = p.of[blockIdx.y];
    const double s = read(p.s), t = read(p.t);
    const real rate = (real)read(p.u), scale = (real)read(p.v), eps = (real)read(p.w);
    ENTRIES(i) {
        const real c = of.c[i];
        const real a = (real)s * of.a[i] + (real)(1 - s) * c;
        const real b = (real)t * of.b[i] + (real)(1 - t) * c * c;
        of.a[i] = a, of.b[i] = b, of.to[i] -= rate * a / (scale * sqrt(b) + eps);
    }
}

/* to[i] = Σ_k a[k · size + i] over s rows: with w warps in a block each warp adds every w-th row, in order,
 * and then the warps' sums are added in order. */
#define LINE 32 /* neighbouring entries, one for each thread of a warp */
#define MOST_THREADS 1024

extern "C" __global__ void __launch_bounds__(MOST_THREADS) add_up(const pass p) {
    await_earlier_kernels();
    __shared__ real sums[MOST_THREADS];
    const arrays of = p.of[0];
    const int rows = (int)p.s.value, warps = blockDim.x / LINE;
    const int lane = threadIdx.x % LINE, warp = threadIdx.x / LINE;
    for (long long first = blockIdx.x * LINE; first < of.size; first += gridDim.x * LINE) {
        const long long i = first + lane;
        real sum = 0;
        #pragma unroll 8
        for (int k = warp; k < rows; k += warps) sum += i < of.size ? of.a[k * of.size + i] : 0;
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (warp == 0 && i < of.size) {
            real total = 0;
            #pragma unroll 8
            for (int k = 0; k < warps; k++) total += sums[k * LINE + lane];
            of.to[i] = total;
        }
        __syncthreads();
    }
}
