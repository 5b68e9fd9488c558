/* Kernels as a recorded step calls them: by an address with a task, whose numbers that differ between steps
 * are read from memory. For one floating-point type `real`. */

typedef struct {
    const layout *l;
    const void *list; /* as for `dense` or `dense_backward` */
    const char *activations;
    int64_t count;
    int number, threads, backward;
} NAME(dense_task);

int NAME(dense_task_run)(const NAME(dense_task) * t) {
    return (t->backward ? NAME(dense_backward) : NAME(dense))(t->l, t->list, t->number, t->activations,
                                                              t->count, t->threads);
}

typedef struct {
    int (*update)(const layout *, const void *, int, real, real, real, int);
    const layout *l;
    const void *list;
    const real *s, *t, *u;
    int number, threads;
} NAME(update_task);

int NAME(update_task_run)(const NAME(update_task) * t) {
    return t->update(t->l, t->list, t->number, *t->s, *t->t, *t->u, t->threads);
}

typedef struct {
    const layout *l;
    const void *list;
    const real *rate, *scale, *eps;
    real betas[4]; /* β₁, 1 - β₁, β₂, 1 - β₂ */
    int number, threads;
} NAME(adaptive_task);

int NAME(adaptive_task_run)(const NAME(adaptive_task) * t) {
    const real *b = t->betas, numbers[] = {b[0], b[1], b[2], b[3], *t->rate, *t->scale, *t->eps};
    return NAME(adaptive_step)(t->l, t->list, t->number, numbers, t->threads);
}

typedef struct {
    void (*pass)(real *, const real *, const real *, real, real, real, int64_t, int);
    real *to;
    const real *a, *b;
    int64_t n;
    int threads;
} NAME(pass_task);

int NAME(pass_task_run)(const NAME(pass_task) * t) {
    t->pass(t->to, t->a, t->b, 0, 0, 0, t->n, t->threads);
    return 0;
}

typedef struct {
    const real *logits;
    const int64_t *labels;
    real *gradient, *loss;
    double scale;
    int64_t n, c;
    int threads;
} NAME(cross_entropy_task);

int NAME(cross_entropy_task_run)(const NAME(cross_entropy_task) * t) {
    const double total = NAME(cross_entropy)(t->logits, t->labels, t->gradient, (real)t->scale, t->n, t->c,
                                             t->threads);
    *t->loss = (real)(t->scale * total);
    return 0;
}

/* 1, which ends a replay, where the value is infinite or nan. */
int NAME(end_unless_finite_run)(const real *value) { return !isfinite(*value); }
