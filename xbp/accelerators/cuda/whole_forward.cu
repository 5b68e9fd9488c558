#include "dependent.h"
#include "whole.h"
#include "whole_forward.h"

/* y. */
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) whole_forward(const whole p) {
    await_earlier_kernels();
    alignas(16) __shared__ real room[SHARED];
    forward_of(p, blockIdx.x * SAMPLES, room);
}
