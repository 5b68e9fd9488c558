/* ∂L/∂W of positions_backward.h: sums over positions of numbers of one operand times vectors of the other, which
 * is turned for it: the gradients of LANES outputs side by side, or LANES channels of x if there are few outputs.
 * The numbers are those of x at the taps, or of outputs. No sum is split between threads, so that their number
 * changes no bit. */

typedef struct {
    const convolution *t;
    NAME(correlation) g; /* of ∂L/∂x */
    images x, delta; /* as rows of columns, without a frame; or x in a frame, if `framed` */
    real *ordered, *turned, *sums; /* weights; [panel][position][lane of the panel]; [panel][row][lane of the panel] */
    int64_t *tap;     /* `framed`: where the number at factor (c, i, j) is */
    int lay_x, lay_delta, framed, of_outputs, by_image;
    int64_t top, left; /* of the frame of δ */
    atomic_int failed;
} NAME(gradients_job);

/* R rows of V vectors of sums: numbers of `a` from R places times vectors of `b`, over `runs` of `pieces` of
 * `length`. Vectors of a piece are `b_step` apart. */
typedef struct {
    const real *a, *b;
    int64_t from[HIGHEST], a_run, b_run, runs, a_piece, b_piece, pieces, length, b_step;
    real *to;
    int64_t to_row;
    int added;
} NAME(outer);

INLINE void NAME(outer_tile)(const int R, const int V, const NAME(outer) * t) {
    vector sum[HIGHEST][PANEL];
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < V; v++) {
            if (t->added) memcpy(sum[r] + v, t->to + r * t->to_row + v * LANES, sizeof(vector));
            else sum[r][v] = (vector){0};
        }
    }
    const int64_t step = t->b_step;
    for (int64_t at = 0; at < t->runs * t->pieces; at++) {
        const int64_t run = at / t->pieces, piece = at % t->pieces;
        const real *b = t->b + run * t->b_run + piece * t->b_piece, *a[HIGHEST];
        UNROLL for (int r = 0; r < R; r++) a[r] = t->a + (run * t->a_run + piece * t->a_piece + t->from[r]);
        for (int64_t p = 0; p < t->length; p++, b += step) {
            vector x[PANEL];
            UNROLL for (int v = 0; v < V; v++) memcpy(x + v, b + v * LANES, sizeof(vector));
            UNROLL for (int r = 0; r < R; r++) {
                const real s = a[r][p];
                UNROLL for (int v = 0; v < V; v++) sum[r][v] += s * x[v];
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < V; v++) memcpy(t->to + r * t->to_row + v * LANES, sum[r] + v, sizeof(vector));
    }
}

static void NAME(outer_product)(const NAME(outer) * t, int64_t rows, int64_t vectors) {
    switch (vectors * 8 + rows) {
#define OUTER_TILE(R, V) case V * 8 + R: NAME(outer_tile)(R, V, t); break;
        OF_ALL_SIZES(OUTER_TILE)
#undef OUTER_TILE
    }
}

/* Rows of sums that are computed together: those of a tap, or any if x has a frame. */
typedef struct { int64_t rows, blocks, lanes, vectors, positions; } NAME(plan);

static NAME(plan) NAME(plan_of)(const NAME(gradients_job) * job) {
    const convolution *t = job->t;
    const int64_t taps = t->kh * t->kw, others = job->of_outputs ? t->c : t->o;
    const int64_t blocks = job->framed ? (t->c * taps + HIGHEST - 1) / HIGHEST
                                       : taps * ((others + HIGHEST - 1) / HIGHEST);
    const int64_t lanes = job->of_outputs ? t->o : t->c;
    return (NAME(plan)){others * taps, blocks, lanes, (lanes + LANES - 1) / LANES,
                        job->of_outputs ? t->oh * t->ow * t->n : t->h * t->w * t->n};
}

/* Sums of one block of rows and one panel over rows [from, to) of y. */
static void NAME(add_positions)(const NAME(gradients_job) * job, const NAME(plan) * plan, int64_t block, int64_t v,
                                int64_t wide, int64_t from, int64_t to, int added) {
    const convolution *t = job->t;
    const int64_t n = t->n, taps = t->kh * t->kw, lanes = wide * LANES, others = job->of_outputs ? t->c : t->o;
    const real *b = job->turned + v * LANES * plan->positions;
    real *sums = job->sums + v * LANES * plan->rows;
    NAME(outer) own = {.added = added, .pieces = 1, .b_step = lanes};
    int64_t high;
    if (job->framed) {
        const int64_t first = block * plan->rows / plan->blocks;
        high = (block + 1) * plan->rows / plan->blocks - first;
        for (int64_t r = 0; r < high; r++) own.from[r] = job->tap[first + r];
        own.a = (const real *)job->x.data + from * job->x.h;
        own.b = b + from * t->ow * n * lanes;
        own.a_run = job->x.h;
        own.b_run = t->ow * n * lanes;
        own.runs = to - from;
        own.length = t->ow * n;
        own.to = sums + first * lanes;
        own.to_row = lanes;
    } else {
        const int64_t blocks = plan->blocks / taps, tap = block / blocks, at = block % blocks;
        const int64_t i = tap / t->kw, j = tap % t->kw, first = at * others / blocks;
        /* From a position of y to one of x. */
        const int64_t down = i * t->apart_h - t->pad_h, across = j * t->apart_w - t->pad_w;
        const int64_t r0 = from < -down ? -down : from, r1 = to < t->h - down ? to : t->h - down;
        const int64_t q0 = across < 0 ? -across : 0, q1 = t->ow < t->w - across ? t->ow : t->w - across;
        const images *numbers = job->of_outputs ? &job->x : &job->delta;
        high = (at + 1) * others / blocks - first;
        for (int64_t r = 0; r < high; r++) own.from[r] = (first + r) * numbers->c;
        own.a_run = numbers->h;
        own.runs = r1 > r0 && q1 > q0 ? r1 - r0 : 0;
        own.length = (q1 - q0) * n;
        if (job->of_outputs) {
            own.a = (const real *)numbers->data + ((r0 + down) * numbers->h + (q0 + across) * n);
            own.b = b + (r0 * t->ow + q0) * n * lanes;
            own.b_run = t->ow * n * lanes;
            if (job->by_image) { /* x in row-major order */
                own.a += (q0 + across) * (1 - n);
                own.pieces = n;
                own.a_piece = numbers->n;
                own.b_piece = lanes;
                own.b_step = n * lanes;
                own.length = q1 - q0;
            }
            own.to = sums + (first * taps + tap) * lanes;
            own.to_row = taps * lanes;
        } else {
            own.a = (const real *)numbers->data + (r0 * numbers->h + q0 * n);
            own.b = b + ((r0 + down) * t->w + q0 + across) * n * lanes;
            own.b_run = t->w * n * lanes;
            own.to = sums + (tap * t->o + first) * lanes;
            own.to_row = lanes;
        }
    }
    NAME(outer_product)(&own, high, wide);
}
