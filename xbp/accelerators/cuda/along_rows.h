/* Rows of a matrix: LANES threads, a warp or a block, share a row, and combine their results pairwise. */

#define THREADS 256
#define ROWS (THREADS / LANES) /* of a block */

struct larger { /* nan is the largest */
    static __device__ real of(real a, real b) { return a > b || a != a ? a : b; }
};
struct adding {
    static __device__ real of(real a, real b) { return a + b; }
};

__device__ inline void wait_for_row() {
    if (LANES > 32) __syncthreads();
    else __syncwarp();
}

/* The results of all threads of a row in one, for each of them. */
template <typename how> __device__ real over_row(real mine, real *shared) {
    const int lane = threadIdx.x % LANES;
    wait_for_row();
    shared[threadIdx.x] = mine;
    for (int half = LANES / 2; half > 0; half /= 2) {
        wait_for_row();
        if (lane < half) shared[threadIdx.x] = how::of(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    wait_for_row();
    return shared[threadIdx.x - lane];
}
