#include "attention.h"

/* With P recomputed from log Σ e^s, the mask m, and D = Σ ∂L/∂y ∘ y, over the features of a query:
 *
 *     ∂L/∂v = (m ∘ P)ᵀ ∂L/∂y,    ∂L/∂s = P ∘ (m ∘ (∂L/∂y vᵀ) - D),
 *     ∂L/∂q = ∂L/∂s k · scale,    ∂L/∂k = ∂L/∂sᵀ q · scale. */

constexpr int MOST = TILE_ROWS > TILE_COLUMNS ? TILE_ROWS : TILE_COLUMNS;

struct shared_memory {
    tile<TILE_ROWS> own, own_values;          /* q and ∂L/∂y of queries, or k and v of keys */
    tile<TILE_COLUMNS> other, other_values;   /* k and v, or q and ∂L/∂y */
    matrix weights;
    real logarithms[MOST], along[MOST]; /* log Σ e^s and D of the queries at hand */
};

/* log Σ e^s and D of the queries first, …, first + ROWS - 1, zeros beyond the last one. */
template <int ROWS>
__device__ void look_up(shared_memory &s, const tile<ROWS> &dy, const reader &y, const real *logarithms, int first,
                        int count) {
    constexpr int TEAM = THREADS / ROWS; /* threads of a query */
    const int row = threadIdx.x / TEAM, lane = threadIdx.x % TEAM;
    const bool counts = first + row < count;
    real sum = 0;
    #pragma unroll 2
    for (int f = lane * LANES; f < WIDTH; f += TEAM * LANES) {
        several<LANES> some = {};
        if (counts) some = y.read(first + row, f);
        const several<LANES> by = *(const several<LANES> *)&dy.at[row][f];
        #pragma unroll
        for (int i = 0; i < LANES; i++) sum += by.at[i] * some.at[i];
    }
    sum = over<TEAM, adding>(sum);
    if (lane) return; /* to a barrier of the block */
    s.along[row] = sum;
    s.logarithms[row] = counts ? logarithms[first + row] : 0;
}

/* ∂L/∂k and ∂L/∂v of a block's keys, or ∂L/∂q of its queries. */
template <bool OF_KEYS> __device__ void differentiate(const attending &p, shared_memory &s, int head, int first) {
    const place my;
    const reader q(p.q, p, head, p.d), k(p.k, p, head, p.d), v(p.v, p, head, p.e);
    const reader y(p.y, p, head, p.e), dy(p.dy, p, head, p.e);
    const reader &own = OF_KEYS ? k : q, &own_values = OF_KEYS ? v : dy;
    const reader &other = OF_KEYS ? q : k, &other_values = OF_KEYS ? dy : v;
    const int count = OF_KEYS ? p.keys : p.queries, others = OF_KEYS ? p.queries : p.keys;
    const unsigned char *const ignored = p.ignored ? p.ignored + (long long)(head / p.of_sample) * p.keys : nullptr;
    const real *const logarithms = p.logarithms + (long long)head * p.queries;
    const real scale = (real)p.scale, lowest = -1 / (real)0;
    own.fill(s.own, first, count);
    own_values.fill(s.own_values, first, count);
    if (!OF_KEYS) {
        __syncthreads();
        look_up<TILE_ROWS>(s, s.own_values, y, logarithms, first, p.queries);
    }
    int begin = 0, end = others;
    if (CAUSAL) { /* what is hidden from all rows of the block */
        const int left = OF_KEYS ? 0 : first + TILE_ROWS, right = OF_KEYS && first < others ? first : others;
        const int last = first + TILE_ROWS < count ? first + TILE_ROWS : count;
        if (left < right) {
            bool strange = other.strange(left, right) || other_values.strange(left, right);
            strange = strange || own_values.strange(first, last);
            strange = strange || (OF_KEYS ? y.strange(left, right) : y.strange(first, last));
            if (!__syncthreads_or(strange)) begin = OF_KEYS ? right : 0, end = OF_KEYS ? others : left;
        }
    }
    real to_values[TALL][EACH], to_own[TALL][EACH];
    #pragma unroll
    for (int r = 0; r < TALL; r++)
        #pragma unroll
        for (int i = 0; i < EACH; i++) to_values[r][i] = to_own[r][i] = 0;
    #pragma unroll 1
    for (; begin < end; begin += TILE_COLUMNS) {
        __syncthreads(); /* all have left the last tiles */
        other.fill(s.other, begin, others);
        other_values.fill(s.other_values, begin, others);
        __syncthreads();
        if (OF_KEYS) look_up<TILE_COLUMNS>(s, s.other_values, y, logarithms, begin, p.queries);
        real scores[TALL][WIDE], to_scores[TALL][WIDE];
        multiply(scores, s.own, s.other, my);
        multiply(to_scores, s.own_values, s.other_values, my);
        if (OF_KEYS) __syncthreads(); /* for what was looked up */
        #pragma unroll
        for (int r = 0; r < TALL; r++)
            #pragma unroll
            for (int c = 0; c < WIDE; c++) {
                const int query = OF_KEYS ? begin + my.column(c) : first + my.row(r);
                const int key = OF_KEYS ? first + my.row(r) : begin + my.column(c);
                const int at = OF_KEYS ? my.column(c) : my.row(r);
                const bool inside = query < p.queries && key < p.keys;
                const bool known = inside && (!CAUSAL || key <= query) && !(ignored && ignored[key]);
                const real weight = exp((known ? scale * scores[r][c] : lowest) - s.logarithms[at]);
                real m = 1;
                if (p.mask && inside) m = p.mask[((long long)head * p.queries + query) * p.keys + key];
                scores[r][c] = m * weight;
                to_scores[r][c] = weight * (m * to_scores[r][c] - s.along[at]) * scale;
            }
        if (OF_KEYS) {
            #pragma unroll
            for (int r = 0; r < TALL; r++)
                #pragma unroll
                for (int c = 0; c < WIDE; c++) s.weights.at[my.row(r)][my.column(c)] = scores[r][c];
            __syncthreads();
            add_product(to_values, s.weights, s.other_values, my);
            __syncthreads();
        }
        #pragma unroll
        for (int r = 0; r < TALL; r++)
            #pragma unroll
            for (int c = 0; c < WIDE; c++) s.weights.at[my.row(r)][my.column(c)] = to_scores[r][c];
        __syncthreads();
        add_product(to_own, s.weights, s.other, my);
    }
    const reader of_own(OF_KEYS ? p.dk : p.dq, p, head, p.d), of_values(p.dv, p, head, p.e);
    #pragma unroll
    for (int r = 0; r < TALL; r++) {
        const int row = first + my.row(r);
        if (row >= count) continue;
        of_own.write(row, my, to_own[r]);
        if (OF_KEYS) of_values.write(row, my, to_values[r]);
    }
}

/* Blocks of keys come first, as they have more to do, and of each kind those with the most scores. */
extern "C" __global__ void __launch_bounds__(BOUNDS) attend_by_blocks_backward(const attending p) {
    await_earlier_kernels();
    __shared__ shared_memory s;
    const int at = blockIdx.x;
    if (at < p.of_keys) differentiate<true>(p, s, at % p.all, at / p.all * TILE_ROWS);
    else differentiate<false>(p, s, at % p.all, ((gridDim.x - 1 - at) / p.all) * TILE_ROWS);
}
