#include "dependent.h"
#include "whole.h"
#include "whole_backward.h"

/* What whole_weights.cu needs for ∂L/∂W, and ∂L/∂x if WANTS_DX. */
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) whole_backward(const whole p) {
    await_earlier_kernels();
    alignas(16) __shared__ real room[SHARED];
    const int first = blockIdx.x * SAMPLES;
    of_images::load_back(p, room + BACK_KERNELS);
    EACH(k, SAMPLES * OUTPUTS) {
        const bool there = first + k / OUTPUTS < p.n;
        room[AT_DELTA + k] = there ? p.dy[(long long)first * OUTPUTS + k] : 0;
    }
    __syncthreads();
    backward_of(p, first, room);
}
