/* In-place updates of optimizers for one floating-point type `real`: a list of arrays in one call, one
 * pass over memory each, large lists on all threads. The loops are plain; the compiler vectorizes them.
 * An entry's result depends on the entry alone.
 *
 * A list is given as CPython's object, and each array as numpy's, since reading a hundred addresses in
 * Python takes longer than a small network's update. `arrays.py` compares both layouts with this file. */

#ifndef UPDATES_LAYOUTS
#define UPDATES_LAYOUTS

typedef struct { /* a list, after the header of an object */
    intptr_t size;
    void **items;
} list_fields;

typedef struct { /* a dtype, after the header */
    void *scalar;
    char kind, letter, order, flags;
    int number;
} dtype_fields;

typedef struct { /* an array, after the header */
    char *data;
    int axes;
    intptr_t *shape, *strides;
    void *base, *dtype;
    int flags;
} array_fields;

typedef struct {
    long header; /* bytes of an object's header, which ends with the address of its type */
    void *array; /* the type of an array */
} layout;

enum { IN_ROW_MAJOR_ORDER = 0x1, IS_ALIGNED = 0x100, IS_WRITEABLE = 0x400 }; /* as in ndarraytypes.h */

/* The fields of an array with this dtype's number in the machine's byte order and with these flags. */
static inline const array_fields *array_of(void *object, const layout *l, int number, int flags) {
    const char *fields = (const char *)object + l->header;
    if (((void *const *)fields)[-1] != l->array) return NULL;
    const array_fields *array = (const void *)fields;
    const dtype_fields *dtype = (const void *)((const char *)array->dtype + l->header);
    const int fits = dtype->number == number && dtype->order == '=' && (array->flags & flags) == flags;
    return fits ? array : NULL;
}

static inline long entries_of(const array_fields *array) {
    long n = 1;
    for (int axis = 0; axis < array->axes; axis++) n *= array->shape[axis];
    return n;
}

static inline int of_one_shape(const array_fields *a, const array_fields *b) {
    return a->axes == b->axes && !memcmp(a->shape, b->shape, a->axes * sizeof *a->shape);
}

static inline int overlap(const char *a, const char *b, long bytes) {
    return a < b + bytes && b < a + bytes;
}
#endif

typedef struct {
    const layout *l;
    void **arrays; /* those that are changed, then the first partners of all, then the second ones */
    long count, partners;
    real s, t, u;
    void (*loop)(real *restrict to, const real *restrict a, const real *restrict b, real s, real t, real u,
                 long n);
} NAME(update);

static void NAME(update_part)(void *task, int part, int parts) {
    const NAME(update) *u = task;
    for (long i = 0; i < u->count; i++) {
        const array_fields *of[3];
        for (long k = 0; k <= u->partners; k++)
            of[k] = (const void *)((const char *)u->arrays[k * u->count + i] + u->l->header);
        const long n = entries_of(of[0]);
        /* whole cache lines, so that no two threads write to one line */
        const long lines = (n + 15) / 16, from = part * lines / parts * 16;
        const long end = (part + 1) * lines / parts * 16, to = end < n ? end : n;
        if (from < to)
            u->loop((real *)of[0]->data + from, u->partners ? (const real *)of[1]->data + from : NULL,
                    u->partners > 1 ? (const real *)of[2]->data + from : NULL, u->s, u->t, u->u, to - from);
    }
}

/* Returns 0 when done; 1, with nothing changed, where an array is none of this type in row-major order, or
 * its partners have another shape or share memory with it. */
static int NAME(run_update)(NAME(update) u, const void *list, int number, int threads) {
    const list_fields *given = (const void *)((const char *)list + u.l->header);
    u.arrays = given->items;
    u.count = given->size / (1 + u.partners);
    long total = 0;
    for (long i = 0; i < u.count; i++) {
        const int plain = IN_ROW_MAJOR_ORDER | IS_ALIGNED;
        const array_fields *to = array_of(u.arrays[i], u.l, number, plain | IS_WRITEABLE);
        if (!to) return 1;
        const long n = entries_of(to);
        for (long k = 1; k <= u.partners; k++) {
            const array_fields *from = array_of(u.arrays[k * u.count + i], u.l, number, plain);
            if (!from || !of_one_shape(to, from) || overlap(to->data, from->data, n * sizeof(real))) return 1;
        }
        total += n;
    }
    in_parallel(NAME(update_part), &u, total < 32768 ? 1 : threads);
    return 0;
}

#define UPDATE(name, others, what)                                                                       \
    static void NAME(name##_loop)(real *restrict to, const real *restrict a, const real *restrict b,     \
                                  real s, real t, real u, long n) {                                      \
        (void)a, (void)b, (void)s, (void)t, (void)u;                                                     \
        for (long i = 0; i < n; i++) what;                                                               \
    }                                                                                                    \
    int NAME(name)(const layout *l, const void *list, int number, real s, real t, real u, int threads) { \
        return NAME(run_update)((NAME(update)){.l = l, .partners = others, .s = s, .t = t, .u = u,       \
                                               .loop = NAME(name##_loop)}, list, number, threads);       \
    }

UPDATE(add_scaled, 1, to[i] += s * a[i])
UPDATE(average, 1, to[i] = s * to[i] + t * a[i])
UPDATE(average_product, 2, to[i] = s * to[i] + t * a[i] * b[i])
UPDATE(rescale, 0, to[i] *= s)
UPDATE(normalized_step, 2, to[i] -= s * a[i] / (t * SQRT(b[i]) + u))

#undef UPDATE
