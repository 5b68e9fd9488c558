/* Lists of CPython and arrays of numpy as they lie in memory: C reads the addresses of a network's
 * arrays, and checks them, as reading fifty of them in Python takes longer than a small network's step.
 * `arrays.py` compares these layouts with the interpreter's. */

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
    int64_t header;        /* bytes of an object's header, which ends with the address of its type */
    void *array, *none; /* the type of an array; None */
} layout;

enum { IN_ROW_MAJOR_ORDER = 0x1, IS_ALIGNED = 0x100, IS_WRITEABLE = 0x400 }; /* as in ndarraytypes.h */
enum { PLAIN = IN_ROW_MAJOR_ORDER | IS_ALIGNED };

static inline const list_fields *list_of(const void *list, const layout *l) {
    return (const void *)((const char *)list + l->header);
}

/* The fields of an object that is known to be an array. */
static inline const array_fields *fields_of(const void *object, const layout *l) {
    return (const void *)((const char *)object + l->header);
}

/* The fields of an array with this dtype's number in the machine's byte order and with these flags; NULL
 * for another object. */
static inline const array_fields *array_of(const void *object, const layout *l, int number, int flags) {
    const char *fields = (const char *)object + l->header;
    if (((void *const *)fields)[-1] != l->array) return NULL;
    const array_fields *array = fields_of(object, l);
    const dtype_fields *dtype = (const void *)((const char *)array->dtype + l->header);
    const int fits = dtype->number == number && dtype->order == '=' && (array->flags & flags) == flags;
    return fits ? array : NULL;
}

static inline int64_t entries_of(const array_fields *array) {
    int64_t n = 1;
    for (int axis = 0; axis < array->axes; axis++) n *= array->shape[axis];
    return n;
}

static inline int of_one_shape(const array_fields *a, const array_fields *b) {
    return a->axes == b->axes && !memcmp(a->shape, b->shape, a->axes * sizeof *a->shape);
}

static inline int overlap(const char *a, const char *b, int64_t bytes) {
    return a < b + bytes && b < a + bytes;
}
