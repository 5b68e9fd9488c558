/* Products of large matrices, for one floating-point type `real`: operands are copied, block by block, into the order in
 * which the tiles of affine.h read them. A panel of b, of one tile's width and BLOCK_DEPTH rows, stays in the second
 * cache while all rows of a go by; those of a, in groups of a tile's height, come from the third one.
 *
 * Sums over k are taken over blocks that depend on k alone: no bit depends on the number of threads. */

#ifndef BLOCK_LIMITS
#define BLOCK_LIMITS
#define BLOCK_DEPTH 512
#define MOST_DEPTH 4096     /* of a's copy, */
#define MOST_COPIED 2097152 /* and its numbers */
#define TILE_ROWS 6
#endif

/* The part's share of `size` in multiples of `step`. */
static NAME(span) NAME(share_of)(int64_t size, int64_t step, int part, int parts) {
    const int64_t pieces = (size + step - 1) / step, end = (part + 1) * pieces / parts * step;
    return (NAME(span)){part * pieces / parts * step, end < size ? end : size};
}

/* Rows of a in groups of `high` ≤ TILE_ROWS, the numbers of one column of a group side by side. */
static void NAME(copy_rows)(const real *a, int64_t a_row, int64_t a_step, int64_t rows, int64_t depth, real *to) {
    for (int64_t i = 0, high; i < rows; i += high) {
        high = rows - i < TILE_ROWS ? rows - i : TILE_ROWS;
        const real *from = a + i * a_row;
        if (high == TILE_ROWS)
            for (int64_t p = 0; p < depth; p++, to += TILE_ROWS)
                UNROLL for (int r = 0; r < TILE_ROWS; r++) to[r] = from[r * a_row + p * a_step];
        else
            for (int64_t p = 0; p < depth; p++, to += high)
                for (int r = 0; r < high; r++) to[r] = from[r * a_row + p * a_step];
    }
}

/* `width` ≤ PANEL · LANES columns of b, each LANES of them as `depth` vectors; zeros beyond. */
static void NAME(copy_panel)(const product *t, int64_t p, int64_t depth, int64_t column, int64_t width, vector *to) {
    const real *b = t->b;
    const images rows = {(void *)(b + p), t->ldb, t->ldb, t->ldb, 1};
    if (t->trans_b == NOT_TRANSPOSED && width == PANEL * LANES) {
        const real *from = b + p * t->ldb + column;
        for (int64_t k = 0; k < depth; k++, from += t->ldb)
            UNROLL for (int64_t v = 0; v < PANEL; v++) {
                FETCH(from + v * LANES + 16 * t->ldb);
                to[v * depth + k] = NAME(load)(from + v * LANES, 1, LANES);
            }
        return;
    }
    for (int64_t v = 0; v < width; v += LANES, to += depth) {
        const int64_t lanes = width - v < LANES ? width - v : LANES;
        if (t->trans_b != NOT_TRANSPOSED) NAME(pack)(&rows, column + v, lanes, 1, 1, depth, to, depth, depth);
        else
            for (int64_t k = 0; k < depth; k++) to[k] = NAME(load)(b + (p + k) * t->ldb + column + v, 1, lanes);
    }
}

static void NAME(blocked_part)(void *task, int part, int parts) {
    product *t = task;
    const int by_rows = t->m > t->n;
    NAME(span) rows = {0, t->m}, columns = {0, t->n};
    if (by_rows) rows = NAME(share_of)(t->m, TILE_ROWS, part, parts);
    else columns = NAME(share_of)(t->n, PANEL * LANES, part, parts);
    if (rows.from >= rows.to || columns.from >= columns.to) return;
    const int turned = t->trans_a != NOT_TRANSPOSED;
    const int64_t a_row = turned ? 1 : t->lda, a_step = turned ? t->lda : 1;
    const int64_t most_depth = t->k < MOST_DEPTH ? t->k : MOST_DEPTH, deep = t->k < BLOCK_DEPTH ? t->k : BLOCK_DEPTH;
    const int64_t most = MOST_COPIED / most_depth / TILE_ROWS * TILE_ROWS, all = rows.to - rows.from;
    const int64_t most_rows = all < most ? all : most, numbers = (most_rows * most_depth + 15) / 16 * 16;
    real *a = take_scratch(numbers * sizeof(real) + deep * PANEL * sizeof(vector));
    if (!a) { t->failed = 1; return; }
    vector *b = (vector *)(a + numbers);
    for (int64_t first = 0; first < t->k; first += most_depth) {
        const int64_t last = t->k - first < most_depth ? t->k : first + most_depth;
        for (int64_t i = rows.from, high; i < rows.to; i += high) {
            high = rows.to - i < most_rows ? rows.to - i : most_rows;
            for (int64_t p = first, depth; p < last; p += depth) {
                depth = last - p < BLOCK_DEPTH ? last - p : BLOCK_DEPTH;
                NAME(copy_rows)((const real *)t->a + i * a_row + p * a_step, a_row, a_step, high, depth,
                                a + (p - first) * high);
            }
            for (int64_t column = columns.from, width; column < columns.to; column += width) {
                width = columns.to - column < PANEL * LANES ? columns.to - column : PANEL * LANES;
                for (int64_t p = first, depth; p < last; p += depth) {
                    depth = last - p < BLOCK_DEPTH ? last - p : BLOCK_DEPTH;
                    NAME(copy_panel)(t, p, depth, column, width, b);
                    for (int64_t r = 0, some; r < high; r += some) {
                        some = high - r < TILE_ROWS ? high - r : TILE_ROWS;
                        real *c = (real *)t->c + (i + r) * t->n + column;
                        for (int64_t row = 0; row < some; row++)
                            UNROLL for (int64_t v = 0; v < PANEL; v++) FETCH(c + row * t->n + v * LANES);
                        NAME(multiply_small)(&(NAME(small_product)){
                            .a = a + (p - first) * high + r * depth, .a_row = 1, .a_step = some, .b = (real *)b,
                            .b_step = LANES, .b_vector = depth * LANES,
                            .c = c, .c_row = t->n, .m = some, .k = depth, .n = width, .added = p > 0});
                    }
                }
            }
        }
    }
}

void NAME(multiply_blocked)(product *t) {
    t->failed = 0;
    in_parallel(NAME(blocked_part), t, t->threads);
}
