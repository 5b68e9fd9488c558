#define OUTPUTS (GATES * HIDDEN)
#define TERMS HIDDEN
#define TURNED false
#include "dependent.h"
#include "recurrence.h"

/* σ(a) = ½ + ½ tanh(a/2), as in the reference: of absolute accuracy. */
__device__ inline real gate(real a) { return (real)0.5 + (real)0.5 * tanh((real)0.5 * a); }

/* The states after each step; of LSTM and GRU the gates, too. */
extern "C" __global__ void __launch_bounds__(THREADS) recur(const recurrence r) {
    await_earlier_kernels();
    alignas(16) __shared__ real states[SAMPLES * ROW];
    alignas(16) __shared__ real sums[SAMPLES * PARTS * APART];
    __shared__ real bias[2][WIDTH];
    const product weights(r.weight);
    for (int i = threadIdx.x; i < SAMPLES * ROW; i += THREADS) states[i] = 0;
    for (int i = threadIdx.x; i < WIDTH; i += THREADS) {
        bias[0][i] = r.bias_ih ? r.bias_ih[i] : 0;
        bias[1][i] = r.bias_hh ? r.bias_hh[i] : 0;
    }
    __syncthreads();
    real h[EACH] = {}, c[EACH] = {};
    UNITS {
        h[i] = r.h_first[at.state()];
        c[i] = CELL == LSTM ? r.c_first[at.state()] : 0;
        states[at.sample * ROW + at.unit] = h[i];
    }
    __syncthreads();
    for (int s = 0; s < r.steps; s++) {
        const int t = r.reverse ? r.steps - 1 - s : s;
        real p[EACH][4] = {};
        bool padded[EACH] = {};
        UNITS { /* on their way during the product */
            const int row = t * r.step + at.n * r.row;
            #pragma unroll
            for (int g = 0; g < GATES; g++) p[i][g] = r.p[row * WIDTH + g * HIDDEN + at.unit];
            padded[i] = r.padding && r.padding[at.n * r.steps + t];
        }
        weights.multiply(states, sums);
        __syncthreads();
        UNITS {
            const int row = t * r.step + at.n * r.row, entry = row * HIDDEN + at.unit;
            real x[4] = {}, q[4] = {}, a[4] = {};
            #pragma unroll
            for (int g = 0; g < GATES; g++) {
                const int output = g * HIDDEN + at.unit;
                q[g] = total(sums, at.sample, output) + bias[1][output];
                x[g] = p[i][g] + bias[0][output];
                a[g] = x[g] + q[g];
            }
            r.before[entry] = h[i];
            real next, *const kept = r.kept + (long long)row * KEPT * HIDDEN + at.unit;
            if (CELL == LSTM) {
                const real in = gate(a[0]), f = gate(a[1]), g = tanh(a[2]), o = gate(a[3]);
                const real c_next = f * c[i] + in * g;
                kept[0] = in, kept[HIDDEN] = f, kept[2 * HIDDEN] = g, kept[3 * HIDDEN] = o;
                kept[4 * HIDDEN] = c[i];
                next = o * tanh(c_next);
                if (!padded[i]) c[i] = c_next;
            } else if (CELL == GRU) {
                const real r_ = gate(a[0]), z = gate(a[1]), g = tanh(x[2] + r_ * q[2]);
                kept[0] = r_, kept[HIDDEN] = z, kept[2 * HIDDEN] = g, kept[3 * HIDDEN] = q[2];
                next = g + z * (h[i] - g);
            } else
                next = CELL == RECTIFIED ? (a[0] <= 0 ? 0 : a[0]) : tanh(a[0]); /* nan stays nan */
            if (!padded[i]) h[i] = next;
            r.h[entry] = h[i];
            states[at.sample * ROW + at.unit] = h[i];
        }
        __syncthreads();
    }
    UNITS {
        if (CELL == LSTM) r.c_last[at.state()] = c[i];
    }
}
