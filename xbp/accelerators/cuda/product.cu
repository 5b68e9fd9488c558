/* C = A B for small matrices with any strides, and the rest of a linear layer: the bias, ReLU, and in the
 * backward ReLU's slope and the bias's gradient. One launch computes one product, or two independent
 * ones: a layer's ∂L/∂W and ∂L/∂x.
 *
 * A block computes a tile of TILE_ROWS × TILE_COLUMNS entries, or a part of their sums; a thread computes TALL × WIDE
 * of them. A small product has few tiles, with long sums. A tile therefore has several GROUPS of the threads
 * that it needs; each group adds a share of the terms, and the groups' sums are added in a fixed order.
 *
 * What such a product takes is mostly the latency of memory. So each thread loads all its numbers of the next
 * DEPTH terms, by independent loads, while it computes with those in shared memory. */

#include "dependent.h"

struct product {
    const real *a, *b;
    const real *bias; /* one number for each column of C, or NULL */
    const real *mask; /* if MASKED: A counts as 0 where this array of A's layout is ≤ 0 */
    real *c;          /* a part of the sums after the other: C and, if SUMMED, the sums of the rows of A */
    real *total;      /* the same, of all terms, if there are counters, one for each tile */
    unsigned *counters;
    long long a_row, a_column, b_row, b_column; /* steps from row to row, from column to column */
    long long apart; /* between consecutive parts of the sums, in c */
    int m, n, k;
    int tiles, part; /* the number of tiles, and of terms in each part of the sums */
};

#include "last.h"

struct products {
    product of[2];
    int first; /* the number of blocks of the first product */
};

/* What the compiler knows of a product, a sum of: */
#define A_ALONG 1 /* numbers of A along its sums are neighbours, or are to be loaded by neighbours */
#define A_FOURS 2 /* A may be loaded by four neighbours at a time */
#define B_ALONG 4
#define B_FOURS 8
#define SUMMED 16 /* the sums of the rows of A are wanted */
#define TURNED 32 /* C is stored column by column */

#define TEAM (TILE_ROWS / TALL * (TILE_COLUMNS / WIDE)) /* threads of a tile */
#define GROUPS (THREADS / TEAM)
#define PAD 4 /* spreads a column over several banks */
#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define STAGED(side, along) ((along) ? (side) * (DEPTH + PAD) : DEPTH * ((side) + PAD))
#define STAGES(kind) (STAGED(TILE_ROWS, (kind) & A_ALONG) + STAGED(TILE_COLUMNS, (kind) & B_ALONG))
#define ROOM LARGER(LARGER(STAGES(FIRST), STAGES(SECOND < 0 ? FIRST : SECOND)), GROUPS * TILE_ROWS * TILE_COLUMNS)

template <int N> struct alignas(N * sizeof(real) < 16 ? N * sizeof(real) : 16) pack {
    real of[N];
};

/* DEPTH × SIDE numbers, on their way from memory, through a thread's registers, to shared memory. There the
 * numbers along the sums are neighbours if ALONG, else those across. */
template <int SIDE, bool ALONG, bool FOURS, bool COVERED> struct stripe {
    enum { EACH = FOURS ? 4 : 1, ALL = DEPTH * SIDE, LOADS = (ALL + THREADS * EACH - 1) / (THREADS * EACH) };
    pack<EACH> held[LOADS];

    static __device__ int entry(int load) { return (load * THREADS + (int)threadIdx.x) * EACH; }
    static __device__ int term(int e) { return ALONG ? e % DEPTH : e / SIDE; }
    static __device__ int across(int e) { return ALONG ? e / DEPTH : e % SIDE; }

    __device__ void load(const real *from, const real *mask, int depth, int side, long long step, long long step_side) {
        pack<EACH> covers[COVERED ? LOADS : 1];
        #pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int e = entry(i), k = term(e), s = across(e);
            const bool inside = e < ALL && k < depth && s < side;
            const long long at = inside ? k * step + s * step_side : 0; /* it always loads */
            held[i] = *(const pack<EACH> *)(from + at);
            if (COVERED) covers[i] = *(const pack<EACH> *)(mask + at);
            #pragma unroll
            for (int j = 0; j < EACH; j++)
                if (!inside) held[i].of[j] = 0;
        }
        if (COVERED) {
            #pragma unroll
            for (int i = 0; i < LOADS; i++)
                #pragma unroll
                for (int j = 0; j < EACH; j++)
                    if (covers[i].of[j] <= 0) held[i].of[j] = 0;
        }
    }

    __device__ void store(real *to) const {
        #pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int e = entry(i), k = term(e), s = across(e);
            if (e < ALL) *(pack<EACH> *)(to + (ALONG ? s * (DEPTH + PAD) + k : k * (SIDE + PAD) + s)) = held[i];
        }
    }
};

/* A thread's numbers of four terms, from k on: N of the SIDE, of which those of thread `own` are. */
template <int N, int SIDE, bool ALONG> __device__ void read(real (&to)[4][N], const real *from, int k, int own) {
    #pragma unroll
    for (int i = 0; i < (ALONG ? N : 4); i++) {
        if (ALONG) {
            const pack<4> four = *(const pack<4> *)(from + (own + i * (SIDE / N)) * (DEPTH + PAD) + k);
            #pragma unroll
            for (int j = 0; j < 4; j++) to[j][i] = four.of[j];
        } else {
            const pack<N> all = *(const pack<N> *)(from + (k + i) * (SIDE + PAD) + own * N);
            #pragma unroll
            for (int j = 0; j < N; j++) to[i][j] = all.of[j];
        }
    }
}

template <int KIND> __device__ void compute(const product &p, int block, real *room) {
    constexpr bool a_along = KIND & A_ALONG, b_along = KIND & B_ALONG, summed = KIND & SUMMED;
    constexpr bool turned = KIND & TURNED;
    const int part = block / p.tiles, tile = block % p.tiles, tiles_across = (p.n + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int top = tile / tiles_across * TILE_ROWS, left = tile % tiles_across * TILE_COLUMNS;
    const int group = threadIdx.x / TEAM, row = threadIdx.x % TEAM / (TILE_COLUMNS / WIDE);
    const int column = threadIdx.x % (TILE_COLUMNS / WIDE);
    const int begin = part * p.part, end = p.k - begin < p.part ? p.k : begin + p.part;
    real *const a = room, *const b = room + STAGED(TILE_ROWS, a_along);
    stripe<TILE_ROWS, a_along, (KIND & A_FOURS) != 0, MASKED> next_a;
    stripe<TILE_COLUMNS, b_along, (KIND & B_FOURS) != 0, false> next_b;
    auto load = [&](int at) {
        const long long first = at * p.a_column + top * p.a_row;
        next_a.load(p.a + first, p.mask + (MASKED ? first : 0), end - at, p.m - top, p.a_column, p.a_row);
        next_b.load(p.b + at * p.b_row + left * p.b_column, 0, end - at, p.n - left, p.b_row, p.b_column);
    };
    real sum[TALL][WIDE] = {}, whole[TALL] = {};
    load(begin);
    for (int at = begin; at < end; at += DEPTH) {
        if (at > begin) __syncthreads();
        next_a.store(a);
        next_b.store(b);
        __syncthreads();
        if (at + DEPTH < end) load(at + DEPTH);
        const int depth = end - at < DEPTH ? end - at : DEPTH;
        for (int k = 4 * group; k < depth; k += 4 * GROUPS) {
            real u[4][TALL], v[4][WIDE];
            read<TALL, TILE_ROWS, a_along>(u, a, k, row);
            read<WIDE, TILE_COLUMNS, b_along>(v, b, k, column);
            #pragma unroll
            for (int j = 0; j < 4; j++)
                #pragma unroll
                for (int r = 0; r < TALL; r++) {
                    if (summed) whole[r] += u[j][r];
                    #pragma unroll
                    for (int q = 0; q < WIDE; q++) sum[r][q] += u[j][r] * v[j][q];
                }
        }
    }
    __syncthreads();
    #pragma unroll
    for (int r = 0; r < TALL; r++)
        #pragma unroll
        for (int q = 0; q < WIDE; q++) {
            const int i = a_along ? row + r * (TILE_ROWS / TALL) : row * TALL + r;
            const int j = b_along ? column + q * (TILE_COLUMNS / WIDE) : column * WIDE + q;
            room[group * TILE_ROWS * TILE_COLUMNS + (turned ? j * TILE_ROWS + i : i * TILE_COLUMNS + j)] = sum[r][q];
        }
    __syncthreads();
    for (int e = threadIdx.x; e < TILE_ROWS * TILE_COLUMNS; e += THREADS) {
        const int i = top + (turned ? e % TILE_ROWS : e / TILE_COLUMNS);
        const int j = left + (turned ? e / TILE_ROWS : e % TILE_COLUMNS);
        if (i >= p.m || j >= p.n) continue;
        real total = p.bias ? p.bias[j] : 0;
        #pragma unroll
        for (int g = 0; g < GROUPS; g++) total += room[g * TILE_ROWS * TILE_COLUMNS + e];
        const long long at = turned ? (long long)j * p.m + i : (long long)i * p.n + j;
        p.c[part * p.apart + at] = RELU && total <= 0 ? 0 : total; /* nan stays nan */
    }
    const long long after = (long long)p.m * p.n + top; /* in a part, where the sums of the tile's rows are */
    const int sums = summed && left == 0 && top < p.m ? (p.m - top < TILE_ROWS ? p.m - top : TILE_ROWS) : 0;
    if (sums) { /* uniform over the block */
        __syncthreads();
        #pragma unroll
        for (int r = 0; r < TALL; r++)
            if (column == 0) room[group * TILE_ROWS + (a_along ? row + r * (TILE_ROWS / TALL) : row * TALL + r)] = whole[r];
        __syncthreads();
        for (int e = threadIdx.x; e < sums; e += THREADS) {
            real total = 0;
            #pragma unroll
            for (int g = 0; g < GROUPS; g++) total += room[g * TILE_ROWS + e];
            p.c[part * p.apart + after + e] = total;
        }
    }
    const int parts = (p.k + p.part - 1) / p.part;
    if (DIVIDED && p.counters && is_last(p.counters + tile, parts)) {
        for (int e = threadIdx.x; e < TILE_ROWS * TILE_COLUMNS; e += THREADS) {
            const int i = top + (turned ? e % TILE_ROWS : e / TILE_COLUMNS);
            const int j = left + (turned ? e / TILE_ROWS : e % TILE_COLUMNS);
            if (i >= p.m || j >= p.n) continue;
            const long long at = turned ? (long long)j * p.m + i : (long long)i * p.n + j;
            p.total[at] = sum_of_parts(p.c + at, p.apart, parts);
        }
        for (int e = threadIdx.x; e < sums; e += THREADS)
            p.total[after + e] = sum_of_parts(p.c + after + e, p.apart, parts);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) multiply(const products p) {
    await_earlier_kernels();
    alignas(16) __shared__ real room[ROOM];
    const int block = blockIdx.x;
    if (block < p.first) compute<FIRST>(p.of[0], block, room);
#if SECOND >= 0
    else compute<SECOND>(p.of[1], block - p.first, room);
#endif
}
