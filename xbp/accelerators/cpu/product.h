/* A matrix product on the workers: each thread computes its part of the result by a call of numpy's
 * BLAS, which is limited to one thread meanwhile.
 *
 * After each product OpenBLAS's own threads spin for some 20 ms, on cores that the next convolution
 * needs; with them LeNet-5 took half as long again. */

typedef void NAME(gemm)(int order, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, real alpha,
                        const real *a, int64_t lda, const real *b, int64_t ldb, real beta, real *c,
                        int64_t ldc);

static void NAME(multiply_part)(void *task, int part, int parts) {
    const product *t = task;
    /* The longer side of c is split, in multiples of 16, the width of the BLAS's kernels. */
    const int by_rows = t->m > t->n;
    const int64_t size = by_rows ? t->m : t->n, pieces = (size + 15) / 16;
    const int64_t from = part * pieces / parts * 16, end = (part + 1) * pieces / parts * 16;
    const int64_t length = (end < size ? end : size) - from;
    if (length <= 0) return;
    const real *a = t->a, *b = t->b;
    real *c = t->c;
    if (by_rows) {
        a += t->trans_a == NOT_TRANSPOSED ? from * t->lda : from;
        c += from * t->n;
    } else {
        b += t->trans_b == NOT_TRANSPOSED ? from : from * t->ldb;
        c += from;
    }
    ((NAME(gemm) *)t->gemm)(ROW_MAJOR, t->trans_a, t->trans_b, by_rows ? length : t->m,
                            by_rows ? t->n : length, t->k, 1, a, t->lda, b, t->ldb, 0, c, t->n);
}

void NAME(multiply)(product *t) {
    hold_blas(t);
    in_parallel(NAME(multiply_part), t, t->threads);
    release_blas(t);
}
