/* Rows of several arrays, at positions that are on the device. */

#define THREADS 256
#define MOST 8 /* arrays in one launch */

struct table {
    void *to;
    const void *source;
    long long words; /* of a row */
    int bytes;       /* of a word: 1, 2, 4, 8 or 16 */
};

struct taking {
    table of[MOST];
    long long *at;          /* a number on the device */
    const long long *order; /* NULL: row 0 is source[*at]; else row i is source[order[*at + first + i step]] */
    long long first, step;
    int count;
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

/* to[i] = source[the number of row i]; a block copies one row of one array. */
extern "C" __global__ void __launch_bounds__(THREADS) take(const taking p) {
    const long long to = blockIdx.x;
    copy_row(p.of[blockIdx.y], to, p.order ? p.order[*p.at + p.first + to * p.step] : *p.at);
}

/* to[*at] = source[0] of `count` arrays, then *at += 1; in one block. */
extern "C" __global__ void __launch_bounds__(THREADS) append(const taking p) {
    const long long to = *p.at;
    for (int k = 0; k < p.count; k++) copy_row(p.of[k], to, 0);
    __syncthreads();
    if (threadIdx.x == 0) *p.at = to + 1;
}
