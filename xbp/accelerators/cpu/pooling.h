/* Maximum and average pooling with any windows, block by block as in convolution.h. */

static void NAME(pool_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    const pooling *t = job->pooling;
    const int64_t row = t->w + 2 * t->pad_w, plane = (t->h + 2 * t->pad_h) * row;
    vector *x = take_scratch(t->c * plane * sizeof(vector));
    if (!x) { job->failed = 1; return; }
    const vector frame = (vector){0} + (t->average ? 0 : -(real)INFINITY);
    const real share = 1 / (real)(t->kh * t->kw);
    if (t->pad_h || t->pad_w)
        for (int64_t i = 0; i < t->c * plane; i++) x[i] = frame;
    for (int64_t block = part * BLOCKS(t->n) / parts; block < (part + 1) * BLOCKS(t->n) / parts; block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        NAME(pack)(&t->x, first, lanes, t->c, t->h, t->w, x + t->pad_h * row + t->pad_w, plane, row);
        uint8_t *where = AFTER(t->where, block * t->c * t->oh * t->ow * LANES);
        for (int64_t c = 0; c < t->c; c++)
            for (int64_t p = 0; p < t->oh; p++)
                for (int64_t q = 0; q < t->ow; q++, where = AFTER(where, LANES)) {
                    const vector *window = x + c * plane + p * t->stride_h * row + q * t->stride_w;
                    /* The first place inside the image: a window may hold nothing above -∞. */
                    const int64_t top = t->pad_h - p * t->stride_h, left = t->pad_w - q * t->stride_w;
                    const int64_t s0 = top > 0 ? top : 0, u0 = left > 0 ? left : 0;
                    vector best = t->average ? window[0] : window[s0 * row + u0];
                    mask at = (mask){0} + (whole)(s0 * t->kw + u0);
                    for (int64_t s = 0; s < t->kh; s++)
                        for (int64_t u = s == 0; u < t->kw; u++) {
                            const vector v = window[s * row + u];
                            if (t->average) {
                                best += v;
                                continue;
                            }
                            const mask better = (v > best) | (v != v);
                            best = NAME(choose)(better, v, best);
                            at = (better & (whole)(s * t->kw + u)) | (~better & at);
                        }
                    if (t->average) best *= share;
                    else
                        for (int64_t lane = 0; lane < LANES; lane++) where[lane] = (uint8_t)at[lane];
                    NAME(store)((real *)t->y.data + first * t->y.n + c * t->y.c + p * t->y.h + q * t->y.w,
                                t->y.n, lanes, best);
                }
    }
}

/* Reads ∂L/∂y from y, writes ∂L/∂x to x. */
static void NAME(pool_backward_part)(void *task, int part, int parts) {
    NAME(job) *job = task;
    const pooling *t = job->pooling;
    const int64_t row = t->w + 2 * t->pad_w, plane = (t->h + 2 * t->pad_h) * row;
    vector *dx = take_scratch(plane * sizeof(vector));
    if (!dx) { job->failed = 1; return; }
    const real share = 1 / (real)(t->kh * t->kw);
    for (int64_t block = part * BLOCKS(t->n) / parts; block < (part + 1) * BLOCKS(t->n) / parts; block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        const uint8_t *where = AFTER(t->where, block * t->c * t->oh * t->ow * LANES);
        for (int64_t c = 0; c < t->c; c++) {
            memset(dx, 0, plane * sizeof(vector));
            for (int64_t p = 0; p < t->oh; p++)
                for (int64_t q = 0; q < t->ow; q++, where = AFTER(where, LANES)) {
                    const real *dy = (const real *)t->y.data + first * t->y.n + c * t->y.c + p * t->y.h;
                    vector v = NAME(load)(dy + q * t->y.w, t->y.n, lanes);
                    vector *window = dx + p * t->stride_h * row + q * t->stride_w;
                    mask at = {0};
                    if (t->average) v *= share;
                    else
                        for (int64_t lane = 0; lane < LANES; lane++) at[lane] = where[lane];
                    for (int64_t s = 0; s < t->kh; s++)
                        for (int64_t u = 0; u < t->kw; u++) {
                            const mask here = t->average ? ~(mask){0} : at == (whole)(s * t->kw + u);
                            window[s * row + u] += (vector)((mask)v & here);
                        }
                }
            for (int64_t h = 0; h < t->h; h++)
                for (int64_t w = 0; w < t->w; w++)
                    NAME(store)((real *)t->x.data + first * t->x.n + c * t->x.c + h * t->x.h + w * t->x.w,
                                t->x.n, lanes, dx[(h + t->pad_h) * row + w + t->pad_w]);
        }
    }
}

int NAME(pool)(const pooling *t) {
    NAME(job) job = {.pooling = t};
    in_parallel(NAME(pool_part), &job, t->threads);
    return job.failed;
}

int NAME(pool_backward)(const pooling *t) {
    NAME(job) job = {.pooling = t};
    in_parallel(NAME(pool_backward_part), &job, t->threads);
    return job.failed;
}
