/* What whole_weights.cu needs for ∂L/∂W, and ∂L/∂x if WANTS_DX, from ∂L/∂y at AT_DELTA. Other arrays begin at the places
 * BACK_… of `room`. */
__device__ inline void backward_of(const whole &p, int first, real *room) {
    of_vectors::backward(p, first, room, room + AT_VECTORS, room + BACK_SUMS);
    for (int s = 0; s < SAMPLES && first + s < p.n; s++) {
        of_images::backward(p, first + s, s == 0, room + BACK_KERNELS, room + BACK_IMAGES, room + BACK_OTHERS,
                            room + s * FLAT, (unsigned char *)(room + BACK_PLACES), room + BACK_SUMS);
        if (!WANTS_DX) continue;
        const real *const dx = of_images::COUNT ? room + BACK_IMAGES : room + s * FLAT;
        EACH(k, INPUTS) p.dx[(first + s) * p.sample + k * p.entry] = dx[k];
        __syncthreads();
    }
}
