/* Replays of recorded steps: calls one after the other, and the rows of tables that they begin and end with. */
#include <string.h>
#include "kernels.h"

typedef struct {
    int (*run)(const void *task); /* 0 when done */
    const void *task;
} recorded_call;

/* The number of calls that were done; `count` unless one has failed. */
int64_t xbp_replay(const recorded_call *calls, int64_t count) {
    int64_t i = 0;
    while (i < count && !calls[i].run(calls[i].task)) i++;
    return i;
}

typedef struct {
    void (*multiply)(product *);
    product of;
} product_task;

int xbp_product_task_run(product_task *t) {
    t->multiply(&t->of);
    return t->of.failed;
}

typedef struct {
    char *to;
    const char *from;
    int64_t bytes, rows; /* of a row; of the table */
} table;

typedef struct {
    const table *tables;
    const int64_t *at, *order;                    /* order may be NULL */
    int64_t length, first, step, count, of_tables; /* length: of order */
} rows_task;

/* Row s of `to` ← row order[at + first + s step] of `from`, or at + first + s step itself, for each table.
 * 1, with nothing written, where there is no such row. */
int xbp_take_rows_run(const rows_task *t) {
    for (int write = 0; write < 2; write++)
        for (int64_t s = 0; s < t->count; s++) {
            int64_t row = *t->at + t->first + s * t->step;
            if (t->order) {
                if (row < 0 || row >= t->length) return 1;
                row = t->order[row];
            }
            for (int64_t k = 0; k < t->of_tables; k++) {
                const table *of = t->tables + k;
                if (row < 0 || row >= of->rows) return 1;
                if (write) memcpy(of->to + s * of->bytes, of->from + row * of->bytes, of->bytes);
            }
        }
    return 0;
}

/* Row `at` of `to` ← `from` for each table; then at ← at + 1. */
int xbp_append_row_run(const rows_task *t) {
    int64_t *at = (int64_t *)t->at;
    for (int64_t k = 0; k < t->of_tables; k++)
        if (*at < 0 || *at >= t->tables[k].rows) return 1;
    for (int64_t k = 0; k < t->of_tables; k++) {
        const table *of = t->tables + k;
        memcpy(of->to + *at * of->bytes, of->from, of->bytes);
    }
    ++*at;
    return 0;
}
