#include "dependent.h"
#include "whole.h"
#include "whole_forward.h"
#include "whole_loss.h"
#include "whole_backward.h"

/* y, the blocks' parts of the loss, and what whole_weights.cu needs for ∂L/∂W. Vectors have the same places in both
 * directions. The backward's kernels may lie where the forward had images. The backward of vectors waits before it writes
 * where losses are. */
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) whole_step(const whole p) {
    await_earlier_kernels();
    alignas(16) __shared__ real room[SHARED];
    const int first = blockIdx.x * SAMPLES;
    forward_of(p, first, room);
    of_images::load_back(p, room + BACK_KERNELS);
    to_loss(p, first, room + AT_DELTA, room + AT_LOSSES);
    backward_of(p, first, room);
}
