/* Softmax and cross-entropy of (n, c) logits with labels, for one floating-point type `real`: the sum of -log p[label]
 * in double precision, and the gradient scale · (p - one-hot). The sum is nan where a label is out of range.
 *
 * -log p[label] = log Σ e^(z - max z) - (z[label] - max z). Each Σ is from 1 to c, so one logarithm of a product serves
 * several rows. Sums are taken over blocks of rows, whose number depends on n and c alone: no bit depends on the number
 * of threads. */

#ifndef CROSS_ENTROPY_LIMITS
#define CROSS_ENTROPY_LIMITS
#define MOST_BLOCKS 64
#define LEAST_ENTRIES 4096 /* of a block */
#define LEAST_OF_THREADS 16384
#define OF_ONE_LOGARITHM 15 /* factors of a product; each is below 2⁶³, or below 2⁴ in each of 16 lanes */
#endif

typedef struct {
    const real *logits;
    const int64_t *labels;
    real *gradient;
    real scale;
    int64_t n, c, blocks;
    double totals[MOST_BLOCKS];
} NAME(losses);

/* Factors Σ e^(z - max z) and terms z[label] - max z of the sum, in each lane. */
typedef struct { double product[LANES], picked[LANES]; } NAME(terms);

/* The numbers of c vectors, c = 2, 4 or 8, in another order: LANES rows of c numbers to c rows of LANES and back. Each
 * round rotates the bits of a number's place by one. */
#define EVEN(lane, n) 2 * (lane)
#define ODD(lane, n) 2 * (lane) + 1
#define LOW(lane, n) ((lane) / 2 + (lane) % 2 * LANES)
#define HIGH(lane, n) ((lane) / 2 + (lane) % 2 * LANES + LANES / 2)
INLINE void NAME(by_class)(vector *v, const int c) {
    UNROLL for (int round = 2; round <= c; round *= 2) {
        vector found[8];
        UNROLL for (int i = 0; i < c / 2; i++) {
            const vector a = v[2 * i], b = v[2 * i + 1];
            found[i] = SHUFFLE(a, b, EACH_LANE(EVEN, 0));
            found[c / 2 + i] = SHUFFLE(a, b, EACH_LANE(ODD, 0));
        }
        UNROLL for (int i = 0; i < c; i++) v[i] = found[i];
    }
}
INLINE void NAME(by_row)(vector *v, const int c) {
    UNROLL for (int round = 2; round <= c; round *= 2) {
        vector found[8];
        UNROLL for (int i = 0; i < c / 2; i++) {
            const vector a = v[i], b = v[c / 2 + i];
            found[2 * i] = SHUFFLE(a, b, EACH_LANE(LOW, 0));
            found[2 * i + 1] = SHUFFLE(a, b, EACH_LANE(HIGH, 0));
        }
        UNROLL for (int i = 0; i < c; i++) v[i] = found[i];
    }
}
#undef EVEN
#undef ODD
#undef LOW
#undef HIGH

/* LANES rows of c ≤ LANES numbers, of which `rows` exist: each vector has one class of all rows. If `inner`, all rows
 * exist, and the numbers after the last of them are the block's own: they are read, and written before their turn, as
 * whole vectors. `power` is c if this is 2, 4 or 8, for inner rows, or 0. Returns 0 where a label is out of range. */
INLINE int NAME(narrow_group)(const int inner, const int power, const NAME(losses) * t, int64_t i, int64_t rows,
                              NAME(terms) * terms) {
    const int64_t c = power ? power : t->c, size = rows * c;
    const real *from = t->logits + i * c;
    real *to = t->gradient + i * c;
    whole own[LANES];
    int wrong = 0;
    for (int64_t lane = 0; lane < LANES; lane++) {
        const int64_t label = inner || lane < rows ? t->labels[i + lane] : 0;
        wrong |= (uint64_t)label >= (uint64_t)c;
        own[lane] = (whole)label;
    }
    if (wrong) return 0;
    vector z[LANES], e[LANES];
    if (power) {
        memcpy(z, from, power * sizeof(vector));
        NAME(by_class)(z, power);
    } else {
        UNROLL for (int64_t lane = 0; lane < LANES; lane++) {
            const int64_t left = size - lane * c;
            if (inner || left >= LANES) z[lane] = NAME(load)(from + lane * c, 1, LANES);
            else z[lane] = left > 0 ? NAME(load)(from + lane * c, 1, left) : (vector){0};
        }
        NAME(transpose)(z);
    }
    vector top = z[0], sum = {0}, picked = {0};
    UNROLL_IF_KNOWN for (int64_t j = 1; j < c; j++) top = NAME(greater)(z[j], top);
    UNROLL_IF_KNOWN for (int64_t j = 0; j < c; j++) {
        z[j] -= top;
        e[j] = NAME(exp_below_0)(z[j]);
        sum += e[j];
    }
    const vector share = t->scale / sum, scale = (vector){0} + t->scale;
    mask label;
    memcpy(&label, own, sizeof label);
    UNROLL_IF_KNOWN for (int64_t j = 0; j < c; j++) {
        const mask here = label == (whole)j;
        picked = NAME(choose)(here, z[j], picked);
        e[j] = e[j] * share - (vector)(here & (mask)scale);
    }
    if (power) {
        NAME(by_row)(e, power);
        memcpy(to, e, power * sizeof(vector));
    } else {
        for (int64_t j = c; j < LANES; j++) e[j] = (vector){0};
        NAME(transpose)(e);
        UNROLL for (int64_t lane = 0; lane < LANES; lane++) {
            const int64_t left = size - lane * c;
            if (inner || left >= LANES) NAME(store)(to + lane * c, 1, LANES, e[lane]);
            else if (left > 0) NAME(store)(to + lane * c, 1, left, e[lane]);
        }
    }
    if (!inner) {
        const mask exists = NAME(numbered)() < (whole)rows;
        sum = NAME(choose)(exists, sum, (vector){0} + 1);
        picked = NAME(choose)(exists, picked, (vector){0});
    }
    real sums[LANES], picks[LANES];
    memcpy(sums, &sum, sizeof sum);
    memcpy(picks, &picked, sizeof picked);
    for (int64_t lane = 0; lane < LANES; lane++) terms->product[lane] *= sums[lane];
    for (int64_t lane = 0; lane < LANES; lane++) terms->picked[lane] += picks[lane];
    return 1;
}

static double NAME(of_narrow_rows)(const NAME(losses) * t, int64_t begin, int64_t end) {
    double total = 0;
    NAME(terms) terms;
    for (int64_t lane = 0; lane < LANES; lane++) terms.product[lane] = 1, terms.picked[lane] = 0;
    int factors = 0;
    for (int64_t i = begin; i < end; i += LANES) {
        const int64_t rows = end - i < LANES ? end - i : LANES;
        const int inner = (end - i - LANES + 1) * t->c >= LANES; /* with the vector at its last row */
        int right;
        if (LANES >= 4 && rows == LANES && t->c == 4) right = NAME(narrow_group)(1, 4, t, i, rows, &terms);
        else if (rows == LANES && t->c == 2) right = NAME(narrow_group)(1, 2, t, i, rows, &terms);
        else if (LANES >= 8 && rows == LANES && t->c == 8) right = NAME(narrow_group)(1, 8, t, i, rows, &terms);
        else if (inner) right = NAME(narrow_group)(1, 0, t, i, rows, &terms);
        else right = NAME(narrow_group)(0, 0, t, i, rows, &terms);
        if (!right) return NAN;
        if (++factors < OF_ONE_LOGARITHM && i + LANES < end) continue;
        for (int64_t lane = 1; lane < LANES; lane++) terms.product[0] *= terms.product[lane];
        total += log(terms.product[0]);
        for (int64_t lane = 0; lane < LANES; lane++) terms.product[lane] = 1;
        factors = 0;
    }
    for (int64_t lane = 0; lane < LANES; lane++) total -= terms.picked[lane];
    return total;
}

static double NAME(of_wide_rows)(const NAME(losses) * t, int64_t begin, int64_t end) {
    const int64_t c = t->c;
    double total = 0, product = 1;
    int factors = 0;
    for (int64_t i = begin; i < end; i++) {
        const int64_t label = t->labels[i];
        if (label < 0 || label >= c) return NAN;
        const real *z = t->logits + i * c;
        real *g = t->gradient + i * c;
        vector best = NAME(load)(z, 1, LANES), sum = {0};
        for (int64_t j = LANES; j < c; j += LANES) {
            const int64_t at = j + LANES <= c ? j : c - LANES; /* some twice: it is a maximum */
            best = NAME(greater)(NAME(load)(z + at, 1, LANES), best);
        }
        const real top = NAME(greatest_of_lanes)(best);
        for (int64_t j = 0; j < c; j += LANES) {
            const int64_t lanes = c - j < LANES ? c - j : LANES;
            const vector e = NAME(exp_below_0)(NAME(load_end)(z + j, lanes, -INFINITY) - top);
            sum += e;
            NAME(store)(g + j, 1, lanes, e);
        }
        const real all = NAME(sum_of_lanes)(sum), share = t->scale / all;
        for (int64_t j = 0; j < c; j += LANES) {
            const int64_t lanes = c - j < LANES ? c - j : LANES;
            NAME(store)(g + j, 1, lanes, NAME(load)(g + j, 1, lanes) * share);
        }
        g[label] -= t->scale;
        total -= z[label] - top;
        product *= all;
        if (++factors < OF_ONE_LOGARITHM && i + 1 < end) continue;
        total += log(product);
        product = 1;
        factors = 0;
    }
    return total;
}

static void NAME(losses_part)(void *task, int part, int parts) {
    NAME(losses) *t = task;
    const int64_t groups = (t->n + LANES - 1) / LANES;
    for (int64_t block = part * t->blocks / parts; block < (part + 1) * t->blocks / parts; block++) {
        const int64_t begin = block * groups / t->blocks * LANES, after = (block + 1) * groups / t->blocks * LANES;
        const int64_t end = after < t->n ? after : t->n;
        t->totals[block] =
            t->c <= LANES ? NAME(of_narrow_rows)(t, begin, end) : NAME(of_wide_rows)(t, begin, end);
    }
}

double NAME(cross_entropy)(const real *logits, const int64_t *labels, real *gradient, real scale, int64_t n,
                           int64_t c, int threads) {
    const int64_t groups = (n + LANES - 1) / LANES, most = groups < MOST_BLOCKS ? groups : MOST_BLOCKS;
    const int64_t wanted = n * c / LEAST_ENTRIES + 1;
    NAME(losses) t = {logits, labels, gradient, scale, n, c, wanted < most ? wanted : most, {0}};
    in_parallel(NAME(losses_part), &t, n * c < LEAST_OF_THREADS ? 1 : threads);
    double total = 0;
    for (int64_t block = 0; block < t.blocks; block++) total += t.totals[block];
    return total;
}

/* The same for a list of logits, labels and gradient, each in row-major order. */
double NAME(listed_cross_entropy)(const layout *l, const void *list, real scale, int threads) {
    void *const *items = list_of(list, l)->items;
    const array_fields *logits = fields_of(items[0], l), *labels = fields_of(items[1], l);
    return NAME(cross_entropy)((const real *)logits->data, (const int64_t *)labels->data,
                               (real *)fields_of(items[2], l)->data, scale, logits->shape[0], logits->shape[1],
                               threads);
}
