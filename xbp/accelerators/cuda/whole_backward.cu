#include "dependent.h"
#include "whole.h"

/* What whole_weights.cu needs for ∂L/∂W, and ∂L/∂x if WANTS_DX. */
extern "C" __global__ void __launch_bounds__(THREADS) whole_backward(const whole p) {
    await_earlier_kernels();
    alignas(16) __shared__ real room[SHARED];
    const int first = blockIdx.x * SAMPLES;
    of_images::load_back(p, room + AT_KERNELS);
    EACH(k, SAMPLES * OUTPUTS) {
        const bool there = first + k / OUTPUTS < p.n;
        room[AT_DELTA + k] = there ? p.dy[(long long)first * OUTPUTS + k] : 0;
    }
    __syncthreads();
    of_vectors::backward(p, first, room, room + AT_VECTORS, room + AT_SUMS);
    for (int s = 0; s < SAMPLES && first + s < p.n; s++) {
        of_images::backward(p, first + s, s == 0, room + AT_KERNELS, room + AT_IMAGES, room + AT_OTHERS,
                            room + s * FLAT, (unsigned char *)(room + AT_PLACES), room + AT_SUMS);
        if (!WANTS_DX) continue;
        const real *const dx = of_images::COUNT ? room + AT_IMAGES : room + s * FLAT;
        EACH(k, INPUTS) p.dx[(first + s) * p.sample + k * p.entry] = dx[k];
        __syncthreads();
    }
}
