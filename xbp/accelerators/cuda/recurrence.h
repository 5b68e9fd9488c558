/* One recurrent layer in one direction, all time steps in one launch, forward or backward.
 *
 * A block takes SAMPLES samples through all steps. Its threads divide the recurrent weights into 4×4
 * squares: HELD squares of each thread stay in registers, the others are read in each step, 16 bytes with a
 * load. As they are the same in each step, the first cache of a multiprocessor holds what fits (on an H100
 * 256 KB less the shared memory); what does not comes from the second.
 *
 * Bounds of a step of 128 units with one sample, at 128 products and 128 bytes of shared memory or cache in
 * a cycle:
 *              weights    products       held        read by 16 bytes
 *     RNN       64 KB     128 cycles     all         none
 *     GRU      192 KB     384            all         none
 *     LSTM     256 KB     512            176 KB      80 KB, 640 cycles
 *
 * A thread reads four numbers of the state for 16 or 32 products of each sample, and leaves sums of its
 * part of the terms in shared memory, where they are added in a fixed order: for the RNN these are 128
 * cycles. Two barriers and the latencies of the cell come on top, a few hundred cycles in each step. */

#define ELMAN 0 /* cells */
#define RECTIFIED 1
#define LSTM 2
#define GRU 3

#define CEIL(a, b) (((a) + (b) - 1) / (b))

constexpr int GATES = CELL == LSTM ? 4 : CELL == GRU ? 3 : 1, WIDTH = GATES * HIDDEN;
constexpr int KEPT = CELL == LSTM ? 5 : CELL == GRU ? 4 : 0; /* rows of units for the backward */
constexpr int GROUPS = THREADS / PARTS; /* of threads, for the outputs of the product */
constexpr int QUADS = CEIL(CEIL(OUTPUTS, 4), GROUPS), STRIPS = CEIL(CEIL(TERMS, 4), PARTS); /* of a thread */
constexpr int ROW = 4 * STRIPS * PARTS;      /* the terms of a sample in shared memory, and zeros */
constexpr int APART = 4 * QUADS * GROUPS + 4; /* + 4: parts are spread over several banks */
constexpr int EACH = CEIL(SAMPLES * HIDDEN, THREADS); /* units of a thread, one by one */

/* Arrays (rows, …) have a row for each time step t of each sample n: t · step + n · row. */
struct recurrence {
    const real *p;                /* W_ih x, (rows, WIDTH) */
    const real *weight;           /* W_hh (WIDTH, HIDDEN) */
    const real *bias_ih, *bias_hh; /* (WIDTH,), or NULL */
    const unsigned char *padding; /* (n, steps), or NULL */
    const real *h_first, *c_first; /* (n, HIDDEN) */
    real *h, *before, *kept;      /* (rows, HIDDEN): after each step, before it; (rows, KEPT, HIDDEN) */
    real *c_last;                 /* (n, HIDDEN) */
    const real *dh;               /* with steps of its own, in numbers */
    const real *dh_last, *dc_last;
    real *dp, *dq;                /* ∂L/∂p and ∂L/∂q (rows, WIDTH): one array, but for GRU */
    real *dbias;                  /* sums of both over the block's samples and all steps, (blocks, 2, WIDTH) */
    real *dh_first, *dc_first;
    long long dh_step, dh_row;
    int n, steps, step, row, reverse, chunk;
};

struct alignas(16) four {
    real at[4];
};

/* Products of W_hh, or its transpose if TURNED, with vectors in shared memory. */
struct product {
    const real *weight;
    int part, group;
    four held[HELD ? HELD : 1][4];

    __device__ product(const real *weight) : weight(weight) {
        part = TURNED ? threadIdx.x / GROUPS : threadIdx.x % PARTS; /* neighbours read along rows */
        group = TURNED ? threadIdx.x % GROUPS : threadIdx.x / PARTS;
        #pragma unroll
        for (int k = 0; k < HELD; k++)
            #pragma unroll
            for (int i = 0; i < 4; i++) held[k][i] = line(k, i);
    }

    /* Line i of square k: four neighbours in a row of W_hh, or 0 beyond its edges. */
    __device__ four line(int k, int i) const {
        const int output = group + k % QUADS * GROUPS, term = part + k / QUADS * PARTS;
        const int row = 4 * (TURNED ? term : output) + i, column = 4 * (TURNED ? output : term);
        four found = {};
        if (row >= WIDTH) return found;
        if (WHOLE) {
            if (column < HIDDEN) found = *(const four *)(weight + row * HIDDEN + column);
        } else {
            #pragma unroll
            for (int j = 0; j < 4; j++)
                if (column + j < HIDDEN) found.at[j] = weight[row * HIDDEN + column + j];
        }
        return found;
    }

    /* The thread's part of the terms of each sum. */
    __device__ void multiply(const real *vectors, real *sums) const {
        real sum[SAMPLES][QUADS][4] = {};
        #pragma unroll
        for (int b = 0; b < STRIPS; b++) {
            four v[SAMPLES];
            #pragma unroll
            for (int s = 0; s < SAMPLES; s++) v[s] = *(const four *)(vectors + s * ROW + 4 * (part + b * PARTS));
            #pragma unroll
            for (int a = 0; a < QUADS; a++)
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int k = b * QUADS + a;
                    const four w = k < HELD ? held[k < HELD ? k : 0][i] : line(k, i);
                    #pragma unroll
                    for (int s = 0; s < SAMPLES; s++)
                        #pragma unroll
                        for (int j = 0; j < 4; j++) sum[s][a][TURNED ? j : i] += w.at[j] * v[s].at[TURNED ? i : j];
                }
        }
        #pragma unroll
        for (int s = 0; s < SAMPLES; s++)
            #pragma unroll
            for (int a = 0; a < QUADS; a++) {
                four &to = *(four *)(sums + (s * PARTS + part) * APART + 4 * (group + a * GROUPS));
                #pragma unroll
                for (int i = 0; i < 4; i++) to.at[i] = sum[s][a][i];
            }
    }
};

/* The sum of the parts, in four chains. */
__device__ inline real total(const real *sums, int sample, int output) {
    real chain[4] = {};
    #pragma unroll
    for (int part = 0; part < PARTS; part++) chain[part % 4] += sums[(sample * PARTS + part) * APART + output];
    return (chain[0] + chain[1]) + (chain[2] + chain[3]);
}

/* A thread's units, and the places of their sample's rows. */
struct place {
    int sample, n, unit;
    bool counts;

    __device__ place(const recurrence &r, int i) {
        const int entry = threadIdx.x + i * THREADS;
        sample = entry / HIDDEN, unit = entry % HIDDEN, n = blockIdx.x * SAMPLES + sample;
        counts = entry < SAMPLES * HIDDEN && n < r.n;
    }
    __device__ int state() const { return n * HIDDEN + unit; } /* in (n, HIDDEN) */
};

#define UNITS                          \
    _Pragma("unroll")                  \
    for (int i = 0; i < EACH; i++)     \
        if (const place at(r, i); at.counts)
