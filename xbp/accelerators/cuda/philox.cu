/* Philox-4x32-10 (Salmon et al. 2011): one thread for each block of four words. */

#include "dependent.h"

#define THREADS 256

struct word { /* `value`, or a number on the device */
    const long long *at;
    long long value;
};

struct philox_task {
    long long *to, size;
    word counter[3];
    unsigned key[2];
};

__device__ inline unsigned read(const word &it) { return (unsigned)(it.at ? *it.at : it.value); }

extern "C" __global__ void __launch_bounds__(THREADS) philox(const philox_task p) {
    await_earlier_kernels();
    const long long block = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (4 * block >= p.size) return;
    unsigned c[4] = {(unsigned)block, read(p.counter[0]), read(p.counter[1]), read(p.counter[2])};
    unsigned k0 = p.key[0], k1 = p.key[1];
    #pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        c[0] = (unsigned)(b >> 32) ^ c[1] ^ k0;
        c[1] = (unsigned)b;
        c[2] = (unsigned)(a >> 32) ^ c[3] ^ k1;
        c[3] = (unsigned)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    #pragma unroll
    for (int k = 0; k < 4; k++)
        if (4 * block + k < p.size) p.to[4 * block + k] = c[k];
}
