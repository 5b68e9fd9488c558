#include "attention.h"

/* y, and log Σ e^s of each query. The largest score so far is that of all columns seen; sums of powers
 * relative to a smaller one are rescaled. */
extern "C" __global__ void __launch_bounds__(BOUNDS) attend_by_blocks(const attending p) {
    await_earlier_kernels();
    __shared__ tile<TILE_ROWS> own;
    __shared__ tile<TILE_COLUMNS> k_tile, v_tile;
    __shared__ matrix weights;
    const place my;
    const int head = blockIdx.x % p.all; /* blocks with the most keys come first */
    const int first = (gridDim.x / p.all - 1 - blockIdx.x / p.all) * TILE_ROWS;
    const unsigned char *const ignored = p.ignored ? p.ignored + (long long)(head / p.of_sample) * p.keys : nullptr;
    const reader q(p.q, p, head, p.d), k(p.k, p, head, p.d), v(p.v, p, head, p.e), y(p.y, p, head, p.e);
    const real scale = (real)p.scale, lowest = -1 / (real)0;
    q.fill(own, first, p.queries);
    int end = p.keys;
    if (CAUSAL && first + TILE_ROWS < p.keys && !__syncthreads_or(v.strange(first + TILE_ROWS, p.keys)))
        end = first + TILE_ROWS;
    real peak[TALL], sum[TALL], of[TALL][EACH];
    #pragma unroll
    for (int r = 0; r < TALL; r++) {
        peak[r] = lowest, sum[r] = 0;
        #pragma unroll
        for (int i = 0; i < EACH; i++) of[r][i] = 0;
    }
    #pragma unroll 1
    for (int begin = 0; begin < end; begin += TILE_COLUMNS) {
        __syncthreads(); /* all have left the last tiles */
        k.fill(k_tile, begin, p.keys);
        v.fill(v_tile, begin, p.keys);
        __syncthreads();
        real scores[TALL][WIDE];
        multiply(scores, own, k_tile, my);
        bool counts[WIDE];
        #pragma unroll
        for (int c = 0; c < WIDE; c++) {
            const int key = begin + my.column(c);
            counts[c] = key < p.keys && !(ignored && ignored[key]);
        }
        #pragma unroll
        for (int r = 0; r < TALL; r++) {
            const int query = first + my.row(r);
            real most = lowest;
            #pragma unroll
            for (int c = 0; c < WIDE; c++) {
                const bool known = counts[c] && (!CAUSAL || begin + my.column(c) <= query);
                scores[r][c] = known ? scale * scores[r][c] : lowest;
                most = larger::of(scores[r][c], most);
            }
            most = larger::of(over<ACROSS, larger>(most), peak[r]);
            const real base = most == lowest ? 0 : most, factor = exp(peak[r] - base);
            peak[r] = most, sum[r] *= factor;
            #pragma unroll
            for (int i = 0; i < EACH; i++) of[r][i] *= factor;
            #pragma unroll
            for (int c = 0; c < WIDE; c++) {
                const int key = begin + my.column(c);
                real weight = exp(scores[r][c] - base);
                sum[r] += weight;
                if (p.mask && query < p.queries && key < p.keys)
                    weight *= p.mask[((long long)head * p.queries + query) * p.keys + key];
                weights.at[my.row(r)][my.column(c)] = weight;
            }
        }
        __syncthreads();
        add_product(of, weights, v_tile, my);
    }
    #pragma unroll
    for (int r = 0; r < TALL; r++) {
        const int query = first + my.row(r);
        real total = over<ACROSS, adding>(sum[r]);
        if (total == 0) total = 1;
        #pragma unroll
        for (int i = 0; i < EACH; i++) of[r][i] /= total;
        if (query >= p.queries) continue; /* no barrier follows */
        y.write(query, my, of[r]);
        const real base = peak[r] == lowest ? 0 : peak[r];
        if (my.x == 0) p.logarithms[(long long)head * p.queries + query] = base + log(total);
    }
}
