/* Rows of several arrays, at positions that are on the device: to[i] = source[the number of row i]. A block copies
 * one row of one array. */

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
    const long long *at;    /* a number on the device */
    const long long *order; /* NULL: row 0 is source[*at]; else row i is source[order[*at + first + i step]] */
    long long first, step;
};

struct alignas(16) sixteen {
    long long of[2];
};

template <typename word> __device__ void copy(const table &it, long long to, long long from) {
    word *const target = (word *)it.to + to * it.words;
    const word *const source = (const word *)it.source + from * it.words;
    for (long long i = threadIdx.x; i < it.words; i += THREADS) target[i] = source[i];
}

extern "C" __global__ void __launch_bounds__(THREADS) take(const taking p) {
    const table it = p.of[blockIdx.y];
    const long long to = blockIdx.x;
    const long long from = p.order ? p.order[*p.at + p.first + to * p.step] : *p.at;
    if (it.bytes == 16) copy<sixteen>(it, to, from);
    else if (it.bytes == 8) copy<long long>(it, to, from);
    else if (it.bytes == 4) copy<int>(it, to, from);
    else if (it.bytes == 2) copy<short>(it, to, from);
    else copy<char>(it, to, from);
}
