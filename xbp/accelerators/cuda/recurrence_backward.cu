#define OUTPUTS HIDDEN
#define TERMS (GATES * HIDDEN)
#define TURNED true
#include "dependent.h"
#include "recurrence.h"

/* ∂L/∂p, ∂L/∂q, and their sums; ∂L/∂(first states). What of a step does not wait for the later one is
 * loaded and computed before the product. */
extern "C" __global__ void __launch_bounds__(THREADS) recur_backward(const recurrence r) {
    await_earlier_kernels();
    alignas(16) __shared__ real deltas[SAMPLES * ROW];
    alignas(16) __shared__ real sums[SAMPLES * PARTS * APART];
    const product weights(r.weight);
    for (int i = threadIdx.x; i < SAMPLES * ROW; i += THREADS) deltas[i] = 0;
    real around[EACH] = {}, dc[EACH] = {}; /* ∂L/∂h_t by other ways than the product, ∂L/∂c_t */
    real dbias[EACH][5] = {};
    UNITS {
        around[i] = r.dh_last[at.state()];
        dc[i] = CELL == LSTM ? r.dc_last[at.state()] : 0;
    }
    __syncthreads();
    bool linked = false; /* whether there is a later step that the state goes into */
    for (int s = r.steps - 1; s >= 0; s--) {
        const int t = r.reverse ? r.steps - 1 - s : s, earlier = r.reverse ? t + 1 : t - 1;
        const bool start = s > 0 && earlier / r.chunk != t / r.chunk; /* of a chunk */
        real dh[EACH] = {}, kept[EACH][5] = {}, h[EACH] = {};
        bool padded[EACH] = {};
        UNITS {
            const int row = t * r.step + at.n * r.row, entry = row * HIDDEN + at.unit;
            dh[i] = around[i] + r.dh[t * r.dh_step + at.n * r.dh_row + at.unit];
            h[i] = CELL == GRU ? r.before[entry] : CELL == LSTM ? 0 : r.h[entry];
            #pragma unroll
            for (int k = 0; k < KEPT; k++) kept[i][k] = r.kept[((long long)row * KEPT + k) * HIDDEN + at.unit];
            padded[i] = r.padding && r.padding[at.n * r.steps + t];
        }
        if (linked) weights.multiply(deltas, sums);
        __syncthreads();
        UNITS {
            if (linked) dh[i] += total(sums, at.sample, at.unit);
            real delta[5] = {}; /* of q; delta[GATES]: GRU's ∂L/∂p_n */
            around[i] = 0;
            if (CELL == LSTM) {
                const real in = kept[i][0], f = kept[i][1], g = kept[i][2];
                const real o = kept[i][3], c = kept[i][4];
                const real tanh_c = tanh(f * c + in * g), dc_now = dc[i] + dh[i] * o * (1 - tanh_c * tanh_c);
                delta[0] = dc_now * g * in * (1 - in);
                delta[1] = dc_now * c * f * (1 - f);
                delta[2] = dc_now * in * (1 - g * g);
                delta[3] = dh[i] * tanh_c * o * (1 - o);
                if (!padded[i]) dc[i] = f * dc_now;
            } else if (CELL == GRU) {
                const real r_ = kept[i][0], z = kept[i][1], g = kept[i][2];
                const real q = kept[i][3], dn = dh[i] * (1 - z) * (1 - g * g);
                delta[0] = dn * q * r_ * (1 - r_);
                delta[1] = dh[i] * (h[i] - g) * z * (1 - z);
                delta[2] = r_ * dn;
                delta[GATES] = dn;
                around[i] = z * dh[i];
            } else
                delta[0] = CELL == RECTIFIED ? (h[i] <= 0 ? 0 : dh[i]) : (1 - h[i] * h[i]) * dh[i];
            if (padded[i]) around[i] = dh[i];
            if (start) around[i] = dc[i] = 0;
            const int row = t * r.step + at.n * r.row;
            #pragma unroll
            for (int g = 0; g <= GATES; g++) {
                if (CELL != GRU && g == GATES) continue;
                if (padded[i]) delta[g] = 0;
                dbias[i][g] += delta[g];
                const long long unit = (long long)row * WIDTH + at.unit;
                if (g < GATES) {
                    deltas[at.sample * ROW + g * HIDDEN + at.unit] = delta[g];
                    r.dq[unit + g * HIDDEN] = delta[g];
                }
                if (CELL == GRU && g != 2) r.dp[unit + (g < GATES ? g : 2) * HIDDEN] = delta[g];
            }
        }
        linked = !start;
        __syncthreads();
    }
    weights.multiply(deltas, sums);
    __syncthreads();
    UNITS {
        r.dh_first[at.state()] = around[i] + total(sums, at.sample, at.unit);
        if (CELL == LSTM) r.dc_first[at.state()] = dc[i];
    }
    /* The sums over the samples: each thread adds its own unit, sample by sample. */
    __syncthreads();
    #pragma unroll
    for (int g = 0; g <= GATES; g++) {
        if (CELL != GRU && g == GATES) continue;
        UNITS sums[at.sample * HIDDEN + at.unit] = dbias[i][g];
        __syncthreads();
        for (int unit = threadIdx.x; unit < HIDDEN; unit += THREADS) {
            real sum = 0;
            for (int s = 0; s < SAMPLES && blockIdx.x * SAMPLES + s < r.n; s++) sum += sums[s * HIDDEN + unit];
            real *const of_p = r.dbias + 2LL * blockIdx.x * WIDTH + unit, *const of_q = of_p + WIDTH;
            if (g < GATES) of_q[g * HIDDEN] = sum;
            if (CELL != GRU || g != 2) of_p[(g < GATES ? g : 2) * HIDDEN] = sum;
        }
        __syncthreads();
    }
}
