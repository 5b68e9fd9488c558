/* Both gradients of a convolution by the products of winograd.h and winograd_weight.h: bands of rows pass through
 * the second-level cache once, for ∂L/∂weight and for ∂L/∂x. */

/* Memory of a group, and the sizes of its parts. */
typedef struct {
    NAME(chunks) k;
    int64_t groups, apart; /* of outputs; vectors from one term of δ to the next one */
    int64_t ring;          /* rows of δ before pooling or ReLU that are kept */
    vector *x, *dy, *d, *lines, *m, *db, *u, *between, *turned, *deltas, *frame;
} NAME(group_memory);

/* Returns whether there is memory. */
static int NAME(take_group_memory)(const convolution *t, NAME(group_memory) * g) {
    const int64_t rows = t->oh / t->pool_h, columns = t->ow / t->pool_w, groups = NAME(groups)(t->o);
    const int64_t widest = t->o < groups * LANES ? groups * LANES : t->o, high = t->h > t->oh ? t->h : t->oh;
    const NAME(chunks) k = NAME(cut)(t->c + widest, high, t->w > t->ow ? t->w : t->ow);
    const int64_t apart = k.tiles * LANES * groups + 1, padded = groups * LANES;
    const int64_t ring = (4 * k.high + 2 + 2 * (t->pool_h - 1)) / t->pool_h * t->pool_h;
    const int64_t between = NAME(between)(k), own = t->c * k.plane + between + TERMS * apart + 16 * LANES;
    const int64_t other = t->dx.data ? NAME(room_for_tiles)(k, t->c + t->o) : 0, room = own > other ? own : other;
    const int64_t sizes[] = {t->c * t->h * t->w, t->o * rows * columns, t->o * (t->where ? ring : t->oh) * t->ow,
                             t->dx.data ? 4 * k.high * t->c * t->w : 0, TERMS * t->c * groups, padded, room,
                             t->o * (t->h + t->kh - 1) * (t->w + t->kw - 1)};
    vector **parts[] = {&g->x, &g->dy, &g->d, &g->lines, &g->m, &g->db, &g->u, &g->frame};
    int64_t size = 0;
    for (int i = 0; i < 8; i++) size += sizes[i];
    vector *memory = take_scratch(size * (int64_t)sizeof(vector));
    if (!memory) return 0;
    for (int i = 0; i < 8; i++) *parts[i] = memory, memory += sizes[i];
    g->k = k;
    g->groups = groups;
    g->apart = apart;
    g->ring = t->where ? ring : 0;
    g->between = g->u + t->c * k.plane;
    g->turned = g->between + between;
    g->deltas = g->turned + 16 * LANES;
    memset(g->d, 0, sizes[2] * sizeof(vector)); /* positions never written */
    memset(g->m, 0, (sizes[4] + padded) * sizeof(vector));
    return 1;
}

/* Row p of δ = ∂L/∂y before pooling and ReLU, into the ring, or zeros below the last window. */
static void NAME(spread_row)(const convolution *t, const images *dy, int64_t block, int64_t p,
                             const NAME(group_memory) * g) {
    const int64_t plane = g->ring * t->ow, size = t->pool_h * t->ow * sizeof(vector);
    vector *to = g->d + p * t->pool_h % g->ring * t->ow, total = {0};
    for (int64_t o = 0; o < t->o; o++, to += plane) {
        if (p >= t->oh / t->pool_h) memset(to, 0, size);
        else if (t->pool_h == 1 && t->pool_w == 1)
            NAME(spread)(1, 1, t, dy, block, o, p, p + 1, NULL, to, t->ow, 1, &total);
        else if (t->pool_h == 2 && t->pool_w == 2)
            NAME(spread)(2, 2, t, dy, block, o, p, p + 1, NULL, to, t->ow, 1, &total);
        else NAME(spread)(t->pool_h, t->pool_w, t, dy, block, o, p, p + 1, NULL, to, t->ow, 1, &total);
    }
}

/* Add the products of rows r to r + 4 · high to ∂L/∂weight, and their δ to ∂L/∂bias. */
static void NAME(add_band)(const convolution *t, const NAME(framed) * x, const NAME(framed) * d, int64_t r,
                           const NAME(group_memory) * g, fetches *soon) {
    const NAME(chunks) k = g->k;
    const int64_t down = (t->oh - r + 3) / 4, high = down < k.high ? down : k.high;
    for (int64_t q = 0; q < t->ow; q += 4 * k.wide) {
        const int64_t across = (t->ow - q + 3) / 4, wide = across < k.wide ? across : k.wide;
        for (int64_t c = 0; c < t->c; c++)
            NAME(tiles_of_input)(x, c, r, q, high, wide, high * wide, g->between, g->u + c * k.plane);
        for (int64_t group = 0; group < g->groups; group++) {
            const int64_t o = group * LANES, outputs = t->o - o < LANES ? t->o - o : LANES;
            NAME(tiles_of_delta)(d, o, outputs, r, q, high, wide, g->groups, g->apart, g->turned, g->db + o,
                                 g->deltas + group);
        }
        NAME(add_terms)(g->u, k.plane, g->deltas, g->apart, t->c, g->groups, high * wide, g->m, soon);
    }
}

/* ∂L/∂x of a block directly, from all of δ in a frame of zeros. */
static void NAME(input_gradient_anew)(const NAME(job) *job, const images *dy, int64_t block, int64_t lanes,
                                      const NAME(group_memory) * g) {
    const convolution *t = job->t;
    const int64_t row = t->w + t->kw - 1, plane = (t->h + t->kh - 1) * row;
    vector *to = g->frame + (t->kh - 1 - t->pad_h) * row + t->kw - 1 - t->pad_w, total = {0};
    memset(g->frame, 0, t->o * plane * sizeof(vector));
    for (int64_t o = 0; o < t->o; o++, to += plane)
        NAME(spread)(t->pool_h, t->pool_w, t, dy, block, o, 0, t->oh / t->pool_h, NULL, to, row, 1, &total);
    NAME(input_gradient)(job, block * LANES, lanes, g->frame, g->lines);
}

/* What rows r to r + 4 · high of ∂L/∂x write, and what the next ones read: x, and dy and `where` from row p on. */
static void NAME(fetch_band)(const convolution *t, const images *x, int64_t block, int64_t r, int64_t lanes,
                             int64_t p, int wants_dx, const NAME(group_memory) * g, fetches *soon) {
    const int64_t step = 4 * g->k.high;
    const int64_t next = r + step + 2 - t->pad_h, until = p + (step + t->pool_h - 1) / t->pool_h;
    const int64_t first = block * LANES;
    if (wants_dx && t->dx.n == 1 && lanes == LANES) {
        const images dx = {(real *)t->dx.data + first, 1, t->dx.c, t->dx.h, t->dx.w};
        NAME(will_need)(soon, &dx, t->c, r, r + step, t->h, t->w);
    }
    NAME(will_need)(soon, x, t->c, next, next + step, t->h, t->w);
    NAME(will_need_output)(soon, t, block, p, until);
    pace_fetches(soon, NAME(calls)(t->c, t->ow, g->k) * (1 + wants_dx));
}

/* Both gradients of a group. Returns whether ∂L/∂weight is finite; if not, it has to be summed anew. */
static int NAME(backward_in_tiles)(NAME(job) *job, int64_t group) {
    const convolution *t = job->t;
    const int64_t rows = t->oh / t->pool_h, columns = t->ow / t->pool_w, all = t->h > t->oh ? t->h : t->oh;
    NAME(group_memory) g;
    if (!NAME(take_group_memory)(t, &g)) { job->failed = 1; return 1; }
    const int64_t step = 4 * g.k.high, pad = t->pad_h, ring = g.ring;
    for (int64_t block = FIRST_OF(group); block < FIRST_OF(group + 1); block++) {
        const int64_t first = block * LANES, lanes = t->n - first < LANES ? t->n - first : LANES;
        const images dy = NAME(whole_vectors)(&t->y, first, lanes, t->o, rows, columns, g.dy, rows * columns, columns);
        const images x = NAME(whole_vectors)(&t->x, first, lanes, t->c, t->h, t->w, g.x, t->h * t->w, t->w);
        const images delta = ring ? (images){g.d, 1, ring * t->ow * LANES, t->ow * LANES, LANES} : dy;
        const NAME(framed) seen = {x, t->h, t->w, pad, t->pad_w, 0}, slopes = {delta, t->oh, t->ow, 0, 0, ring};
        const NAME(framed) around = {delta, t->oh, t->ow, t->kh - 1 - pad, t->kw - 1 - t->pad_w, ring};
        int finite = t->dx.data != NULL;
        for (int64_t r = 0, p = 0; r < all; r += step) { /* p: rows of δ in the ring, of dy without */
            const int64_t ready = r + step + pad < t->oh ? r + step + pad : t->oh; /* rows of δ for ∂L/∂x */
            for (; p * t->pool_h < ready; p++)
                if (ring) NAME(spread_row)(t, &dy, block, p, &g);
            fetches soon = {0};
            NAME(fetch_band)(t, &x, block, r, lanes, p, finite, &g, &soon);
            if (r < t->oh) NAME(add_band)(t, &seen, &slopes, r, &g, &soon);
            if (finite && r < t->h)
                finite = NAME(input_gradient_in_tiles)(job, first, lanes, &around, g.k, r, g.lines, g.u, &soon);
        }
        if (t->dx.data && !finite) NAME(input_gradient_anew)(job, &dy, block, lanes, &g);
    }
    real *partial = job->partial + group * (t->o * t->c * 9 + t->o);
    for (int64_t o = 0; o < t->o; o++) partial[t->o * t->c * 9 + o] = NAME(total)(g.db[o]);
    return NAME(collect_terms)(t, g.m, partial);
}
