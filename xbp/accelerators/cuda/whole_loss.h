/* Softmax and cross-entropy of SAMPLES rows of logits z, [sample][class]: ∂L/∂z takes their place, and the block's part
 * of L is written. A warp takes a row; `losses` has room for a number of each. */

__device__ inline real larger(real a, real b) { return a > b || a != a ? a : b; }

__device__ inline void to_loss(const whole &p, int first, real *z, real *losses) {
    constexpr int WARP = 32;
    const int lane = threadIdx.x % WARP;
    const real lowest = -1 / (real)0;
    for (int s = threadIdx.x / WARP; s < SAMPLES; s += THREADS / WARP) {
        const bool there = first + s < p.n;
        real *const row = z + s * OUTPUTS;
        real peak = lowest, norm = 0, loss = 0;
        for (int c = lane; c < OUTPUTS; c += WARP) peak = larger(row[c], peak);
        #pragma unroll
        for (int half = WARP / 2; half > 0; half /= 2) peak = larger(peak, __shfl_xor_sync(0xFFFFFFFF, peak, half));
        for (int c = lane; c < OUTPUTS; c += WARP) norm += exp(row[c] - peak);
        #pragma unroll
        for (int half = WARP / 2; half > 0; half /= 2) norm += __shfl_xor_sync(0xFFFFFFFF, norm, half);
        const real logarithm = log(norm);
        const long long label = there ? (long long)((const LABEL *)p.labels)[first + s] : 0;
        const bool known = label >= 0 && label < OUTPUTS;
        for (int c = lane; c < OUTPUTS; c += WARP) {
            const real shifted = row[c] - peak;
            const real t = known ? (real)(c == label) : 0 * lowest; /* nan */
            if (t != 0) loss += t * (shifted - logarithm);
            row[c] = there ? (real)p.scale * (exp(shifted) / norm - t) : 0;
        }
        #pragma unroll
        for (int half = WARP / 2; half > 0; half /= 2) loss += __shfl_xor_sync(0xFFFFFFFF, loss, half);
        if (lane == 0) losses[s] = there ? loss : 0;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    real total = 0;
    for (int s = 0; s < SAMPLES; s++) total += losses[s];
    p.loss[blockIdx.x * p.row] = -(real)p.scale * total;
}
