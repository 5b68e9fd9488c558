/* Vectors with one number for each image of a block, and their way from memory and back, for one
 * floating-point type `real`. */

#define vector NAME(vector)
#define mask NAME(mask)
typedef real vector __attribute__((vector_size(VECTOR_BYTES)));
typedef whole mask __attribute__((vector_size(VECTOR_BYTES)));
#define LANES ((long)(VECTOR_BYTES / sizeof(real)))
typedef uint8_t NAME(bytes) __attribute__((vector_size(VECTOR_BYTES / sizeof(real))));
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))
/* Keeps the compiler from reloading a factor from memory for each of its products. */
#define IN_REGISTER(v) __asm__("" : "+" VECTOR_REGISTER(v))

/* --- lanes to and from memory: `lanes` images whose neighbours are `stride` apart --- */

INLINE vector NAME(load)(const real *from, long stride, long lanes) {
    vector v = {0};
    if (stride == 1 && lanes == LANES) memcpy(&v, from, sizeof v);
    else
        for (long lane = 0; lane < lanes; lane++) v[lane] = from[lane * stride];
    return v;
}

INLINE void NAME(store)(real *to, long stride, long lanes, vector v) {
    if (stride == 1 && lanes == LANES) memcpy(to, &v, sizeof v);
    else
        for (long lane = 0; lane < lanes; lane++) to[lane * stride] = v[lane];
}

/* 0, 1, 2, … */
INLINE mask NAME(numbered)(void) {
    static const whole numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    mask lane;
    memcpy(&lane, numbers, sizeof lane);
    return lane;
}

/* LANES vectors of LANES numbers, transposed: neighbours change places, then neighbouring pairs, … */
INLINE void NAME(swap)(vector *v, const long half) {
    const mask lane = NAME(numbered)();
    const mask odd = (lane & (whole)half) != 0, low = lane + (odd & (whole)(LANES - half));
    UNROLL for (long i = 0; i < LANES; i++) {
        if (i & half) continue;
        const vector a = v[i], b = v[i + half];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + half] = __builtin_shuffle(a, b, low + (whole)half);
    }
}

INLINE void NAME(transpose)(vector *v) {
    if (LANES > 1) NAME(swap)(v, 1);
    if (LANES > 2) NAME(swap)(v, 2);
    if (LANES > 4) NAME(swap)(v, 4);
    if (LANES > 8) NAME(swap)(v, 8);
}

/* A block of images (c, h, w) as vectors of images. */
static void NAME(pack)(const images *x, long first, long lanes, long c, long h, long w, vector *to,
                       long plane, long row) {
    const real *data = (const real *)x->data + first * x->n;
    if (x->h == w * x->w && row == w) { /* rows without gaps on both sides are one long row */
        w *= h;
        h = 1;
        if (x->c == w * x->w && plane == w) {
            w *= c;
            c = 1;
        }
    }
    for (long i = 0; i < c; i++)
        for (long j = 0; j < h; j++) {
            const real *from = data + i * x->c + j * x->h;
            vector *line = to + i * plane + j * row;
            long k = 0;
            if (x->n == 1 && lanes == LANES)
                for (; k < w; k++) line[k] = NAME(load)(from + k * x->w, 1, LANES);
            else if (x->w == 1 && lanes == LANES && w >= LANES)
                while (k < w) {
                    if (k > w - LANES) k = w - LANES; /* the last vector overlaps the one before */
                    vector square[LANES];
                    UNROLL for (long lane = 0; lane < LANES; lane++)
                        memcpy(square + lane, from + lane * x->n + k, sizeof(vector));
                    NAME(transpose)(square);
                    UNROLL for (long s = 0; s < LANES; s++) line[k + s] = square[s];
                    k += LANES;
                }
            for (; k < w; k++) line[k] = NAME(load)(from + k * x->w, x->n, lanes);
        }
}

/* The inverse for row h of images: [c][w] vectors to their addresses. */
static void NAME(unpack_row)(const vector *from, const images *x, long first, long lanes, long c, long h,
                             long w) {
    real *to = (real *)x->data + first * x->n + h * x->h;
    for (long i = 0; i < c; i++, to += x->c, from += w)
        if (x->n == 1 && lanes == LANES)
            for (long k = 0; k < w; k++) NAME(store)(to + k * x->w, 1, LANES, from[k]);
        else
            for (long k = 0; k < w; k++) NAME(store)(to + k * x->w, x->n, lanes, from[k]);
}

/* m ? yes : no, for each lane. */
INLINE vector NAME(choose)(mask m, vector yes, vector no) {
    return (vector)((m & (mask)yes) | (~m & (mask)no));
}
