/* Convolution, ReLU and max pooling in one pass, and their gradients.
 *
 * Images are stored with the batch innermost, [channel][row][column][image]. Neighbouring threads handle
 * neighbouring images, so that every access is coalesced for any kernel, stride and padding. The kernels
 * are in shared memory; each thread keeps its sums in registers. A pooled gradient is never spread out
 * in memory: each entry's `where` names the one position that it came from.
 *
 * Sizes are macros, set by compiler options: loops over taps unroll, and `sum` stays in registers. */

struct convolution {
    const real *x, *weight, *bias, *dy;
    real *y, *dx, *partial, *total; /* total: the sum of the parts, if there are counters */
    unsigned *counters;
    unsigned char *where; /* the position of y's maximum in its window, or NOWHERE */
    int n;
};

#include "dependent.h"
#include "several.h"
#include "last.h"

#define NOWHERE 255
#define THREADS 128
#define LANES (16 / sizeof(real)) /* numbers of a load from shared memory */
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
    await_earlier_kernels();
    alignas(16) __shared__ real kernels[ROOM]; /* [channel][tap][output of the tile]; then the teams' sums */
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

/* ∂L/∂x; each thread computes TILE channels of a block of pixels, from the windows that can contain one of them.
 * The block's sides are a step from window to window, so that each tap of each window meets a known pixel of it: the
 * gradient of an entry counts for the tap at its `where`, as 0 for the others. A block that would be too large is
 * one pixel instead, and `where` says which tap meets it. TEAMS of threads share the outputs that a pixel's sums are
 * over. */
#define STEP_H (POOL_H * STRIDE_H)
#define STEP_W (POOL_W * STRIDE_W)
#define ALIGNED (BLOCK_H == STEP_H && BLOCK_W == STEP_W)
#define SPOTS (BLOCK_H * BLOCK_W) /* pixels of a thread */
#define REACH(kernel, stride, pool) \
    (ALIGNED ? (kernel - 1 + (pool - 1) * stride) / (pool * stride) + 1 \
             : ((kernel + stride - 1) / stride + pool - 2) / pool + 1)
#define REACH_H REACH(KH, STRIDE_H, POOL_H)
#define REACH_W REACH(KW, STRIDE_W, POOL_W)
#define REACHES (REACH_H * REACH_W)
#define FIRST_OF(at, kernel, stride, pool) /* windows that reach `at`: the first of them, or of REACH if aligned */ \
    (ALIGNED ? at / (pool * stride) + 1 - REACH(kernel, stride, pool) \
             : (at < kernel ? 0 : (at - kernel) / stride + 1) / pool)
#define BLOCKS(size, pad, block) ((size - 1 + pad) / block - pad / block + 1) /* along an axis of x */
#define PADDED ((TILE + LANES - 1) / LANES * LANES) /* channels of the tile, in whole loads */

extern "C" __global__ void __launch_bounds__(CREW) convolve_to_input(const convolution p) {
    await_earlier_kernels();
    alignas(16) __shared__ real kernels[ROOM]; /* [output][tap][channel of the tile]; then the teams' sums */
    const int team = threadIdx.x / THREADS, own = threadIdx.x % THREADS;
    const int first = blockIdx.y * TILE, at = blockIdx.x * THREADS + own;
    const int across = BLOCKS(W, PAD_W, BLOCK_W), all = BLOCKS(H, PAD_H, BLOCK_H) * across * p.n;
    const int image = at % p.n, block = at / p.n;
    const int h = (block / across + PAD_H / BLOCK_H) * BLOCK_H, w = (block % across + PAD_W / BLOCK_W) * BLOCK_W;
    const int top = FIRST_OF(h, KH, STRIDE_H, POOL_H), left = FIRST_OF(w, KW, STRIDE_W, POOL_W);
    const int group = ROOM / (PADDED * TAPS);
    real sum[SPOTS][TILE];
    for (int s = 0; s < SPOTS; s++)
        for (int c = 0; c < TILE; c++) sum[s][c] = 0;
    for (int begin = 0; begin < O; begin += group) {
        const int outputs = O - begin < group ? O - begin : group;
        __syncthreads();
        for (int k = threadIdx.x; k < outputs * TAPS * PADDED; k += CREW) {
            const int c = first + k % PADDED, tap = k / PADDED % TAPS, o = begin + k / PADDED / TAPS;
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
                const bool inside = row >= 0 && row < ROWS && column >= 0 && column < COLUMNS;
                const int entry = (((begin + o) * ROWS + row) * COLUMNS + column) * p.n + image;
                places[k] = CHOSEN ? p.where[inside ? entry : 0] : 0;
                if (!inside) places[k] = NOWHERE;
                d[k] = read(p.dy, entry, inside);
            }
            #pragma unroll
            for (int k = 0; k < REACHES; k++)
                #pragma unroll
                for (int q = 0; q < (ALIGNED ? PLACES : 1); q++) {
                    const int place = ALIGNED ? q : places[k], row = top + k / REACH_W, column = left + k % REACH_W;
                    if (place == NOWHERE) continue;
                    const real its = !ALIGNED || places[k] == q ? d[k] : 0;
                    const int down = ALIGNED ? (REACH_H - 1 - k / REACH_W) * STEP_H : h - row * STEP_H;
                    const int right = ALIGNED ? (REACH_W - 1 - k % REACH_W) * STEP_W : w - column * STEP_W;
                    #pragma unroll
                    for (int s = 0; s < SPOTS; s++) {
                        const unsigned i = down - place / POOL_W * STRIDE_H + s / BLOCK_W; /* huge if negative */
                        const unsigned j = right - place % POOL_W * STRIDE_W + s % BLOCK_W;
                        if (i >= KH || j >= KW) continue;
                        const real *const at_tap = kernels + ((o * KH + i) * KW + j) * PADDED;
                        const several<LANES> *kernel = (const several<LANES> *)at_tap;
                        #pragma unroll
                        for (int c = 0; c < TILE; c++) sum[s][c] += its * kernel[c / LANES].at[c % LANES];
                    }
                }
        }
    }
    __syncthreads();
    real *const mine = kernels + own; /* of team t, spot s and channel c: [((t - 1) · SPOTS + s) · TILE + c][own] */
    #pragma unroll
    for (int k = 0; k < SPOTS * TILE; k++)
        if (team > 0) mine[((team - 1) * SPOTS * TILE + k) * THREADS] = sum[k / TILE][k % TILE];
    __syncthreads();
    if (team > 0 || at >= all) return;
    #pragma unroll
    for (int k = 0; k < SPOTS * TILE; k++) {
        const int s = k / TILE, c = k % TILE, row = h - PAD_H + s / BLOCK_W, column = w - PAD_W + s % BLOCK_W;
        real total = sum[s][c];
        #pragma unroll
        for (int t = 1; t < TEAMS; t++) total += mine[((t - 1) * SPOTS * TILE + k) * THREADS];
        const bool inside = SPOTS == 1 || (row >= 0 && row < H && column >= 0 && column < W);
        if (inside && first + c < C) p.dx[(((first + c) * H + row) * W + column) * p.n + image] = total;
    }
}

/* ∂L/∂W and ∂L/∂b: one block for OUTS outputs, LINES rows of taps of their kernels for a channel, and part of
 * the entries. A thread reads the pixels of an entry once for all of them. The parts are added by the last block of a stripe, or by `add_up`. */
#define STRIPES ((KH + LINES - 1) / LINES)
#define SEEN_H ((POOL_H - 1) * STRIDE_H + LINES) /* height of the pixels that those taps meet */
#define EACH (LINES * KW + 1) /* sums of an output; the last one is for the bias */
#define SUMS (OUTS * EACH)
#define ROUND (ROOM / THREADS) /* sums that are added over the threads at once */
#define SHARE (THREADS / ROUND) /* threads that add up one of them */

#define BOUNDS THREADS, LANES /* so few registers that four blocks, of float32, share a multiprocessor */

extern "C" __global__ void __launch_bounds__(BOUNDS) convolve_to_weight(const convolution p) {
    await_earlier_kernels();
    __shared__ real sums[ROOM], shares[THREADS];
    const int above = blockIdx.x % STRIPES * LINES, c = blockIdx.x / STRIPES % C;
    const int first = blockIdx.x / STRIPES / C * OUTS, all = ROWS * COLUMNS * p.n;
    real sum[SUMS];
    for (int k = 0; k < SUMS; k++) sum[k] = 0;
    #pragma unroll 1
    for (int at = blockIdx.y * THREADS + threadIdx.x; at < all; at += gridDim.y * THREADS) {
        const int image = at % p.n, window = at / p.n;
        const int top = window / COLUMNS * POOL_H * STRIDE_H - PAD_H + above;
        const int left = window % COLUMNS * POOL_W * STRIDE_W - PAD_W;
        const real *plane = p.x + c * H * W * p.n + image;
        real patch[SEEN_H][PATCH_W];
        #pragma unroll
        for (int i = 0; i < SEEN_H; i++)
            #pragma unroll
            for (int j = 0; j < PATCH_W; j++) {
                const int r = top + i, q = left + j;
                const bool padding = (PAD_H || PAD_W) && (r < 0 || r >= H || q < 0 || q >= W);
                patch[i][j] = read(plane, (r * W + q) * p.n, above + i < PATCH_H && !padding);
            }
        #pragma unroll
        for (int o = 0; o < OUTS; o++) {
            const int entry = (first + o) * all + at;
            const real d = read(p.dy, entry, first + o < O);
            const int place = CHOSEN && first + o < O ? p.where[entry] : 0;
            #pragma unroll
            for (int k = 0; k < PLACES; k++) {
                const real its = place == k ? d : 0;
                #pragma unroll
                for (int tap = 0; tap < LINES * KW; tap++)
                    sum[o * EACH + tap] += its * patch[k / POOL_W * STRIDE_H + tap / KW][k % POOL_W * STRIDE_W + tap % KW];
            }
            sum[o * EACH + LINES * KW] += place == NOWHERE ? 0 : d;
        }
    }
    const int size = O * C * TAPS + O;
    const auto place = [=](int k) { /* of a sum in a row of `partial`; -1 if it has none */
        const int o = first + k / EACH, of = k % EACH, tap = above * KW + of;
        if (k >= SUMS || o >= O) return -1;
        if (of < LINES * KW) return tap < TAPS ? (o * C + c) * TAPS + tap : -1;
        return c == 0 && above == 0 ? O * C * TAPS + o : -1;
    };
    #pragma unroll
    for (int begin = 0; begin < SUMS; begin += ROUND) {
        #pragma unroll
        for (int k = 0; k < ROUND; k++)
            if (begin + k < SUMS) sums[k * THREADS + threadIdx.x] = sum[begin + k];
        __syncthreads();
        const real *const part = sums + threadIdx.x * ROUND; /* of sum threadIdx.x / SHARE */
        real total = 0;
        for (int e = 0; e < ROUND; e++) total += part[(e + threadIdx.x) % ROUND]; /* each from a bank of its own */
        shares[threadIdx.x] = total;
        __syncthreads();
        const int at = place(begin + threadIdx.x);
        if (threadIdx.x >= ROUND || at < 0) continue;
        total = 0;
        #pragma unroll
        for (int e = 0; e < SHARE; e++) total += shares[threadIdx.x * SHARE + e];
        p.partial[blockIdx.y * size + at] = total;
    }
    if (!p.counters || !is_last(p.counters + blockIdx.x, gridDim.y)) return; /* the whole block */
    const int crew = THREADS / SUMS, k = threadIdx.x % SUMS, member = threadIdx.x / SUMS, at = place(k);
    const int count = (int)(gridDim.y - member + crew - 1) / crew; /* each crew-th part, from the member-th on */
    real *const own = p.partial + member * size + at;
    shares[threadIdx.x] = member < crew && at >= 0 ? sum_of_parts(own, (long long)crew * size, count) : 0;
    __syncthreads();
    if (member > 0 || at < 0) return;
    real total = 0;
    for (int e = 0; e < crew; e++) total += shares[e * SUMS + k];
    p.total[at] = total;
}
