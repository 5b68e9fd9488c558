/* Sums of parts without a launch of their own. Each block of a stripe writes its part to memory and counts itself;
 * the one that comes last adds the parts up, in the order of their numbers, whichever block it is. */

/* Whether this block is the last of `parts` blocks that come to a counter, and may read what all of them have
 * written. The last one leaves the counter at 0, for the next launch on its stream. */
static __device__ bool is_last(unsigned *counter, int parts) {
    __shared__ bool last;
    __syncthreads(); /* all threads have written the block's part */
    if (threadIdx.x == 0) {
        __threadfence(); /* the part is seen before the count */
        last = atomicInc(counter, parts - 1) == parts - 1;
        __threadfence(); /* the others' parts are read after it */
    }
    __syncthreads();
    return last;
}

/* from[0] + from[step] + … of `count` numbers, in this order. */
static __device__ real sum_of_parts(const real *from, long long step, int count) {
    real sum = 0;
    #pragma unroll 16
    for (int k = 0; k < count; k++) sum += from[k * step];
    return sum;
}
