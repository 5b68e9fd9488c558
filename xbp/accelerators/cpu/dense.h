/* A chain of small linear layers, each followed by nothing or an activation, in one call: a block of rows
 * goes through all layers while it stays in the cache. Rows of weights, outputs and ∂L/∂y are taken to
 * whole vectors by zeros, so that the products of affine.h read and write nothing else.
 *
 * Gradients of parameters are summed over groups of blocks, and then over the groups. Groups depend on the
 * number of rows alone: no bit depends on the number of threads. */

#ifndef DENSE_LIMITS
#define DENSE_LIMITS
#define DENSE_ROWS 64 /* of a block */
#define MOST_GROUPS 8
#define MOST_LAYERS 16
enum { IDENTITY, RECTIFIER, TANH, LOGISTIC };
#endif

#define PADDED(k) (((k) + LANES - 1) / LANES * LANES)

typedef struct {
    const real *weight, *bias; /* bias may be NULL */
    real *dweight, *dbias;
    real *y; /* (n, padded out), of all layers but the last */
    int64_t in, out, wide_in, wide_out;
    int64_t weights, sums; /* where its weights begin in a workspace, and its gradients in a group's sums */
    int activation;
} NAME(dense_layer);

typedef struct {
    NAME(dense_layer) layer[MOST_LAYERS];
    const real *x, *dy;
    real *y, *dx, *sums; /* y (n, out): the chain's; sums: groups of `size` numbers */
    int64_t n, count, width, all_weights, size, groups;
    atomic_int failed;
} NAME(dense_net);

/* A network from a list: x, y, hidden layers' memory, and weight and bias of each layer. 0 if it is none. */
static int NAME(read_dense)(NAME(dense_net) * d, const layout *l, const list_fields *list, int number,
                            const char *activations, int64_t count) {
    const array_fields *x = array_of(list->items[0], l, number, PLAIN), *y, *hidden;
    y = array_of(list->items[1], l, number, PLAIN);
    hidden = array_of(list->items[2], l, number, PLAIN);
    if (!x || !y || !hidden || !x->axes || count > MOST_LAYERS) return 0;
    int64_t in = x->shape[x->axes - 1], kept = 0;
    if (!in) return 0;
    *d = (NAME(dense_net)){.x = (real *)x->data, .y = (real *)y->data, .n = entries_of(x) / in, .count = count,
                       .width = PADDED(in)};
    for (int64_t i = 0; i < count; i++) {
        void *bias = list->items[4 + 2 * i];
        const array_fields *w = array_of(list->items[3 + 2 * i], l, number, PLAIN), *b = NULL;
        if (!w || w->axes != 2 || w->shape[1] != in || !w->shape[0]) return 0;
        const int64_t out = w->shape[0], wide = PADDED(out);
        if (bias != l->none) {
            b = array_of(bias, l, number, PLAIN);
            if (!b || b->axes != 1 || b->shape[0] != out) return 0;
        }
        d->layer[i] = (NAME(dense_layer)){
            .weight = (real *)w->data, .bias = b ? (real *)b->data : NULL, .activation = activations[i],
            .y = (real *)hidden->data + kept, .in = in, .out = out, .wide_in = PADDED(in), .wide_out = wide,
            .weights = d->all_weights, .sums = d->size};
        if (i < count - 1) kept += d->n * wide;
        const int64_t turned = (in + 1) * wide, padded = out * PADDED(in);
        d->all_weights += turned > padded ? turned : padded;
        d->size += padded + wide;
        if (wide > d->width) d->width = wide;
        in = out;
    }
    return entries_of(y) == d->n * in && entries_of(hidden) == kept;
}

static void NAME(activate)(real *y, int64_t n, int activation) {
    if (activation == TANH)
        for (int64_t i = 0; i < n; i += LANES)
            NAME(store)(y + i, 1, LANES, NAME(tanh_of)(NAME(load)(y + i, 1, LANES)));
    else if (activation == LOGISTIC)
        for (int64_t i = 0; i < n; i += LANES)
            NAME(store)(y + i, 1, LANES, NAME(logistic_of)(NAME(load)(y + i, 1, LANES)));
}

/* δ ← δ f′, where y = f(z) gives the slope: 1 - y² of tanh, y (1 - y) of the logistic function. */
static void NAME(times_slope)(real *delta, const real *y, int64_t n, int activation) {
    if (activation == IDENTITY) return;
    for (int64_t i = 0; i < n; i += LANES) {
        const vector a = NAME(load)(y + i, 1, LANES), b = NAME(load)(delta + i, 1, LANES);
        vector found;
        if (activation == RECTIFIER) found = NAME(choose)(a <= 0, (vector){0}, b); /* exact for any δ */
        else if (activation == TANH) found = (1 - a * a) * b;
        else found = a * (1 - a) * b;
        NAME(store)(delta + i, 1, LANES, found);
    }
}

/* Rows of `wide` numbers from rows of `narrow` ones and back. Where a row is one vector, whole vectors are read
 * and written, with what follows the row; the last rows apart. */
static void NAME(widen)(real *to, int64_t wide, const real *from, int64_t narrow, int64_t rows) {
    int64_t i = 0;
    if (wide == LANES) {
        const mask own = NAME(numbered)() < (whole)narrow;
        for (; i * narrow + LANES <= rows * narrow; i++)
            NAME(store)(to + i * wide, 1, LANES, (vector)((mask)NAME(load)(from + i * narrow, 1, LANES) & own));
    }
    for (; i < rows; i++) {
        memcpy(to + i * wide, from + i * narrow, narrow * sizeof(real));
        memset(to + i * wide + narrow, 0, (wide - narrow) * sizeof(real));
    }
}

static void NAME(narrow)(real *to, int64_t narrow, const real *from, int64_t wide, int64_t rows) {
    int64_t i = 0;
    if (wide == LANES)
        for (; i * narrow + LANES <= rows * narrow; i++)
            NAME(store)(to + i * narrow, 1, LANES, NAME(load)(from + i * wide, 1, LANES));
    for (; i < rows; i++) memcpy(to + i * narrow, from + i * wide, narrow * sizeof(real));
}

/* The transpose of each layer's weights, (in, padded out), and its bias. */
static void NAME(turn_weights)(const NAME(dense_net) * d, real *to) {
    for (int64_t l = 0; l < d->count; l++) {
        const NAME(dense_layer) *layer = d->layer + l;
        real *turned = to + layer->weights, *bias = turned + layer->in * layer->wide_out;
        const images rows = {(void *)layer->weight, layer->in, layer->in, layer->in, 1};
        for (int64_t o = 0; o < layer->wide_out; o += LANES) {
            const int64_t lanes = layer->out - o < LANES ? layer->out - o : LANES;
            vector block[64];
            for (int64_t i = 0, some; i < layer->in; i += some) {
                some = layer->in - i < 64 ? layer->in - i : 64;
                const images part = {(real *)layer->weight + i, rows.n, rows.c, rows.h, 1};
                NAME(pack)(&part, o, lanes, 1, 1, some, block, some, some);
                for (int64_t k = 0; k < some; k++)
                    NAME(store)(turned + (i + k) * layer->wide_out + o, 1, LANES, block[k]);
            }
        }
        if (layer->bias) NAME(widen)(bias, layer->wide_out, layer->bias, layer->out, 1);
        else memset(bias, 0, layer->wide_out * sizeof(real));
    }
}

static void NAME(dense_part)(void *task, int part, int parts) {
    NAME(dense_net) *d = task;
    const int64_t blocks = (d->n + DENSE_ROWS - 1) / DENSE_ROWS;
    const int64_t first = part * blocks / parts, end = (part + 1) * blocks / parts;
    if (first == end) return;
    real *weights = take_scratch((d->all_weights + DENSE_ROWS * d->width) * sizeof(real));
    if (!weights) { d->failed = 1; return; }
    real *last = weights + d->all_weights;
    NAME(turn_weights)(d, weights);
    for (int64_t block = first; block < end; block++) {
        const int64_t i = block * DENSE_ROWS, rows = d->n - i < DENSE_ROWS ? d->n - i : DENSE_ROWS;
        const real *a = d->x + i * d->layer->in;
        int64_t a_row = d->layer->in;
        for (int64_t l = 0; l < d->count; l++) {
            const NAME(dense_layer) *layer = d->layer + l;
            const real *turned = weights + layer->weights;
            const int64_t wide = layer->wide_out;
            real *y = l == d->count - 1 ? last : layer->y + i * wide;
            NAME(multiply_small)(&(NAME(small_product)){
                .a = a, .a_row = a_row, .a_step = 1, .b = turned, .b_step = wide, .b_vector = LANES,
                .bias = turned + layer->in * wide, .c = y, .c_row = wide, .m = rows, .k = layer->in,
                .n = wide, .relu = layer->activation == RECTIFIER});
            NAME(activate)(y, rows * wide, layer->activation);
            a = y;
            a_row = wide;
        }
        const int64_t out = d->layer[d->count - 1].out;
        NAME(narrow)(d->y + i * out, out, last, a_row, rows);
    }
}

/* Whether the sums of ∂L/∂W are those of its transpose (in, padded out), which has fewer numbers. */
INLINE int NAME(sums_turned)(const NAME(dense_layer) * layer) {
    return layer->in * layer->wide_out < layer->out * layer->wide_in;
}

/* The gradients of one group, from the last layer to the first. */
static void NAME(dense_group)(const NAME(dense_net) * d, int64_t group, const real *weights, real *memory) {
    const int64_t blocks = (d->n + DENSE_ROWS - 1) / DENSE_ROWS, space = DENSE_ROWS * d->width;
    real *sums = d->sums + group * d->size, *x = memory, *y = memory + space;
    memset(sums, 0, d->size * sizeof(real));
    for (int64_t block = group * blocks / d->groups; block < (group + 1) * blocks / d->groups; block++) {
        const int64_t i = block * DENSE_ROWS, rows = d->n - i < DENSE_ROWS ? d->n - i : DENSE_ROWS;
        const NAME(dense_layer) *top = d->layer + d->count - 1;
        real *delta = memory + 2 * space, *next = memory + 3 * space;
        if (!NAME(sums_turned)(d->layer)) NAME(widen)(x, d->layer->wide_in, d->x + i * d->layer->in, d->layer->in, rows);
        NAME(widen)(y, top->wide_out, d->y + i * top->out, top->out, rows);
        NAME(widen)(delta, top->wide_out, d->dy + i * top->out, top->out, rows);
        NAME(times_slope)(delta, y, rows * top->wide_out, top->activation);
        for (int64_t k = d->count - 1; k >= 0; k--) {
            const NAME(dense_layer) *layer = d->layer + k;
            const int is_first = k == 0;
            const int64_t in = layer->wide_in, out = layer->wide_out;
            const real *below = is_first ? x : layer[-1].y + i * in;
            real *dweight = sums + layer->sums, *dbias = dweight + layer->out * in;
            if (NAME(sums_turned)(layer)) {
                const real *narrow = is_first ? d->x + i * layer->in : below;
                NAME(multiply_small)(&(NAME(small_product)){
                    .a = narrow, .a_row = 1, .a_step = is_first ? layer->in : in, .b = delta, .b_step = out,
                    .b_vector = LANES, .c = dweight, .c_row = out, .m = layer->in, .k = rows, .n = out, .added = 1});
            } else
                NAME(multiply_small)(&(NAME(small_product)){
                    .a = delta, .a_row = 1, .a_step = out, .b = below, .b_step = in, .b_vector = LANES,
                    .c = dweight, .c_row = in, .m = layer->out, .k = rows, .n = in, .added = 1});
            for (int64_t o = 0; o < out; o += LANES) {
                vector sum = NAME(load)(dbias + o, 1, LANES);
                for (int64_t r = 0; r < rows; r++) sum += NAME(load)(delta + r * out + o, 1, LANES);
                NAME(store)(dbias + o, 1, LANES, sum);
            }
            if (is_first && !d->dx) break;
            NAME(multiply_small)(&(NAME(small_product)){
                .a = delta, .a_row = out, .a_step = 1, .b = weights + layer->weights, .b_step = in,
                .b_vector = LANES, .c = next, .c_row = in, .m = rows, .k = layer->out, .n = in});
            if (is_first) NAME(narrow)(d->dx + i * layer->in, layer->in, next, in, rows);
            else NAME(times_slope)(next, below, rows * in, layer[-1].activation);
            real *swap = delta;
            delta = next;
            next = swap;
        }
    }
}

static void NAME(dense_backward_part)(void *task, int part, int parts) {
    NAME(dense_net) *d = task;
    const int64_t first = part * d->groups / parts, end = (part + 1) * d->groups / parts;
    if (first == end) return;
    real *weights = take_scratch((d->all_weights + 4 * DENSE_ROWS * d->width) * sizeof(real));
    if (!weights) { d->failed = 1; return; }
    for (const NAME(dense_layer) *layer = d->layer; layer < d->layer + d->count; layer++)
        NAME(widen)(weights + layer->weights, layer->wide_in, layer->weight, layer->in, layer->out);
    for (int64_t group = first; group < end; group++)
        NAME(dense_group)(d, group, weights, weights + d->all_weights);
}

/* Both return 0 when done, 1 where the list is not such a network, 2 without memory. */

int NAME(dense)(const layout *l, const void *list, int number, const char *activations, int64_t count,
                int threads) {
    NAME(dense_net) d;
    if (!NAME(read_dense)(&d, l, list_of(list, l), number, activations, count)) return 1;
    in_parallel(NAME(dense_part), &d, threads);
    return d.failed ? 2 : 0;
}

/* After the arrays of the forward: ∂L/∂y, ∂L/∂x or None, and the gradients of weight and bias. */
int NAME(dense_backward)(const layout *l, const void *list, int number, const char *activations, int64_t count,
                         int threads) {
    NAME(dense_net) d;
    const list_fields *given = list_of(list, l);
    if (!NAME(read_dense)(&d, l, given, number, activations, count)) return 1;
    void **results = given->items + 3 + 2 * count;
    for (int64_t i = 0; i < 2 + 2 * count; i++) {
        const array_fields *found = array_of(results[i], l, number, PLAIN);
        if (!found && results[i] != l->none) return 1;
        real *data = found ? (real *)found->data : NULL;
        if (i == 0) d.dy = data;
        else if (i == 1) d.dx = data;
        else if (i % 2) d.layer[i / 2 - 1].dbias = data;
        else d.layer[i / 2 - 1].dweight = data;
    }
    const int64_t blocks = (d.n + DENSE_ROWS - 1) / DENSE_ROWS;
    d.groups = blocks < MOST_GROUPS ? blocks : MOST_GROUPS;
    d.sums = malloc(d.groups * d.size * sizeof(real));
    if (!d.sums) return 2;
    in_parallel(NAME(dense_backward_part), &d, threads);
    for (int64_t group = 1; group < d.groups; group++)
        for (int64_t k = 0; k < d.size; k++) d.sums[k] += d.sums[group * d.size + k];
    for (const NAME(dense_layer) *layer = d.layer; layer < d.layer + count; layer++) {
        const real *dweight = d.sums + layer->sums, *dbias = dweight + layer->out * layer->wide_in;
        if (NAME(sums_turned)(layer))
            for (int64_t o = 0; o < layer->out; o++)
                for (int64_t i = 0; i < layer->in; i++)
                    layer->dweight[o * layer->in + i] = dweight[i * layer->wide_out + o];
        else NAME(narrow)(layer->dweight, layer->in, dweight, layer->wide_in, layer->out);
        if (layer->dbias) memcpy(layer->dbias, dbias, layer->out * sizeof(real));
    }
    free(d.sums);
    return d.failed ? 2 : 0;
}

#undef PADDED
