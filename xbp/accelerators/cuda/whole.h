/* A small network in one kernel, and its backward for the data in another one, or with the loss in the same: what they
 * share. A block takes SAMPLES samples through all layers, its activations in shared memory: through the leading layers on IMAGES one after the
 * other, through the VECTORS, linear layers, together. The layers' types, with their sizes, are macros.
 *
 * Each layer's output is kept for the backward. That leaves ∂L/∂(W x + b) of linear layers, and of convolutions each
 * block's share of ∂L/∂W and ∂L/∂b; whole_weights.cu makes all layers' ∂L/∂W of them. */

#include "several.h"
#include "activations.h"

#define MOST 16

struct whole_layer {
    const real *weight, *bias;
    real *y, *delta, *partial; /* delta: of a linear layer; partial: of a convolution */
    unsigned char *where;      /* the place of each maximum in its window */
};

struct whole {
    const real *x, *dy;
    const void *labels; /* of classes, in place of ∂L/∂y */
    real *dx;
    real *loss; /* the first block's part */
    long long sample, entry; /* steps in x and dx, from sample to sample, from entry to entry */
    long long row;           /* of `partial` and `loss`, from block to block */
    double scale;            /* of the loss */
    int n;
    whole_layer of[MOST];
};

#include "whole_images.h"
#include "whole_vectors.h"

template <typename...> struct layers {};

/* Images have two places, and so have vectors. The layers of each take turns: layer K reads place K % 2. */
template <int K, typename Layers> struct images {
    static constexpr int COUNT = 0;
    static __device__ void load(const whole &, real *) {}
    static __device__ void load_back(const whole &, real *) {}
    static __device__ void forward(const whole &, int, const real *, real *, real *, real *, real *) {}
    static __device__ void backward(const whole &, int, bool, const real *, real *, real *, real *, unsigned char *,
                                    real *) {}
};

template <int K, typename First, typename... Rest> struct images<K, layers<First, Rest...>> {
    typedef images<K + 1, layers<Rest...>> rest;
    static constexpr int COUNT = 1 + sizeof...(Rest);
    static constexpr bool WANTED = K > 0 || WANTS_DX;

    static __device__ void load(const whole &p, real *kernels) {
        First::load(kernels, p.of[K]);
        rest::load(p, kernels + First::KERNELS);
    }

    static __device__ void load_back(const whole &p, real *kernels) {
        if (WANTED) First::load_back(kernels, p.of[K]);
        rest::load_back(p, kernels + WANTED * First::KERNELS_BACK);
    }

    static __device__ void forward(const whole &p, int sample, const real *kernels, real *from, real *to, real *end,
                                   real *sums) {
        real *const y = sizeof...(Rest) ? to : end;
        First::forward(from, y, kernels, sums, p.of[K], sample);
        __syncthreads();
        rest::forward(p, sample, kernels + First::KERNELS, y, from, end, sums);
    }

    /* A layer's input is where its gradient comes next. */
    static __device__ void backward(const whole &p, int sample, bool fresh, const real *kernels, real *from, real *to,
                                    real *end, unsigned char *places, real *sums) {
        rest::backward(p, sample, fresh, kernels + WANTED * First::KERNELS_BACK, to, from, end, places, sums);
        const bool outer = K == 0; /* x is that of the network, else the output of the layer before */
        const real *const before = p.of[outer ? 0 : K - 1].y + (long long)sample * First::IN;
        const real *const x = outer ? p.x + sample * p.sample : before;
        EACH(k, First::READS_X ? First::IN : 0) from[k] = x[outer ? k * p.entry : k];
        First::template backward<WANTED>(sizeof...(Rest) ? to : end, from, kernels, places, sums, p.of[K], sample,
                                         blockIdx.x * p.row, fresh);
        __syncthreads();
    }
};

template <int K, typename Layers> struct vectors {
    static __device__ void forward(const whole &, int, real *, real *) {}
    static __device__ void backward(const whole &, int, real *, real *, real *) {}
};

template <int K, typename First, typename... Rest> struct vectors<K, layers<First, Rest...>> {
    typedef vectors<K + 1, layers<Rest...>> rest;

    static __device__ void forward(const whole &p, int first, real *from, real *to) {
        First::forward(from, to, p.of[K], first, p.n);
        __syncthreads();
        rest::forward(p, first, to, from);
    }

    static __device__ void backward(const whole &p, int first, real *from, real *to, real *sums) {
        rest::backward(p, first, to, from, sums);
        First::template backward<(K > 0 || WANTS_DX)>(to, from, sums, p.of[K], first, p.n);
        __syncthreads();
    }
};

typedef images<0, layers<IMAGES>> of_images;
typedef vectors<of_images::COUNT, layers<VECTORS>> of_vectors;
