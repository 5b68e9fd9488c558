/* Rows of arrays, copied by blocks of THREADS threads. */

#define TABLES 8 /* arrays in one launch */

struct table {
    void *to;
    const void *source;
    long long words; /* of a row */
    int bytes;       /* of a word: 1, 2, 4, 8 or 16 */
    int columns;     /* the number of rows, if `to` has them innermost, [word][row]; else 0 */
    int samples;     /* the number of rows, if they are those of a batch; 0: one row, source[*at] */
};

struct taking {
    table of[TABLES];
    long long *at;           /* a number on the device */
    const long long *order;  /* row i of a batch is source[order[start + first + i step]] */
    const long long *starts; /* NULL: the start is *at; else starts[*at · width] */
    long long width, first, step;
    int count; /* of arrays to append to */
};

struct alignas(16) sixteen {
    long long of[2];
};

template <typename word> __device__ void copy(const table &it, long long to, long long from) {
    word *const target = (word *)it.to + to * it.words;
    const word *const source = (const word *)it.source + from * it.words;
    for (long long i = threadIdx.x; i < it.words; i += THREADS) target[i] = source[i];
}

/* Row `to` ← row `from`, by the threads of a block. */
__device__ void copy_row(const table &it, long long to, long long from) {
    if (it.bytes == 16) copy<sixteen>(it, to, from);
    else if (it.bytes == 8) copy<long long>(it, to, from);
    else if (it.bytes == 4) copy<int>(it, to, from);
    else if (it.bytes == 2) copy<short>(it, to, from);
    else copy<char>(it, to, from);
}

/* to[*at] = source[0] of `count` arrays, then *at += 1; by one block. */
__device__ void append_rows(const taking &p) {
    const long long to = *p.at;
    for (int k = 0; k < p.count; k++) copy_row(p.of[k], to, 0);
    __syncthreads();
    if (threadIdx.x == 0) *p.at = to + 1;
}
