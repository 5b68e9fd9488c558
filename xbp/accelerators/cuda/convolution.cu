/* Convolution, ReLU and max pooling in one pass, and their gradients.
 *
 * Images are stored with the batch innermost, [channel][row][column][image]. Neighbouring threads handle
 * neighbouring images, so that every access is coalesced for any kernel, stride and padding. The kernels
 * are in shared memory; each thread keeps its sums in registers. A pooled gradient is never spread out:
 * each entry's `where` names the one position that it came from, so that a 2×2 maximum leaves a quarter
 * of the work. (An x that receives no gradient is not read, so that its nan does not reach ∂L/∂W.)
 *
 * Sizes are macros, set by compiler options: loops over taps unroll, and `sum` stays in registers. */

struct convolution {
    const real *x, *weight, *bias, *dy;
    real *y, *dx, *partial;
    unsigned char *where; /* the position of y's maximum in its window, or NOWHERE */
    int n;
};

#define NOWHERE 255
#define THREADS 128
#define CREW (TEAMS * THREADS) /* threads of a block */
#define ROOM 4096 /* numbers in shared memory: 16 or 32 KiB */
#define TAPS (KH * KW)
#define PLACES (POOL_H * POOL_W)
#define CHOSEN (RELU || PLACES > 1) /* whether there is a `where` */
#define PATCH_H ((POOL_H - 1) * STRIDE_H + KH) /* height of the windows of an entry of y */
#define PATCH_W ((POOL_W - 1) * STRIDE_W + KW)

/* from[at], or 0 outside. It always loads, so that many loads are in flight at once. */
__device__ inline real read(const real *from, int at, bool inside) {
    const real v = from[inside ? at : 0];
    return inside ? v : 0;
}

/* y and where; each thread computes TILE channels of an entry. Where there are few entries, TEAMS of threads share
 * the channels that an entry's sums are over, and their sums are added in order. */
extern "C" __global__ void __launch_bounds__(CREW) convolve(const convolution p) {
    __shared__ real kernels[ROOM]; /* [channel][tap][output of the tile]; then the teams' sums */
    const int team = threadIdx.x / THREADS, own = threadIdx.x % THREADS;
    const int first = blockIdx.y * TILE, at = blockIdx.x * THREADS + own;
    const int all = ROWS * COLUMNS * p.n, image = at % p.n, window = at / p.n;
    const int top = window / COLUMNS * POOL_H * STRIDE_H - PAD_H;
    const int left = window % COLUMNS * POOL_W * STRIDE_W - PAD_W;
    const int group = ROOM / (TILE * TAPS); /* channels per fill of shared memory */
    real sum[PLACES][TILE];
    for (int k = 0; k < PLACES; k++)
        for (int o = 0; o < TILE; o++) sum[k][o] = p.bias && team == 0 && first + o < O ? p.bias[first + o] : 0;
    for (int begin = 0; begin < C; begin += group) {
        const int channels = C - begin < group ? C - begin : group;
        __syncthreads();
        for (int k = threadIdx.x; k < channels * TAPS * TILE; k += CREW) {
            const int o = first + k % TILE;
            kernels[k] = o < O ? p.weight[(o * C + begin) * TAPS + k / TILE] : 0;
        }
        __syncthreads();
        if (at >= all) continue; /* no return before __syncthreads */
        for (int c = team; c < channels; c += TEAMS) {
            const real *plane = p.x + (begin + c) * H * W * p.n + image;
            real patch[PATCH_H][PATCH_W];
            #pragma unroll
            for (int i = 0; i < PATCH_H; i++)
                #pragma unroll
                for (int j = 0; j < PATCH_W; j++) {
                    const int r = top + i, q = left + j;
                    const bool padding = (PAD_H || PAD_W) && (r < 0 || r >= H || q < 0 || q >= W);
                    patch[i][j] = read(plane, (r * W + q) * p.n, !padding);
                }
            #pragma unroll
            for (int tap = 0; tap < TAPS; tap++) {
                const real *kernel = kernels + (c * TAPS + tap) * TILE;
                #pragma unroll
                for (int k = 0; k < PLACES; k++) {
                    const real v = patch[k / POOL_W * STRIDE_H + tap / KW][k % POOL_W * STRIDE_W + tap % KW];
                    #pragma unroll
                    for (int o = 0; o < TILE; o++) sum[k][o] += v * kernel[o];
                }
            }
        }
    }
    if (TEAMS > 1) {
        __syncthreads();
        #pragma unroll
        for (int k = 0; k < PLACES; k++)
            #pragma unroll
            for (int o = 0; o < TILE; o++)
                if (team > 0) kernels[(((team - 1) * PLACES + k) * TILE + o) * THREADS + own] = sum[k][o];
        __syncthreads();
        if (team > 0) return;
        #pragma unroll
        for (int k = 0; k < PLACES; k++)
            #pragma unroll
            for (int o = 0; o < TILE; o++)
                #pragma unroll
                for (int t = 1; t < TEAMS; t++) sum[k][o] += kernels[(((t - 1) * PLACES + k) * TILE + o) * THREADS + own];
    }
    if (at >= all) return;
    #pragma unroll
    for (int o = 0; o < TILE; o++) {
        if (first + o >= O) return;
        real best = sum[0][o];
        int place = 0;
        #pragma unroll
        for (int k = 1; k < PLACES; k++)
            if (sum[k][o] > best || sum[k][o] != sum[k][o]) best = sum[k][o], place = k; /* nan: the last */
        if (RELU && best <= 0) best = 0, place = NOWHERE;
        p.y[(first + o) * all + at] = best;
        if (CHOSEN) p.where[(first + o) * all + at] = place;
    }
}

/* ∂L/∂x; each thread computes TILE channels of a pixel, from the REACHES windows that can contain it. TEAMS of
 * threads share the outputs that a pixel's sums are over. */
#define REACH(kernel, stride, pool) (((kernel + stride - 1) / stride + pool - 2) / pool + 1)
#define REACH_W REACH(KW, STRIDE_W, POOL_W)
#define REACHES (REACH(KH, STRIDE_H, POOL_H) * REACH_W)

extern "C" __global__ void __launch_bounds__(CREW) convolve_to_input(const convolution p) {
    __shared__ real kernels[ROOM]; /* [output][tap][channel of the tile]; then the teams' sums */
    const int team = threadIdx.x / THREADS, own = threadIdx.x % THREADS;
    const int first = blockIdx.y * TILE, at = blockIdx.x * THREADS + own;
    const int all = H * W * p.n, image = at % p.n, pixel = at / p.n;
    const int h = pixel / W + PAD_H, w = pixel % W + PAD_W;
    const int top = (h < KH ? 0 : (h - KH) / STRIDE_H + 1) / POOL_H;
    const int left = (w < KW ? 0 : (w - KW) / STRIDE_W + 1) / POOL_W;
    const int group = ROOM / (TILE * TAPS);
    real sum[TILE];
    for (int c = 0; c < TILE; c++) sum[c] = 0;
    for (int begin = 0; begin < O; begin += group) {
        const int outputs = O - begin < group ? O - begin : group;
        __syncthreads();
        for (int k = threadIdx.x; k < outputs * TAPS * TILE; k += CREW) {
            const int c = first + k % TILE, tap = k / TILE % TAPS, o = begin + k / TILE / TAPS;
            kernels[k] = c < C ? p.weight[(o * C + c) * TAPS + tap] : 0;
        }
        __syncthreads();
        if (at >= all) continue;
        for (int o = team; o < outputs; o += TEAMS) {
            int places[REACHES];
            real d[REACHES];
            #pragma unroll
            for (int k = 0; k < REACHES; k++) {
                const int row = top + k / REACH_W, column = left + k % REACH_W;
                const bool inside = row < ROWS && column < COLUMNS;
                const int entry = (((begin + o) * ROWS + row) * COLUMNS + column) * p.n + image;
                places[k] = CHOSEN ? p.where[inside ? entry : 0] : 0;
                if (!inside) places[k] = NOWHERE;
                d[k] = read(p.dy, entry, inside);
            }
            #pragma unroll
            for (int k = 0; k < REACHES; k++) {
                const int i = h - ((top + k / REACH_W) * POOL_H + places[k] / POOL_W) * STRIDE_H;
                const int j = w - ((left + k % REACH_W) * POOL_W + places[k] % POOL_W) * STRIDE_W;
                if (places[k] == NOWHERE || i < 0 || i >= KH || j < 0 || j >= KW) continue;
                #pragma unroll
                for (int c = 0; c < TILE; c++) sum[c] += d[k] * kernels[(o * TAPS + i * KW + j) * TILE + c];
            }
        }
    }
    __syncthreads();
    #pragma unroll
    for (int c = 0; c < TILE; c++)
        if (team > 0) kernels[((team - 1) * TILE + c) * THREADS + own] = sum[c];
    __syncthreads();
    if (team > 0 || at >= all) return;
    #pragma unroll
    for (int c = 0; c < TILE; c++) {
        #pragma unroll
        for (int t = 1; t < TEAMS; t++) sum[c] += kernels[((t - 1) * TILE + c) * THREADS + own];
        if (first + c < C) p.dx[(first + c) * all + at] = sum[c];
    }
}

/* ∂L/∂W and ∂L/∂b: one block for each LINES rows of taps of a kernel (o, c), and part of the entries. Its threads'
 * sums are added pairwise in a fixed order, the parts' sums by `add_up`. */
#define STRIPES ((KH + LINES - 1) / LINES)
#define SUMS (LINES * KW + 1) /* the last one is for the bias */

extern "C" __global__ void __launch_bounds__(THREADS) convolve_to_weight(const convolution p) {
    __shared__ real sums[ROOM];
    const int top = blockIdx.x % STRIPES * LINES, c = blockIdx.x / STRIPES % C, o = blockIdx.x / STRIPES / C;
    const int all = ROWS * COLUMNS * p.n;
    real sum[SUMS];
    for (int k = 0; k < SUMS; k++) sum[k] = 0;
    #pragma unroll 1
    for (int at = blockIdx.y * THREADS + threadIdx.x; at < all; at += gridDim.y * THREADS) {
        const int image = at % p.n, window = at / p.n, place = CHOSEN ? p.where[o * all + at] : 0;
        const real d = place == NOWHERE ? 0 : p.dy[o * all + at];
        const int first = (window / COLUMNS * POOL_H + place / POOL_W) * STRIDE_H - PAD_H + top;
        const int left = (window % COLUMNS * POOL_W + place % POOL_W) * STRIDE_W - PAD_W;
        const real *corner = p.x + image + ((c * H + first) * W + left) * p.n;
        #pragma unroll
        for (int k = 0; k < LINES * KW; k++) {
            const int r = first + k / KW, q = left + k % KW;
            const bool padding = (PAD_H || PAD_W) && (r < 0 || r >= H || q < 0 || q >= W);
            const bool inside = place != NOWHERE && top + k / KW < KH && !padding;
            const real v = *(inside ? corner + (k / KW * W + k % KW) * p.n : p.x); /* it always loads */
            sum[k] += d * (inside ? v : 0);
        }
        sum[SUMS - 1] += d;
    }
    #pragma unroll
    for (int k = 0; k < SUMS; k++) sums[k * THREADS + threadIdx.x] = sum[k];
    #pragma unroll
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int e = threadIdx.x; e < SUMS * half; e += THREADS) {
            real *const to = sums + e / half * THREADS + e % half;
            *to += to[half];
        }
    }
    /* Thread k has added up sum k. */
    real *const to = p.partial + blockIdx.y * (O * C * TAPS + O);
    const int tap = top * KW + threadIdx.x;
    if (threadIdx.x < LINES * KW && tap < TAPS) to[(o * C + c) * TAPS + tap] = sums[threadIdx.x * THREADS];
    if (threadIdx.x == LINES * KW && c == 0 && top == 0) to[O * C * TAPS + o] = sums[threadIdx.x * THREADS];
}
