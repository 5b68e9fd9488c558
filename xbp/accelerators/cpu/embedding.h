/* Rows of a table by index, and the sums of rows that share an index, for one floating-point type `real`. */

typedef struct {
    const lookup *t;
    int64_t *ends;  /* for each row of the table, where its indices end in `order` */
    int64_t *order; /* the places of indices, sorted by index */
} NAME(scatter_job);

static void NAME(look_up_part)(void *task, int part, int parts) {
    const lookup *t = task;
    for (int64_t i = part * t->n / parts; i < (part + 1) * t->n / parts; i++) {
        const int64_t k = t->index[i];
        real *to = (real *)t->rows + i * t->width;
        if (k >= 0 && k < t->length)
            memcpy(to, (const real *)t->table + k * t->width, t->width * sizeof(real));
        else
            for (int64_t j = 0; j < t->width; j++) to[j] = (real)NAN;
    }
}

int NAME(look_up)(const lookup *t) {
    in_parallel(NAME(look_up_part), (void *)t, t->threads);
    return 0;
}

/* Σ_i of one vector of the rows order[from … end], by a binary tree, whose rounding error grows with the
 * logarithm of the number of terms: `sums` has the sums of 2^k rows that wait for as many others. */
INLINE vector NAME(tree)(const real *column, int64_t width, int64_t lanes, const int64_t *order, int64_t from,
                         int64_t end) {
    vector sums[64], total = {0};
    int depth = 0;
    for (int64_t i = from; i < end; i++) {
        vector sum = NAME(load)(column + order[i] * width, 1, lanes);
        for (int64_t rest = i - from; rest & 1; rest >>= 1) sum = sums[--depth] + sum;
        sums[depth++] = sum;
    }
    if (depth) total = sums[--depth];
    while (depth) total = sums[--depth] + total;
    return total;
}

/* Some columns of all sums. */
static void NAME(scatter_part)(void *task, int part, int parts) {
    const NAME(scatter_job) *job = task;
    const lookup *t = job->t;
    const int64_t width = t->width, vectors = (width + LANES - 1) / LANES;
    const int64_t from = part * vectors / parts * LANES, stop = (part + 1) * vectors / parts * LANES;
    for (int64_t k = 0; k < t->length; k++)
        for (int64_t j = from; j < stop; j += LANES) {
            const int64_t lanes = width - j < LANES ? width - j : LANES, begin = k ? job->ends[k - 1] : 0;
            NAME(store)((real *)t->table + k * width + j, 1, lanes,
                        NAME(tree)((const real *)t->rows + j, width, lanes, job->order, begin, job->ends[k]));
        }
}

/* Row k of the table is the sum of the rows with index k; indices of no row, and `left_out`, are ignored. */
int NAME(scatter_add)(const lookup *t) {
    NAME(scatter_job) job = {.t = t, .ends = malloc((t->length + t->n) * sizeof(int64_t))};
    if (!job.ends) return 1;
    job.order = job.ends + t->length;
    memset(job.ends, 0, t->length * sizeof(int64_t));
#define COUNTS(k) ((k) >= 0 && (k) < t->length && (k) != t->left_out)
    for (int64_t i = 0; i < t->n; i++)
        if (COUNTS(t->index[i]) && t->index[i] + 1 < t->length) job.ends[t->index[i] + 1]++;
    for (int64_t k = 1; k < t->length; k++) job.ends[k] += job.ends[k - 1]; /* now where those of k begin */
    for (int64_t i = 0; i < t->n; i++)
        if (COUNTS(t->index[i])) job.order[job.ends[t->index[i]]++] = i;
#undef COUNTS
    in_parallel(NAME(scatter_part), &job, t->threads);
    free(job.ends);
    return 0;
}
