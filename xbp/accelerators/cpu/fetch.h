/* What the next chunk of a convolution in tiles will read or write is brought to the second-level cache while
 * the products of this one leave memory idle: between products, transformations wait for little else. */
#ifndef XBP_FETCH_H
#define XBP_FETCH_H

/* Lines of memory, `step` bytes apart along `columns`, in rows of planes. */
typedef struct {
    const void *data;
    int64_t plane, row, step, planes, rows, columns;
} region;

typedef struct {
    region of[4];
    int count, at;
    int64_t plane, row; /* of of[at], where to go on */
    int64_t pace;       /* rows for each call of `fetch` */
} fetches;

/* Let all rows be fetched by so many calls. */
static inline void pace_fetches(fetches *f, int64_t calls) {
    int64_t rows = 0;
    for (int i = 0; i < f->count; i++) rows += f->of[i].planes * f->of[i].rows;
    f->pace = (rows + calls - 1) / calls;
}

static inline void fetch(fetches *f) {
    for (int64_t k = 0; k < f->pace && f->at < f->count; k++) {
        const region *l = f->of + f->at;
        const char *from = (const char *)l->data + f->plane * l->plane + f->row * l->row;
        for (int64_t i = 0; i < l->columns; i++) FETCH_SOON(from + i * l->step);
        if (++f->plane < l->planes) continue;
        f->plane = 0;
        if (++f->row == l->rows) f->row = 0, f->at++;
    }
}

#endif
