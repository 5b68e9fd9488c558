/* Shared declarations. Compiled once for each level of the instruction set; see build.py. */
#ifndef XBP_KERNELS_H
#define XBP_KERNELS_H

#include <stdatomic.h>
#include <stdint.h>
#include "compiler.h"

typedef void part_function(void *task, int part, int parts);
void in_parallel(part_function *work, void *task, int threads);

/* The calling thread's workspace, kept between calls; NULL if there is no memory. */
void *take_scratch(int64_t bytes);

/* A batch of images in memory: data and strides, in elements, of the axes N, C, H, W. */
typedef struct {
    void *data;
    int64_t n, c, h, w;
} images;

/* A convolution, then max(·, 0) if `relu`, then the maximum of pool_h × pool_w windows side by side.
 * x: (n, c, h, w), y: (n, o, oh / pool_h, ow / pool_w), weight: (o, c, kh, kw), contiguous.
 * `where` has, for each entry of y and each image of a block, the position of the maximum in its
 * window, or NOWHERE where relu gave 0. NULL without relu and pooling. Gradients of parameters are sums over
 * at most `groups` of images. */
typedef struct {
    images x, y, dx;
    void *weight, *bias, *dweight, *dbias; /* bias, dbias and dx.data may be NULL */
    uint8_t *where;
    int64_t n, c, h, w, o, kh, kw, stride_h, stride_w, pad_h, pad_w, oh, ow, pool_h, pool_w, groups;
    int64_t apart_h, apart_w; /* rows and columns between the taps of a kernel: dilation, 1 but in positions.h */
    int relu, threads;
} convolution;

#define NOWHERE 255

/* Pooling with windows of any stride and padding. In the backward, x is ∂L/∂x (output), y is ∂L/∂y. */
typedef struct {
    images x, y;
    uint8_t *where; /* as above; NULL if `average` */
    int64_t n, c, h, w, kh, kw, stride_h, stride_w, pad_h, pad_w, oh, ow;
    int average, threads;
} pooling;

/* y (n, c · h · w) = x, row-major. */
typedef struct {
    images x;
    void *y;
    int64_t n, c, h, w;
    int threads;
} flattening;

/* c (m, n) = a b. a (m, k) and b (k, n) may be stored transposed, with leading dimensions lda, ldb.
 * `gemm` is the cblas function for the dtype, with 64-bit integers; the other two get and set the BLAS's
 * number of threads. */
typedef struct {
    void *gemm;
    int (*get_threads)(void);
    void (*set_threads)(int);
    const void *a, *b;
    void *c;
    int64_t m, n, k, lda, ldb;
    int trans_a, trans_b, threads;
    atomic_int failed; /* for want of memory */
} product;

/* y (n, out) = x Wᵀ + b, then max(·, 0) if `relu`; all arrays are contiguous. */
typedef struct {
    const void *x, *weight, *bias, *dy; /* bias, dx and dbias may be NULL */
    void *y, *dx, *dweight, *dbias;
    int64_t n, in, out;
    int relu, by_outputs, threads; /* by_outputs: a thread's ∂L/∂x is of its own rows of W alone */
} affine;

/* y = w (x - μ)/√(σ² + eps) + b for each channel, then max(·, 0) if `relu`. x, y, dy and dx are (outer,
 * channels, inner), contiguous. `constants` has a row for each of the names below, of one number a
 * channel; known moments are in it beforehand. */
enum { FIRST, REST, MEAN, VARIANCE, RECIPROCAL, SCALE, SHIFT }; /* μ = first + rest; 1/√…, its w-fold, b */
typedef struct {
    const void *x, *weight, *bias, *dy; /* weight, bias and dx may be NULL */
    void *y, *dx, *constants, *sums; /* sums: ∂L/∂w, then ∂L/∂b */
    int64_t outer, channels, inner;
    double eps;
    int known, relu, threads;
} batch_norm;

/* Softmax or normalization along rows: x, y, dy and dx are (n, c), contiguous. */
typedef struct {
    const void *x, *weight, *bias, *dy; /* weight and bias (c), and dx, may be NULL */
    void *y, *dx;
    void *moments;     /* (n, 3): the mean, its rounding error, and 1/√(variance + eps) */
    void *sums;        /* (blocks, 2, c): ∂L/∂w and ∂L/∂b, at last in the first block */
    int64_t n, c, blocks; /* blocks of rows whose sums are taken apart */
    double eps;
    int centre, threads;
} rows;

/* A recurrent layer in one direction. x and dx: (steps, n, in); h and c: (steps + 1, n, hidden), with the
 * states before the first step in the first place, or if `reverse` in the last; kept: (steps, n, 4, hidden)
 * for LSTM and GRU. In the backward, dh_before and dc_before, (n, hidden), are ∂L/∂(last states), and then
 * ∂L/∂(first states), the first one plus `around`. delta: (steps, n, 1 or 4 rows of hidden), ∂L/∂ of the sums;
 * without it, each of `groups` of samples has `sums`, which are 0: ∂L/∂W_hh, ∂L/∂W_ih, and the sum of delta.
 * The rows of weight_hh are hh_row apart then, and for GRU in the order n, r, z, as are those of ∂L/∂W_hh. */
enum { ELMAN, RECTIFIED, LSTM, GRU };
typedef struct {
    const void *x, *weight_ih, *weight_hh, *bias_ih, *bias_hh; /* biases may be NULL */
    const uint8_t *padding;                                    /* (steps, n), or NULL */
    void *h, *c, *kept;
    const void *dh; /* ∂L/∂h of each step, by strides */
    void *delta, *dh_before, *dc_before, *around, *sums, *dx; /* around and dx may be NULL */
    int64_t steps, n, in, hidden, chunk, dh_step, dh_row, hh_row, groups;
    int cell, reverse, threads;
} recurrence;

/* Rows of a table (length, width), by index, are rows (n, width): copies of them, or terms of sums over those
 * with the same index but for `left_out`. */
typedef struct {
    const int64_t *index; /* (n) */
    void *table, *rows;
    int64_t n, length, width, left_out;
    int threads;
} lookup;

/* Attention; the axes N, C, H, W of images are sample, head, time step and feature. q, y, dy and dq have `times`
 * steps, k, v, dk and dv have s; q and k have d features, v and y have e. For each sample and head, `powers` has
 * e^(scores - their maximum), (times, s), rows taken to whole vectors, and `totals` the sums of its rows. */
typedef struct {
    images q, k, v, y, dy, dq, dk, dv; /* dq.data may be NULL */
    void *powers, *totals;
    int64_t n, heads, times, s, d, e;
    double scale;
    int causal, threads;
} attention;

void hold_blas(const product *t);
void release_blas(const product *t);

enum { ROW_MAJOR = 101, NOT_TRANSPOSED = 111 }; /* as in cblas.h */

#endif
