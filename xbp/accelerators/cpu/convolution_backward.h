/* The backward of a convolution with ReLU and max pooling. */

/* Both gradients of a group directly, or ∂L/∂weight alone if ∂L/∂x was computed in tiles. */
static void NAME(backward_directly)(NAME(job) *job, int64_t group) {
    const convolution *t = job->t;
    const int64_t row = t->w + 2 * t->pad_w, plane = (t->h + 2 * t->pad_h) * row;
    const int64_t rows = t->oh / t->pool_h, columns = t->ow / t->pool_w, taps = t->kh * t->kw;
    const int64_t weights = t->o * t->c * taps;
    /* δ is spread out in bands of rows that fit into the first-level cache together with those of x. For
     * ∂L/∂x, the convolution of δ with the rotated kernels, it is also spread out as a whole, with
     * a frame, so that a window begins at each pixel of x. */
    const int wants_dx = t->dx.data && !job->in_tiles;
    const int64_t sh = t->stride_h, sw = t->stride_w;
    const NAME(frame) down = NAME(frame_of)(t->h, t->kh, t->pad_h, sh);
    const NAME(frame) across = NAME(frame_of)(t->w, t->kw, t->pad_w, sw);
    const int64_t d_row = across.size, d_plane = wants_dx ? down.size * d_row : 0;
    const int64_t widest = t->o < MOST_OUTPUTS ? t->o : MOST_OUTPUTS, lines = t->ow * t->pool_h;
    const NAME(chunks) cut = NAME(cut)(t->c + t->o, t->h, t->w);
    const int in_tiles = wants_dx && job->terms;
    int64_t height = 24000 / (widest * lines * (int64_t)sizeof(vector));
    height = height < 1 ? 1 : height < rows ? height : rows;
    const int64_t size = t->o * (height * lines + d_plane + rows * columns + 1) + weights +
                      t->c * (plane + (in_tiles ? 4 * cut.high : 1) * t->w) +
                      (in_tiles ? NAME(room_for_tiles)(cut, t->c + t->o) : 0);
    vector *x = take_scratch(size * sizeof(vector) + taps * sizeof(int64_t));
    if (!x) { job->failed = 1; return; }
    vector *band = x + t->c * plane, *d = band + t->o * height * lines, *dw = d + t->o * d_plane;
    vector *db = dw + weights, *dy = db + t->o, *line = dy + t->o * rows * columns;
    vector *terms = line + t->c * (in_tiles ? 4 * cut.high : 1) * t->w;
    int64_t *tap = (int64_t *)(x + size);
    for (int64_t k = 0; k < taps; k++) tap[k] = k / t->kw * row + k % t->kw;
    NAME(clear_frame)(x, t->c, t->h, t->w, t->pad_h, t->pad_w);
    memset(band, 0, t->o * (height * lines + d_plane) * sizeof(vector)); /* positions never written */
    memset(dw, 0, (weights + t->o) * sizeof(vector));
    real *partial = job->partial + group * (weights + t->o);
    for (int64_t block = FIRST_OF(group); block < FIRST_OF(group + 1); block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        const images given = NAME(whole_vectors)(&t->y, first, lanes, t->o, rows, columns, dy, rows * columns,
                                                 columns);
        int64_t packed = 0; /* rows of x */
        for (int64_t p = 0; p < rows; p += height) {
            const int64_t end = p + height < rows ? p + height : rows, r = p * t->pool_h;
            packed = NAME(pack_rows)(&t->x, first, lanes, t->c, packed, NAME(rows_until)(t, end * t->pool_h), t->h, t->w,
                                     x + t->pad_h * row + t->pad_w, plane, row);
            fetches soon = {0};
            NAME(will_need_output)(&soon, t, block, end, end + height);
            if (t->x.n == 1) {
                const images next = {(real *)t->x.data + first, 1, t->x.c, t->x.h, t->x.w};
                NAME(will_need)(&soon, &next, t->c, packed, packed + height * t->pool_h * sh, t->h, t->w);
            }
            pace_fetches(&soon, t->c * ((t->o + MOST_OUTPUTS - 1) / MOST_OUTPUTS));
            for (int64_t o = 0; o < t->o; o++) {
                vector *frame = wants_dx ? d + o * d_plane + (down.begin + r) * d_row + across.begin : NULL;
                if (t->pool_h == 2 && t->pool_w == 2)
                    NAME(spread)(2, 2, t, &given, block, o, p, end, band, frame, d_row, 1, db + o);
                else
                    NAME(spread)(t->pool_h, t->pool_w, t, &given, block, o, p, end, band, frame, d_row, 1, db + o);
            }
            vector *to = dw;
            int outputs;
            for (int64_t o = 0; o < t->o; o += outputs) {
                outputs = NAME(outputs)(o, t->o);
                for (int64_t c = 0; c < t->c; c++) {
                    fetch(&soon);
                    const vector *xr = x + c * plane + r * sh * row;
                    int64_t k = 0;
                    switch (outputs) {
#define TAPS(O, T)                                                                                     \
    for (; k + T <= taps; k += T, to += O * T)                                                         \
        NAME(tap_tile)(O, T, band + o, t->o, xr, tap + k, sh * row, sw, (end - p) * t->pool_h, t->ow, to);
#define BOTH(O, T)                                                                                     \
    case O:                                                                                            \
        TAPS(O, T)                                                                                     \
        TAPS(O, 1)                                                                                     \
        break;
                        TILES(BOTH)
#undef TAPS
#undef BOTH
                    }
                }
            }
        }
        if (!wants_dx) continue;
        const images delta = {d + down.begin * d_row + across.begin, 1, d_plane * LANES, d_row * LANES, LANES};
        const NAME(framed) slopes = {delta, t->oh, t->ow, t->kh - 1 - t->pad_h, t->kw - 1 - t->pad_w, 0};
        int finite = in_tiles;
        for (int64_t h = 0; h < t->h && finite; h += 4 * cut.high)
            finite = NAME(input_gradient_in_tiles)(job, first, lanes, &slopes, cut, h, line, terms, &(fetches){0});
        if (!finite) NAME(input_gradient)(job, first, lanes, d, line);
    }
    NAME(collect)(t, dw, partial);
    for (int64_t o = 0; o < t->o; o++) partial[weights + o] = NAME(total)(db[o]);
}

#undef FIRST_OF

static void NAME(backward_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    for (int64_t group = part * job->groups / parts; group < (part + 1) * job->groups / parts; group++)
        if (!job->in_tiles || !NAME(backward_in_tiles)(job, group)) NAME(backward_directly)(job, group);
}

/* Some entries of the sum over groups, left in the first. */
static void NAME(sum_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    const convolution *t = job->t;
    const int64_t size = t->o * (t->c * t->kh * t->kw + 1);
    const int64_t from = part * size / parts, end = (part + 1) * size / parts;
    for (int64_t group = 1; group < job->groups; group++) {
        const real *sums = job->partial + group * size;
        for (int64_t i = from; i < end; i++) job->partial[i] += sums[i];
    }
}

int NAME(convolve_backward)(const convolution *t) {
    const int64_t kernels = t->o * t->c, weights = kernels * t->kh * t->kw, size = weights + t->o;
    /* With a stride, most products in tiles of ∂L/∂x would be with zeros. */
    const int by_ones = t->stride_h == 1 && t->stride_w == 1;
    const int dx_in_tiles = by_ones && t->dx.data && NAME(worth_tiles)(t, t->h, t->w);
    const int in_tiles = by_ones && NAME(worth_tiles)(t, t->oh, t->ow) && (dx_in_tiles || !t->dx.data);
    const int64_t groups = BLOCKS(t->n) < t->groups ? BLOCKS(t->n) : t->groups;
    real *memory = malloc((size * groups + weights + dx_in_tiles * TERMS * kernels) * sizeof(real));
    if (!memory) return 1;
    real *turned = memory + size * groups;
    if (t->dx.data) NAME(order)(t->weight, turned, t->c, t->o, t->kh, t->kw, 1);
    NAME(job) job = {.t = t, .partial = memory, .groups = groups, .turned = turned, .in_tiles = in_tiles,
                     .terms = dx_in_tiles ? turned + weights : NULL};
    if (dx_in_tiles) NAME(order_terms)(turned, turned + weights, t->c, t->o);
    in_parallel(NAME(backward_part), &job, t->threads);
    in_parallel(NAME(sum_part), &job, size * groups < 32768 ? 1 : t->threads);
    memcpy(t->dweight, memory, weights * sizeof(real));
    if (t->dbias) memcpy(t->dbias, memory + weights, t->o * sizeof(real));
    free(memory);
    return job.failed;
}
