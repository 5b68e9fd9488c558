/* Elementwise functions: one pass over memory, VECTOR numbers with a load. */

#include "dependent.h"
#include "several.h"
#include "activations.h"

struct activation {
    const real *x; /* in the backward y, if ACTIVATION keeps that */
    const real *dy; /* or another term of a sum */
    real *to;
    long long size; /* a multiple of VECTOR */
};

#define THREADS 256
#define EACH(i)                                                                                       \
    for (long long i = ((long long)blockIdx.x * THREADS + threadIdx.x) * VECTOR; i < p.size;          \
         i += (long long)gridDim.x * THREADS * VECTOR)

extern "C" __global__ void __launch_bounds__(THREADS) activate(const activation p) {
    await_earlier_kernels();
    EACH(i) {
        several<VECTOR> v = *(const several<VECTOR> *)(p.x + i);
        #pragma unroll
        for (int j = 0; j < VECTOR; j++) v.at[j] = ACTIVATION::of(v.at[j]);
        *(several<VECTOR> *)(p.to + i) = v;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) activate_to_input(const activation p) {
    await_earlier_kernels();
    EACH(i) {
        const several<VECTOR> v = *(const several<VECTOR> *)(p.x + i);
        several<VECTOR> d = *(const several<VECTOR> *)(p.dy + i);
        #pragma unroll
        for (int j = 0; j < VECTOR; j++) d.at[j] = ACTIVATION::through(v.at[j], d.at[j]);
        *(several<VECTOR> *)(p.to + i) = d;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) add(const activation p) {
    await_earlier_kernels();
    EACH(i) {
        several<VECTOR> sum = *(const several<VECTOR> *)(p.x + i);
        const several<VECTOR> other = *(const several<VECTOR> *)(p.dy + i);
        #pragma unroll
        for (int j = 0; j < VECTOR; j++) sum.at[j] += other.at[j];
        *(several<VECTOR> *)(p.to + i) = sum;
    }
}
