/* y of a block's samples. Arrays begin at the places AT_… of `room`, that of the images' result, or of vectors, at 0. */
__device__ inline void forward_of(const whole &p, int first, real *room) {
    of_images::load(p, room + AT_KERNELS);
    for (int s = 0; s < SAMPLES; s++) {
        real *const to = of_images::COUNT ? room + AT_IMAGES : room + s * FLAT;
        const int sample = first + s;
        if (of_images::COUNT && sample >= p.n) {
            EACH(k, FLAT) room[s * FLAT + k] = 0;
            continue;
        }
        EACH(k, INPUTS) to[k] = sample < p.n ? p.x[sample * p.sample + k * p.entry] : 0;
        if (!of_images::COUNT) continue;
        __syncthreads();
        of_images::forward(p, sample, room + AT_KERNELS, to, room + AT_OTHERS, room + s * FLAT, room + AT_SUMS);
    }
    __syncthreads();
    of_vectors::forward(p, first, room, room + AT_VECTORS);
}
