/* The backward of positions.h. ∂L/∂x is the same product with the kernels turned; for ∂L/∂W see
 * positions_weight.h. */

/* δ of a row of the convolution and one output, before pooling and ReLU. */
static void NAME(delta_row)(const convolution *t, int64_t o, int64_t row, real *dy, real *to) {
    const int64_t n = t->n, columns = t->ow / t->pool_w, p = row / t->pool_h, s = row % t->pool_h;
    if (!t->where) {
        NAME(columns_of)(&t->y, n, o, row, t->ow, to);
        return;
    }
    const int cut = p >= t->oh / t->pool_h; /* in no window */
    if (cut || t->pool_w > 1) memset(to, 0, t->ow * n * sizeof(real));
    if (cut) return;
    const uint8_t *where = t->where + (p * t->o + o) * columns * n;
    NAME(columns_of)(&t->y, n, o, p, columns, dy);
    if (t->pool_h == 1 && t->pool_w == 1) {
        int64_t k = 0;
        for (; k + LANES <= t->ow * n; k += LANES) {
            whole places[LANES]; /* from bytes; GCC's __builtin_convertvector does it one by one */
            for (int64_t lane = 0; lane < LANES; lane++) places[lane] = where[k + lane];
            mask none;
            memcpy(&none, places, sizeof none);
            NAME(store)(to + k, 1, LANES, NAME(choose)(none != 0, (vector){0}, NAME(load)(dy + k, 1, LANES)));
        }
        for (; k < t->ow * n; k++) to[k] = where[k] ? 0 : dy[k];
    } else
        for (int64_t q = 0; q < columns; q++)
            for (int64_t m = 0; m < n; m++)
                for (int64_t u = 0; u < t->pool_w; u++)
                    to[(q * t->pool_w + u) * n + m] = where[q * n + m] == s * t->pool_w + u ? dy[q * n + m] : 0;
}

/* The columns of one row of all channels as panels of lanes; `row` is a row of positions. */
static void NAME(turn_row)(const images *x, int64_t row, int64_t width, int64_t rows, int64_t channels, real *turned) {
    const int64_t vectors = (channels + LANES - 1) / LANES;
    for (int64_t v = 0, wide; v < vectors; v += wide) {
        wide = NAME(block_of)(v, vectors, PANEL);
        const int64_t first = v * LANES, left = channels - first, lanes = wide * LANES;
        real *to = turned + first * rows * width + row * width * lanes;
        NAME(turn)((real *)x->data + first * x->c + row * x->h, x->c, left < lanes ? left : lanes, width, to, lanes,
                   lanes);
    }
}

static void NAME(prepare_gradients)(void *task, int part, int parts) {
    NAME(gradients_job) *job = task;
    const convolution *t = job->t;
    const int64_t n = t->n, high = t->oh + 2 * job->top;
    const int64_t top = job->framed ? t->pad_h : 0, left = job->framed ? t->pad_w : 0;
    if (t->dx.data) NAME(order_factors)(&job->g, t->weight, 1, job->ordered, part, parts);
    if (job->lay_x) NAME(lay_rows)(t, &job->x, top, left, part, parts);
    real *dy = take_scratch((t->ow * n + 1) * (int64_t)sizeof(real));
    if (!dy) { job->failed = 1; return; }
    if (job->lay_delta)
        for (int64_t row = part * high / parts; row < (part + 1) * high / parts; row++) {
            const int inside = row >= job->top && row < job->top + t->oh;
            for (int64_t o = 0; o < t->o; o++) {
                const int64_t width = t->ow * n, side = job->left * n;
                real *to = NAME(frame_row)(&job->g.x, o, row, side, inside ? width : 0, inside ? side : side + width);
                if (inside) NAME(delta_row)(t, o, row - job->top, dy, to);
            }
            if (inside && job->of_outputs)
                NAME(turn_row)(&job->delta, row - job->top, t->ow * n, t->oh, t->o, job->turned);
        }
    else if (job->of_outputs)
        for (int64_t row = part * t->oh / parts; row < (part + 1) * t->oh / parts; row++)
            NAME(turn_row)(&job->delta, row, t->ow * n, t->oh, t->o, job->turned);
}

/* Where channels are lanes, x is turned when it has been laid out. */
static void NAME(turn_channels)(void *task, int part, int parts) {
    NAME(gradients_job) *job = task;
    const convolution *t = job->t;
    for (int64_t row = part * t->h / parts; row < (part + 1) * t->h / parts; row++)
        NAME(turn_row)(&job->x, row, t->w * t->n, t->h, t->c, job->turned);
}

static void NAME(gradients_part)(void *task, int part, int parts) {
    NAME(gradients_job) *job = task;
    const convolution *t = job->t;
    if (t->dx.data && !NAME(correlate_columns)(&job->g, part, parts)) job->failed = 1;
    const NAME(plan) plan = NAME(plan_of)(job);
    const int64_t panels = (plan.vectors + PANEL - 1) / PANEL, items = panels * plan.blocks;
    const int64_t begin = part * items / parts, end = (part + 1) * items / parts;
    /* Turned positions in groups that stay in the second-level cache. */
    const int64_t most = 65536 / ((plan.vectors < PANEL ? plan.vectors : PANEL) * LANES * t->ow * t->n);
    const int64_t rows = most < 1 ? 1 : most;
    for (int64_t from = 0; from < t->oh; from += rows) {
        const int64_t to = from + rows < t->oh ? from + rows : t->oh;
        for (int64_t panel = 0, v = 0, wide; panel < panels; panel++, v += wide) {
            wide = NAME(block_of)(v, plan.vectors, PANEL);
            for (int64_t block = 0; block < plan.blocks; block++)
                if (panel * plan.blocks + block >= begin && panel * plan.blocks + block < end)
                    NAME(add_positions)(job, &plan, block, v, wide, from, to, from > 0);
        }
    }
}

/* The sums in the order of the weights, and ∂L/∂b. */
static void NAME(order_gradients)(void *task, int part, int parts) {
    NAME(gradients_job) *job = task;
    const convolution *t = job->t;
    const int64_t taps = t->kh * t->kw, width = t->ow * t->n;
    const NAME(plan) plan = NAME(plan_of)(job);
    real *dw = t->dweight, *db = t->dbias;
    for (int64_t v = 0, panel = 0, wide; v < plan.vectors; v += wide, panel++) {
        wide = NAME(block_of)(v, plan.vectors, PANEL);
        const int64_t first = v * LANES, lanes = wide * LANES, left = plan.lanes - first;
        const int64_t count = left < lanes ? left : lanes;
        const real *sums = job->sums + first * plan.rows;
        if (job->of_outputs) {
            const int64_t from = part * plan.rows / parts, rows = (part + 1) * plan.rows / parts - from;
            NAME(turn)(sums + from * lanes, lanes, rows, count, dw + first * plan.rows + from, plan.rows, rows);
        } else
            for (int64_t o = part * t->o / parts; o < (part + 1) * t->o / parts; o++)
                for (int64_t tap = 0; tap < taps; tap++)
                    for (int64_t c = 0; c < count; c++)
                        dw[(o * t->c + first + c) * taps + tap] = sums[(tap * t->o + o) * lanes + c];
        if (!db || !job->of_outputs || panel % parts != part) continue;
        const real *b = job->turned + first * plan.positions;
        vector sum[PANEL] = {{0}};
        for (int64_t p = 0; p < plan.positions; p++)
            for (int64_t u = 0; u < wide; u++) sum[u] += NAME(load)(b + p * lanes + u * LANES, 1, LANES);
        for (int64_t c = 0; c < count; c += LANES)
            NAME(store)(db + first + c, 1, count - c < LANES ? count - c : LANES, sum[c / LANES]);
    }
    if (!db || job->of_outputs) return;
    for (int64_t o = part * t->o / parts; o < (part + 1) * t->o / parts; o++) {
        vector sum = {0};
        for (int64_t r = 0; r < t->oh; r++) {
            const real *from = (const real *)job->delta.data + o * job->delta.c + r * job->delta.h;
            for (int64_t k = 0; k < width; k += LANES)
                sum += NAME(load)(from + k, 1, width - k < LANES ? width - k : LANES);
        }
        db[o] = NAME(total)(sum);
    }
}

int NAME(convolve_positions_backward)(const convolution *t) {
    const int64_t n = t->n, taps = t->kh * t->kw, weights = t->o * t->c * taps;
    const int wants_dx = t->dx.data != NULL, by_position = taps > 1 && n >= 2 * LANES;
    const int of_outputs = 2 * t->o >= LANES || t->c < 2 * t->o, framed = of_outputs && t->c < 4 && taps > 1;
    const int64_t x_top = framed ? t->pad_h : 0, x_left = framed ? t->pad_w : 0;
    const int by_image = of_outputs && taps == 1 && n > 1 && t->x.w == 1 && t->c >= 2 * t->o;
    const int lay_x = x_top || x_left || !(by_image || NAME(in_columns)(&t->x, n));
    const int around = wants_dx && !by_position; /* a frame around δ */
    const int64_t above = (t->kh - 1) * t->apart_h - t->pad_h, before = (t->kw - 1) * t->apart_w - t->pad_w;
    const int64_t top = around ? above : 0, left = around ? before : 0;
    const int64_t high = t->oh + 2 * top, wide = t->ow + 2 * left;
    const int long_enough = !around || t->w * n >= LANES;
    const int lay_delta = t->where || top || left || !long_enough || !NAME(in_columns)(&t->y, n);
    const int at_once = lay_delta && around && NAME(better_at_once)(t->h, t->w * n, wide * n);
    NAME(gradients_job) job = {.t = t, .lay_x = lay_x, .lay_delta = lay_delta, .framed = framed,
                               .of_outputs = of_outputs, .by_image = by_image, .top = top, .left = left};
    const NAME(plan) plan = NAME(plan_of)(&job);
    const int64_t padded = plan.vectors * LANES, offsets = t->o * taps + t->c * taps;
    const int64_t sizes[] = {padded * plan.positions, padded * plan.rows,
                             lay_delta ? t->o * high * wide * n + LANES : 0,
                             lay_x ? t->c * (t->h + 2 * x_top) * (t->w + 2 * x_left) * n : 0, wants_dx ? weights : 0};
    int64_t size = LANES;
    for (int i = 0; i < 5; i++) size += (sizes[i] + LANES - 1) / LANES * LANES;
    char *memory = malloc(size * sizeof(real) + offsets * sizeof(int64_t));
    if (!memory) return 1;
    real *next = (real *)(memory + (-(intptr_t)memory & (VECTOR_BYTES - 1))), *parts[5];
    for (int i = 0; i < 5; next += (sizes[i] + LANES - 1) / LANES * LANES, i++) parts[i] = next;
    int64_t *offset = (int64_t *)(memory + size * sizeof(real));
    job.turned = parts[0];
    job.sums = parts[1];
    job.x = lay_x ? NAME(rows_of_columns)(parts[3], n, t->c, t->h + 2 * x_top, t->w + 2 * x_left, 0) : t->x;
    const images delta = lay_delta ? NAME(rows_of_columns)(parts[2], n, t->o, high, wide, at_once) : t->y;
    job.delta = delta;
    if (lay_delta) job.delta.data = (real *)delta.data + top * delta.h + left * n;
    job.ordered = parts[4];
    job.tap = offset + t->o * taps;
    job.g = (NAME(correlation)){
        .x = delta, .y = t->dx, .offset = offset, .weight = parts[4], .n = n, .images = 1, .c = t->o, .h = t->oh,
        .w = t->ow, .o = t->c, .oh = t->h, .ow = t->w, .kh = t->kh, .kw = t->kw, .top = above, .left = before,
        .apart_h = t->apart_h, .apart_w = t->apart_w,
        .at_once = at_once, .by_position = by_position};
    NAME(set_offsets)(&job.g, offset);
    for (int64_t k = 0; framed && k < t->c * taps; k++)
        job.tap[k] = k / taps * job.x.c + k % taps / t->kw * t->apart_h * job.x.h + k % t->kw * t->apart_w * n;
    in_parallel(NAME(prepare_gradients), &job, t->threads);
    if (!of_outputs) in_parallel(NAME(turn_channels), &job, t->threads);
    in_parallel(NAME(gradients_part), &job, t->threads);
    in_parallel(NAME(order_gradients), &job, t->threads);
    free(memory);
    return job.failed;
}
