/* KIND(W x + b) for SAMPLES vectors in shared memory, [sample][entry], so that each weight that is read serves all of
 * them. Weights come from the second-level cache, by loads of VECTOR neighbours. */
template <int IN, int OUT, int VECTOR, int AT_ONCE, int TEAMS, typename KIND> struct linear {
    enum { WARP = 32, WARPS = THREADS / WARP };

    /* A warp computes AT_ONCE outputs; each lane has a share of their terms. */
    static __device__ void forward(const real *from, real *to, const whole_layer &p, int first, int n) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        for (int begin = warp * AT_ONCE; begin < OUT; begin += WARPS * AT_ONCE) {
            real sum[AT_ONCE][SAMPLES] = {};
            #pragma unroll 2
            for (int i = lane * VECTOR; i < IN; i += WARP * VECTOR) {
                several<VECTOR> w[AT_ONCE];
                #pragma unroll
                for (int k = 0; k < AT_ONCE; k++) {
                    const int o = begin + k < OUT ? begin + k : OUT - 1; /* it always loads */
                    w[k] = *(const several<VECTOR> *)(p.weight + o * IN + i);
                }
                #pragma unroll
                for (int s = 0; s < SAMPLES; s++) {
                    const several<VECTOR> a = *(const several<VECTOR> *)(from + s * IN + i);
                    #pragma unroll
                    for (int k = 0; k < AT_ONCE; k++)
                        #pragma unroll
                        for (int v = 0; v < VECTOR; v++) sum[k][s] += w[k].at[v] * a.at[v];
                }
            }
            #pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                #pragma unroll
                for (int s = 0; s < SAMPLES; s++) {
                    #pragma unroll
                    for (int half = WARP / 2; half > 0; half /= 2)
                        sum[k][s] += __shfl_xor_sync(0xFFFFFFFF, sum[k][s], half);
                    if (lane != (k * SAMPLES + s) % WARP || begin + k >= OUT) continue;
                    const real y = KIND::of(sum[k][s] + (p.bias ? p.bias[begin + k] : 0));
                    to[s * OUT + begin + k] = y;
                    if (first + s < n) p.y[(long long)(first + s) * OUT + begin + k] = y;
                }
        }
    }

    /* ∂L/∂(W x + b), which is kept for ∂L/∂W, and ∂L/∂x: a thread computes VECTOR entries; TEAMS of threads share the
     * outputs that their sums are over. */
    template <bool WANTED>
    static __device__ void backward(real *delta, real *to, real *sums, const whole_layer &p, int first, int n) {
        EACH(k, SAMPLES * OUT) {
            const bool there = first + k / OUT < n;
            const long long at = (long long)first * OUT + k;
            const real d = KIND::through(p.y[there ? at : 0], delta[k]); /* beyond the last sample delta is 0 */
            delta[k] = d;
            if (there) p.delta[at] = d;
        }
        if (!WANTED) return;
        __syncthreads();
        EACH(item, IN / VECTOR * TEAMS) {
            const int i = item % (IN / VECTOR) * VECTOR, team = item / (IN / VECTOR);
            real sum[SAMPLES][VECTOR] = {};
            #pragma unroll 8
            for (int o = team; o < OUT; o += TEAMS) {
                const several<VECTOR> w = *(const several<VECTOR> *)(p.weight + o * IN + i);
                #pragma unroll
                for (int s = 0; s < SAMPLES; s++)
                    #pragma unroll
                    for (int v = 0; v < VECTOR; v++) sum[s][v] += delta[s * OUT + o] * w.at[v];
            }
            real *const into = TEAMS == 1 ? to : sums + team * SAMPLES * IN;
            #pragma unroll
            for (int s = 0; s < SAMPLES; s++)
                #pragma unroll
                for (int v = 0; v < VECTOR; v++) into[s * IN + i + v] = sum[s][v];
        }
        if (TEAMS == 1) return;
        __syncthreads();
        EACH(e, SAMPLES * IN) {
            real total = 0;
            for (int team = 0; team < TEAMS; team++) total += sums[team * SAMPLES * IN + e];
            to[e] = total;
        }
    }
};
