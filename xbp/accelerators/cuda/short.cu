/* Numbers of float32, rounded to a format of 16 bits and stored as its bits: one pass over memory. */

#include "dependent.h"
#include "several.h"
#include "activations.h"

struct shortening {
    const float *x;
    unsigned short *to;
    long long size; /* a multiple of VECTOR */
};

#define THREADS 256

struct float16 {
    static __device__ unsigned short of(float x) {
        const float near = round_to_float16::of(x);
        const unsigned all = __float_as_uint(near), sign = all >> 16 & 0x8000, size = all & 0x7fffffff;
        if (size >= 0x7f800000) return sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00); /* nan, infinity */
        if (size < 0x38800000) return sign | (unsigned)(fabsf(near) * 0x1p24f); /* below 2^-14: multiples of 2^-24 */
        return sign | (size - 0x38000000) >> 13; /* exponents are offset by 15 in place of 127 */
    }
};

struct bfloat16 {
    static __device__ unsigned short of(float x) {
        const unsigned all = __float_as_uint(round_to_bfloat16::of(x));
        /* The upper half of a nan could be that of infinity. */
        return all >> 16 | ((all & 0x7fffffff) > 0x7f800000 ? 0x40 : 0);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) shorten(const shortening p) {
    await_earlier_kernels();
    for (long long i = ((long long)blockIdx.x * THREADS + threadIdx.x) * VECTOR; i < p.size;
         i += (long long)gridDim.x * THREADS * VECTOR) {
        const several<VECTOR> v = *(const several<VECTOR> *)(p.x + i);
        struct alignas(2 * VECTOR) {
            unsigned short at[VECTOR];
        } bits;
        #pragma unroll
        for (int j = 0; j < VECTOR; j++) bits.at[j] = FORMAT::of(v.at[j]);
        *(decltype(bits) *)(p.to + i) = bits;
    }
}
