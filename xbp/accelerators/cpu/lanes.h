/* Vectors with one number for each image of a block, and their way from memory and back, for one
 * floating-point type `real`. */

#define vector NAME(vector)
#define mask NAME(mask)
typedef real vector __attribute__((vector_size(VECTOR_BYTES)));
typedef whole mask __attribute__((vector_size(VECTOR_BYTES)));
#define LANES ((int64_t)(VECTOR_BYTES / REAL_BYTES))
typedef uint8_t NAME(bytes) __attribute__((vector_size(VECTOR_BYTES / REAL_BYTES)));

/* f(0, n), f(1, n), … for all lanes. */
#undef EACH_LANE
#if VECTOR_BYTES == 2 * REAL_BYTES
#define EACH_LANE(f, n) f(0, n), f(1, n)
#elif VECTOR_BYTES == 4 * REAL_BYTES
#define EACH_LANE(f, n) f(0, n), f(1, n), f(2, n), f(3, n)
#elif VECTOR_BYTES == 8 * REAL_BYTES
#define EACH_LANE(f, n) f(0, n), f(1, n), f(2, n), f(3, n), f(4, n), f(5, n), f(6, n), f(7, n)
#else
#define EACH_LANE(f, n)                                                                                \
    f(0, n), f(1, n), f(2, n), f(3, n), f(4, n), f(5, n), f(6, n), f(7, n), f(8, n), f(9, n), f(10, n), \
        f(11, n), f(12, n), f(13, n), f(14, n), f(15, n)
#endif

#ifdef __AVX512F__
#undef INTRINSIC
#if REAL_BYTES == 4
#define INTRINSIC(name) _mm512_##name##_ps
#else
#define INTRINSIC(name) _mm512_##name##_pd
#endif
#define FIRST_LANES(lanes) ((1u << (lanes)) - 1)
#endif

/* --- lanes to and from memory: `lanes` images whose neighbours are `stride` apart --- */

INLINE vector NAME(load)(const real *from, int64_t stride, int64_t lanes) {
    vector v = {0};
    if (stride == 1 && lanes == LANES) memcpy(&v, from, sizeof v);
#ifdef __AVX512F__
    else if (stride == 1) v = (vector)INTRINSIC(maskz_loadu)(FIRST_LANES(lanes), from);
#endif
    else
        for (int64_t lane = 0; lane < lanes; lane++) v[lane] = from[lane * stride];
    return v;
}

INLINE void NAME(store)(real *to, int64_t stride, int64_t lanes, vector v) {
    if (stride == 1 && lanes == LANES) memcpy(to, &v, sizeof v);
#ifdef __AVX512F__
    else if (stride == 1) INTRINSIC(mask_storeu)(to, FIRST_LANES(lanes), v);
#endif
    else
        for (int64_t lane = 0; lane < lanes; lane++) to[lane * stride] = v[lane];
}

/* 0, 1, 2, … */
INLINE mask NAME(numbered)(void) {
    static const whole numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    mask lane;
    memcpy(&lane, numbers, sizeof lane);
    return lane;
}

/* LANES vectors of LANES numbers, transposed: neighbours change places, then neighbouring pairs, … */
#define LOWER(lane, half) ((lane) & (half) ? LANES - (half) + (lane) : (lane))
#define UPPER(lane, half) ((lane) & (half) ? LANES + (lane) : (lane) + (half))
#define SWAP(half)                                                                                     \
    UNROLL for (int64_t i = 0; i < LANES; i++) {                                                          \
        if (i & (half)) continue;                                                                      \
        const vector a = v[i], b = v[i + (half)];                                                      \
        v[i] = SHUFFLE(a, b, EACH_LANE(LOWER, half));                                                  \
        v[i + (half)] = SHUFFLE(a, b, EACH_LANE(UPPER, half));                                         \
    }
INLINE void NAME(transpose)(vector *v) {
    SWAP(1)
#if VECTOR_BYTES > 2 * REAL_BYTES
    SWAP(2)
#endif
#if VECTOR_BYTES > 4 * REAL_BYTES
    SWAP(4)
#endif
#if VECTOR_BYTES > 8 * REAL_BYTES
    SWAP(8)
#endif
}
#undef LOWER
#undef UPPER
#undef SWAP

/* A block of images (c, h, w) as vectors of images. */
static void NAME(pack)(const images *x, int64_t first, int64_t lanes, int64_t c, int64_t h, int64_t w,
                       vector *to, int64_t plane, int64_t row) {
    const real *data = (const real *)x->data + first * x->n;
    if (x->h == w * x->w && row == w) { /* rows without gaps on both sides are one long row */
        w *= h;
        h = 1;
        if (x->c == w * x->w && plane == w) {
            w *= c;
            c = 1;
        }
    }
    for (int64_t i = 0; i < c; i++)
        for (int64_t j = 0; j < h; j++) {
            const real *from = data + i * x->c + j * x->h;
            vector *line = to + i * plane + j * row;
            int64_t k = 0;
            if (x->n == 1 && lanes == LANES)
                for (; k < w; k++) line[k] = NAME(load)(from + k * x->w, 1, LANES);
            else if (x->w == 1 && lanes == LANES && w >= LANES)
                while (k < w) {
                    if (k > w - LANES) k = w - LANES; /* the last vector overlaps the one before */
                    vector square[LANES];
                    UNROLL for (int64_t lane = 0; lane < LANES; lane++)
                        memcpy(square + lane, from + lane * x->n + k, sizeof(vector));
                    NAME(transpose)(square);
                    UNROLL for (int64_t s = 0; s < LANES; s++) line[k + s] = square[s];
                    k += LANES;
                }
            for (; k < w; k++) line[k] = NAME(load)(from + k * x->w, x->n, lanes);
        }
}

/* The inverse for row h of images: [c][w] vectors to their addresses. */
static void NAME(unpack_row)(const vector *from, const images *x, int64_t first, int64_t lanes, int64_t c,
                             int64_t h, int64_t w) {
    real *to = (real *)x->data + first * x->n + h * x->h;
    for (int64_t i = 0; i < c; i++, to += x->c, from += w)
        if (x->n == 1 && lanes == LANES)
            for (int64_t k = 0; k < w; k++) NAME(store)(to + k * x->w, 1, LANES, from[k]);
        else
            for (int64_t k = 0; k < w; k++) NAME(store)(to + k * x->w, x->n, lanes, from[k]);
}

/* m ? yes : no, for each lane. */
INLINE vector NAME(choose)(mask m, vector yes, vector no) {
    return (vector)((m & (mask)yes) | (~m & (mask)no));
}
