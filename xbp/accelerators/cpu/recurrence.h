/* One recurrent layer in one direction, all time steps, for one floating-point type `real`.
 *
 * A register tile has up to MOST_ROWS samples and four vectors of sums: the gates of one vector of units,
 * or for the simple cells four vectors of units. Both products, W_ih x_t and W_hh h_{t-1}, go into the same
 * sums, and the new state is computed from them while they are in registers. The weights are packed once a
 * call. Samples are independent of one another: each thread takes some through all time steps. */

#ifndef MOST_ROWS
#define MOST_ROWS (PANEL > 2 ? 6 : 3) /* samples of a tile: 24 or 12 sums, and weights, in registers */
#define SUMS 4
#define AHEAD 2 /* samples between the one that is computed and the one that is fetched */

/* How many vectors of weights a panel has, and of what: gates of the same units, or more units. */
static int64_t gates_of(int cell) { return cell == LSTM ? 4 : cell == GRU ? 3 : 1; }
static int64_t width_of(int cell) { return cell == LSTM || cell == GRU ? 4 : 1; } /* of `delta` */
#endif

typedef struct {
    const recurrence *t;
    vector *weights; /* for each panel: four vectors of biases; its weights of x and h, by gate or unit */
    int64_t vectors, panels, weights_of_panel;
    atomic_int failed;
} NAME(recurrence_job);

/* --- forward --- */

/* The bias of some units: b_ih + b_hh; for GRU's candidate only one of them. */
INLINE vector NAME(biases)(const recurrence *t, int64_t unit, int64_t lanes, int of_input, int of_state) {
    vector sum = {0};
    if (t->bias_ih && of_input) sum += NAME(load)((const real *)t->bias_ih + unit, 1, lanes);
    if (t->bias_hh && of_state) sum += NAME(load)((const real *)t->bias_hh + unit, 1, lanes);
    return sum;
}

/* Pack some panels. Lanes beyond the last unit get weights and biases 0. */
static void NAME(pack_panels)(void *task, int part, int parts) {
    const NAME(recurrence_job) *job = task;
    const recurrence *t = job->t;
    const int64_t gates = gates_of(t->cell), k = t->in + t->hidden, each = gates > 1 ? gates : SUMS;
    const images in = {(void *)t->weight_ih, t->in, t->in, t->in, 1};
    const images state = {(void *)t->weight_hh, t->hidden, t->hidden, t->hidden, 1};
    for (int64_t panel = part * job->panels / parts; panel < (part + 1) * job->panels / parts; panel++) {
        vector *to = job->weights + panel * job->weights_of_panel;
        for (int64_t v = 0; v < each; v++) {
            const int64_t unit = (gates > 1 ? panel : panel * SUMS + v) * LANES;
            const int64_t lanes = t->hidden - unit < LANES ? t->hidden - unit : LANES;
            if (lanes <= 0) break; /* no such units */
            const int64_t first = unit + (gates > 1 ? v * t->hidden : 0);
            const int candidate = t->cell == GRU && v == 2;
            to[v] = NAME(biases)(t, first, lanes, 1, !candidate);
            if (candidate) to[3] = NAME(biases)(t, first, lanes, 0, 1);
            NAME(pack)(&in, first, lanes, 1, 1, t->in, to + SUMS + v * k, t->in, t->in);
            NAME(pack)(&state, first, lanes, 1, 1, t->hidden, to + SUMS + v * k + t->in, t->hidden,
                       t->hidden);
        }
    }
}

/* sum[r][v] += Σ_p a[r][p] w[v][p] for R rows and V vectors. The sums of the third vector may have another
 * place: GRU's candidate has two products, which are not added. */
INLINE void NAME(add_products)(const int R, const int V, const int third, vector sum[][SUMS], const real *a,
                               int64_t a_row, const vector *w, int64_t w_vector, int64_t k) {
    for (int64_t p = 0; p < k; p++) {
        vector b[SUMS];
        UNROLL for (int v = 0; v < V; v++) b[v] = w[v * w_vector + p];
        UNROLL for (int r = 0; r < R; r++) {
            const real s = a[r * a_row + p];
            UNROLL for (int v = 0; v < V; v++) sum[r][v == 2 ? third : v] += s * b[v];
        }
    }
}

/* σ(a) = ½ + ½ tanh(a/2), as in the reference: of absolute accuracy. */
INLINE vector NAME(gate_of)(vector a) { return (real)0.5 + (real)0.5 * NAME(tanh_of)((real)0.5 * a); }

/* The state of one sample's units after the step, from their sums. `before`, `after` and `now` are the
 * places of the states, and of what is kept for the backward: four rows of units. */
static __attribute__((noinline)) void NAME(new_state)(const recurrence *t, const vector *sum, int64_t before,
                                                      int64_t after, int64_t now, int64_t lanes, int padded) {
    const int cell = t->cell;
    const vector h_before = NAME(load)((const real *)t->h + before, 1, lanes);
    vector h, kept[4];
    if (cell == LSTM) {
        const vector i = NAME(gate_of)(sum[0]), f = NAME(gate_of)(sum[1]), g = NAME(tanh_of)(sum[2]);
        const vector o = NAME(gate_of)(sum[3]), c_before = NAME(load)((const real *)t->c + before, 1, lanes);
        const vector c = f * c_before + i * g;
        h = o * NAME(tanh_of)(c);
        NAME(store)((real *)t->c + after, 1, lanes, padded ? c_before : c);
        kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o;
    } else if (cell == GRU) {
        const vector r = NAME(gate_of)(sum[0]), z = NAME(gate_of)(sum[1]), q = sum[3];
        const vector n = NAME(tanh_of)(sum[2] + r * q);
        h = n + z * (h_before - n);
        kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = q;
    } else if (cell == RECTIFIED)
        h = NAME(choose)(sum[0] <= 0, (vector){0}, sum[0]); /* nan stays nan */
    else
        h = NAME(tanh_of)(sum[0]);
    NAME(store)((real *)t->h + after, 1, lanes, padded ? h_before : h);
    if (cell == LSTM || cell == GRU)
        for (int64_t i = 0; i < 4; i++) NAME(store)((real *)t->kept + now + i * t->hidden, 1, lanes, kept[i]);
}

/* Fetch what a tile will write while its products are computed. */
INLINE void NAME(fetch_written)(const recurrence *t, const int cell, const int R, int64_t before, int64_t after,
                                int64_t now) {
    if (cell == ELMAN) return;
    for (int64_t r = 0; r < R; r++) {
        for (int64_t i = 0; i < 4; i++) FETCH((const real *)t->kept + now + (4 * r + i) * t->hidden);
        FETCH((const real *)t->h + after + r * t->hidden);
        if (cell == LSTM) FETCH((const real *)t->c + after + r * t->hidden);
        if (cell == LSTM) FETCH((const real *)t->c + before + r * t->hidden);
    }
}

/* R samples and one panel of a time step. */
INLINE void NAME(recurrence_tile)(const int cell, const int R, const int V, const NAME(recurrence_job) * job,
                                  int64_t time, int64_t row, int64_t panel) {
    const recurrence *t = job->t;
    const int64_t k = t->in + t->hidden, n = t->n, H = t->hidden, units = cell == ELMAN ? V : 1;
    const int64_t before = (time + !!t->reverse) * n + row, after = (time + !t->reverse) * n + row;
    const vector *bias = job->weights + panel * job->weights_of_panel, *w = bias + SUMS;
    const int sums = cell == GRU ? SUMS : V;
    vector sum[MOST_ROWS][SUMS], done[MOST_ROWS][SUMS];
    const int64_t first = panel * LANES;
    NAME(fetch_written)(t, cell, R, before * H + first, after * H + first, (time * n + row) * 4 * H + first);
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < sums; v++) sum[r][v] = bias[v];
    }
    NAME(add_products)(R, V, 2, sum, (const real *)t->x + (time * n + row) * t->in, t->in, w, k, t->in);
    NAME(add_products)(R, V, cell == GRU ? 3 : 2, sum, (const real *)t->h + before * H, H, w + t->in, k, H);
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < sums; v++) done[r][v] = sum[r][v];
    }
    for (int64_t r = 0; r < R; r++) {
        const int padded = t->padding && t->padding[time * n + row + r];
        for (int64_t v = 0; v < units; v++) {
            const int64_t unit = (cell == ELMAN ? panel * SUMS + v : panel) * LANES;
            const int64_t lanes = H - unit < LANES ? H - unit : LANES;
            NAME(new_state)(t, done[r] + v, (before + r) * H + unit, (after + r) * H + unit,
                            (time * n + row + r) * 4 * H + unit, lanes, padded);
        }
    }
}

/* Some samples, through all time steps. */
static void NAME(recurrence_part)(void *task, int part, int parts) {
    const NAME(recurrence_job) *job = task;
    const recurrence *t = job->t;
    const int64_t from = part * t->n / parts, end = (part + 1) * t->n / parts;
    for (int64_t s = 0; s < t->steps; s++) {
        const int64_t time = t->reverse ? t->steps - 1 - s : s;
        for (int64_t panel = 0; panel < job->panels; panel++) {
            const int64_t rest = job->vectors - panel * SUMS, wide = rest < SUMS ? rest : SUMS;
            for (int64_t row = from, high; row < end; row += high) {
                const int64_t blocks = (end - row + MOST_ROWS - 1) / MOST_ROWS; /* as equal as possible */
                high = (end - row + blocks - 1) / blocks;
#define CELL_TILE(cell, R, V) NAME(recurrence_tile)(cell, R, V, job, time, row, panel)
#define TILES_OF(R)                                                                                      \
    case R * 8 + 1: CELL_TILE(ELMAN, R, 1); break;                                                       \
    case R * 8 + 2: CELL_TILE(ELMAN, R, 2); break;                                                       \
    case R * 8 + 3: CELL_TILE(ELMAN, R, 3); break;                                                       \
    case R * 8 + 4: CELL_TILE(ELMAN, R, 4); break;                                                       \
    case R * 8 + 5: CELL_TILE(LSTM, R, 4); break;                                                        \
    case R * 8 + 6: CELL_TILE(GRU, R, 3); break;
                switch (high * 8 + (t->cell == LSTM ? 5 : t->cell == GRU ? 6 : wide)) {
                    TILES_OF(1) TILES_OF(2) TILES_OF(3)
#if MOST_ROWS > 3
                    TILES_OF(4) TILES_OF(5) TILES_OF(6)
#endif
                }
            }
        }
    }
}

int NAME(recurrence)(const recurrence *t) {
    NAME(recurrence_job) job = {.t = t, .vectors = (t->hidden + LANES - 1) / LANES};
    const int64_t gates = gates_of(t->cell), each = gates > 1 ? gates : SUMS;
    job.panels = gates > 1 ? job.vectors : (job.vectors + SUMS - 1) / SUMS;
    job.weights_of_panel = SUMS + each * (t->in + t->hidden);
    job.weights = take_scratch(job.panels * job.weights_of_panel * sizeof(vector));
    if (!job.weights) return 1;
    in_parallel(NAME(pack_panels), &job, t->threads);
    in_parallel(NAME(recurrence_part), &job, t->threads);
    return 0;
}

/* --- backward --- */

/* ∂L/∂(sums) of one sample's units, and what goes to h_{t-1} by other ways than the product; `dc` is passed
 * on to c_{t-1}. The rows of `delta` are ∂L/∂a, for GRU ∂L/∂q_n, ∂L/∂a_r, ∂L/∂a_z and ∂L/∂a_n. */
INLINE void NAME(cell_backward)(const recurrence *t, int64_t before, int64_t after, int64_t now,
                                int64_t lanes, int padded, vector dh, vector *dc, vector *around,
                                vector delta[4]) {
    const int cell = t->cell;
    const vector h = NAME(load)((const real *)t->h + after, 1, lanes);
    vector kept[4];
    *around = (vector){0};
    if (cell == LSTM || cell == GRU)
        for (int64_t i = 0; i < 4; i++)
            kept[i] = NAME(load)((const real *)t->kept + now + i * t->hidden, 1, lanes);
    if (padded) {
        *around = dh;
        for (int64_t i = 0; i < 4; i++) delta[i] = (vector){0};
    } else if (cell == LSTM) {
        const vector i = kept[0], f = kept[1], g = kept[2], o = kept[3];
        const vector c_before = NAME(load)((const real *)t->c + before, 1, lanes);
        const vector tanh_c = NAME(tanh_of)(NAME(load)((const real *)t->c + after, 1, lanes));
        *dc += dh * o * (1 - tanh_c * tanh_c);
        delta[0] = *dc * g * i * (1 - i);
        delta[1] = *dc * c_before * f * (1 - f);
        delta[2] = *dc * i * (1 - g * g);
        delta[3] = dh * tanh_c * o * (1 - o);
        *dc *= f;
    } else if (cell == GRU) {
        const vector r = kept[0], z = kept[1], n = kept[2], q = kept[3];
        const vector h_before = NAME(load)((const real *)t->h + before, 1, lanes);
        delta[3] = dh * (1 - z) * (1 - n * n);
        delta[2] = dh * (h_before - n) * z * (1 - z);
        delta[1] = delta[3] * q * r * (1 - r);
        delta[0] = r * delta[3];
        *around = z * dh;
    } else
        delta[0] = cell == RECTIFIED ? NAME(choose)(h <= 0, (vector){0}, dh) : (1 - h * h) * dh;
}

/* The same for all units of a sample; `to` gets the rows of `delta`. */
static void NAME(sample_backward)(const recurrence *t, int64_t time, int64_t before, int64_t after, int64_t row,
                                  int start, real *to) {
    const int64_t H = t->hidden;
    const int padded = t->padding && t->padding[time * t->n + row];
    const real *dh_now = (const real *)t->dh + time * t->dh_step + row * t->dh_row;
    real *dh_all = t->dh_before, *dc_all = t->dc_before, *around_all = t->around;
    for (int64_t unit = 0; unit < H; unit += LANES) {
        const int64_t lanes = H - unit < LANES ? H - unit : LANES, here = row * H + unit;
        vector dc = {0}, around, delta[4];
        vector dh = NAME(load)(dh_all + here, 1, lanes);
        if (around_all) dh += NAME(load)(around_all + here, 1, lanes);
        dh += NAME(load)(dh_now + unit, 1, lanes);
        if (dc_all) dc = NAME(load)(dc_all + here, 1, lanes);
        NAME(cell_backward)(t, before * H + here, after * H + here, 4 * (time * t->n + row) * H + unit, lanes,
                            padded, dh, &dc, &around, delta);
        for (int64_t i = 0; i < width_of(t->cell); i++) NAME(store)(to + i * H + unit, 1, lanes, delta[i]);
        if (dc_all) NAME(store)(dc_all + here, 1, lanes, start ? (vector){0} : dc);
        if (around_all) NAME(store)(around_all + here, 1, lanes, start ? (vector){0} : around);
    }
}

/* Fetch what `sample_backward` will read. */
static void NAME(fetch_sample)(const recurrence *t, int64_t time, int64_t before, int64_t after, int64_t row) {
    const int64_t H = t->hidden;
    for (int64_t unit = 0; unit < H; unit += LANES) {
        const int64_t here = row * H + unit;
        FETCH((const real *)t->dh + time * t->dh_step + row * t->dh_row + unit);
        if (t->kept)
            for (int64_t i = 0; i < 4; i++) FETCH((const real *)t->kept + (4 * (time * t->n + row) + i) * H + unit);
        FETCH((const real *)t->h + (t->cell == GRU ? before : after) * H + here);
        if (!t->c) continue;
        FETCH((const real *)t->c + before * H + here);
        FETCH((const real *)t->c + after * H + here);
    }
}

/* Sums of products of rows of ∂L/∂(sums) with rows of what was multiplied by the weights. */
typedef struct {
    const real *delta, *factor;
    real *sum; /* (m, n) */
    int64_t rows, delta_row, m, n;
} NAME(weight_gradient);

static void NAME(add_weight_gradient)(NAME(weight_gradient) g) {
    NAME(multiply_small)(&(NAME(small_product)){
        .a = g.delta, .a_row = 1, .a_step = g.delta_row, .b = g.factor, .b_step = g.n, .b_vector = LANES,
        .c = g.sum, .c_row = g.n, .m = g.m, .k = g.rows, .n = g.n, .added = 1});
}

/* A group of samples, through all time steps from the last to the first. Without `t->delta`, the gradients
 * of weights and biases are summed step by step, into the group's own sums, and ∂L/∂x is computed, while the
 * step's ∂L/∂(sums) are in cache. */
static void NAME(recurrence_backward_group)(NAME(recurrence_job) * job, int64_t group) {
    const recurrence *t = job->t;
    const int64_t from = group * t->n / t->groups, end = (group + 1) * t->n / t->groups;
    if (from == end) return;
    const int cell = t->cell;
    const int64_t H = t->hidden, n = t->n, width = width_of(cell) * H, gates = gates_of(cell) * H;
    const int64_t rows = end - from, at_once = !t->delta, stride = at_once ? width + LANES : width;
    const int64_t of_input = width - gates; /* the first row of ∂L/∂p */
    real *dh_all = t->dh_before;
    real *workspace = at_once ? take_scratch(rows * stride * sizeof(real)) : NULL;
    real *sums = at_once ? (real *)t->sums + group * (gates * (H + t->in) + width) : NULL;
    real *dbias = at_once ? sums + gates * (H + t->in) : NULL;
    if (at_once && !workspace) { job->failed = 1; return; }
    for (int64_t s = t->steps - 1; s >= 0; s--) {
        const int64_t time = t->reverse ? t->steps - 1 - s : s, earlier = time + (t->reverse ? 1 : -1);
        const int start = s > 0 && earlier / t->chunk != time / t->chunk; /* of a chunk */
        real *deltas = at_once ? workspace : (real *)t->delta + (time * n + from) * width;
        const int64_t before = (time + !!t->reverse) * n, after = (time + !t->reverse) * n;
        for (int64_t row = from; row < end; row++) {
            if (row + AHEAD < end) NAME(fetch_sample)(t, time, before, after, row + AHEAD);
            NAME(sample_backward)(t, time, before, after, row, start, deltas + (row - from) * stride);
        }
        if (start)
            memset(dh_all + from * H, 0, rows * H * sizeof(real));
        else
            NAME(multiply_small)(&(NAME(small_product)){
                .a = deltas, .a_row = stride, .a_step = 1, .b = t->weight_hh, .b_step = t->hh_row,
                .b_vector = LANES, .c = dh_all + from * H, .c_row = H, .m = rows, .k = gates, .n = H});
        if (!at_once) continue;
        const real *x = (const real *)t->x + (time * n + from) * t->in;
        NAME(add_weight_gradient)((NAME(weight_gradient)){
            deltas, (const real *)t->h + (before + from) * H, sums, rows, stride, gates, H});
        NAME(add_weight_gradient)((NAME(weight_gradient)){
            deltas + of_input, x, sums + gates * H, rows, stride, gates, t->in});
        NAME(add_rows)(deltas, rows, stride, width, dbias);
        if (t->dx)
            NAME(multiply_small)(&(NAME(small_product)){
                .a = deltas + of_input, .a_row = stride, .a_step = 1, .b = t->weight_ih, .b_step = t->in,
                .b_vector = LANES, .c = (real *)t->dx + (time * n + from) * t->in, .c_row = t->in,
                .m = rows, .k = gates, .n = t->in});
    }
}

static void NAME(recurrence_backward_part)(void *task, int part, int parts) {
    NAME(recurrence_job) *job = task;
    const int64_t groups = job->t->groups;
    for (int64_t group = part * groups / parts; group < (part + 1) * groups / parts; group++)
        NAME(recurrence_backward_group)(job, group);
}

int NAME(recurrence_backward)(const recurrence *t) {
    NAME(recurrence_job) job = {.t = t};
    in_parallel(NAME(recurrence_backward_part), &job, t->threads);
    return job.failed;
}
