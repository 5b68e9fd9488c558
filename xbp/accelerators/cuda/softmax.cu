/* Softmax of the rows of a matrix, and of the scores of attention, with their gradients. */

#include "dependent.h"
#include "along_rows.h"

struct softmax_task {
    const real *x, *dy;
    const real *mask;              /* of dropout, as large as x, or NULL */
    const unsigned char *ignored;  /* [sample][key], or NULL */
    real *to, *masked;
    double scale;
    int rows, size; /* keys, for attention */
    int queries, of_sample; /* rows of a head, and of a sample */
};

#define ROW                                                                                           \
    __shared__ real shared[THREADS];                                                                  \
    const int lane = threadIdx.x % LANES, at = blockIdx.x * ROWS + threadIdx.x / LANES;               \
    const int size = at < p.rows ? p.size : 0; /* nothing beyond the last row */                      \
    const long long begin = (long long)at * p.size;
#define EACH(j) for (int j = lane; j < size; j += LANES)

extern "C" __global__ void __launch_bounds__(THREADS) softmax(const softmax_task p) {
    await_earlier_kernels();
    ROW
    const real *const x = p.x + begin;
    real peak = -1 / (real)0, sum = 0;
    EACH(j) peak = larger::of(x[j], peak);
    peak = over_row<larger>(peak, shared);
    EACH(j) sum += exp(x[j] - peak);
    sum = over_row<adding>(sum, shared);
    EACH(j) p.to[begin + j] = exp(x[j] - peak) / sum;
}

/* From x, which is the softmax here, and ∂L/∂y. */
extern "C" __global__ void __launch_bounds__(THREADS) softmax_to_input(const softmax_task p) {
    await_earlier_kernels();
    ROW
    const real *const y = p.x + begin, *const dy = p.dy + begin;
    real along = 0;
    EACH(j) along += y[j] * dy[j];
    along = over_row<adding>(along, shared);
    EACH(j) p.to[begin + j] = y[j] * (dy[j] - along);
}

/* Scores x, replaced by their softmax times `scale`, 0 for hidden keys, and 0 in a row of -∞; and `masked` by that times the
 * mask. */
extern "C" __global__ void __launch_bounds__(THREADS) attend(const softmax_task p) {
    await_earlier_kernels();
    ROW
    const unsigned char *const ignored = p.ignored ? p.ignored + (long long)(at / p.of_sample) * p.size : nullptr;
    const int known = CAUSAL && at % p.queries + 1 < size ? at % p.queries + 1 : size; /* keys before later ones */
    const real scale = (real)p.scale;
    real *const x = p.to + begin, lowest = -1 / (real)0;
    real peak = lowest, sum = 0;
    for (int j = lane; j < known; j += LANES)
        if (!ignored || !ignored[j]) peak = larger::of(scale * x[j], peak);
    peak = over_row<larger>(peak, shared);
    if (peak == lowest) peak = 0;
    for (int j = lane; j < known; j += LANES)
        if (!ignored || !ignored[j]) sum += exp(scale * x[j] - peak);
    sum = over_row<adding>(sum, shared);
    if (sum == 0) sum = 1;
    EACH(j) {
        const bool counts = j < known && (!ignored || !ignored[j]);
        x[j] = (counts ? exp(scale * x[j] - peak) : 0) / sum; /* a nan makes the whole row nan */
        if (p.mask) p.masked[begin + j] = p.mask[begin + j] * x[j];
    }
}

/* From the softmax x and the gradient of what its masked values multiply, in place: ∂L/∂(scores). */
extern "C" __global__ void __launch_bounds__(THREADS) attend_to_scores(const softmax_task p) {
    await_earlier_kernels();
    ROW
    const real *const y = p.x + begin;
    real *const d = p.to + begin;
    real along = 0;
    EACH(j) along += y[j] * (p.mask ? p.mask[begin + j] * d[j] : d[j]);
    along = over_row<adding>(along, shared);
    EACH(j) d[j] = y[j] * ((p.mask ? p.mask[begin + j] * d[j] : d[j]) - along) * (real)p.scale;
}
