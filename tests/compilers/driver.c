/* Kernels against their definitions, without Python: for processors that are only emulated here, for other
 * systems, and for sanitizers. tests/compilers builds it with each library of kernels and runs it. Exit
 * status 1 if a result is wrong. Compiled in single and in double precision: it includes itself. */
#ifndef real
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels.h"
#include "arrays.h"

extern const unsigned xbp_digest;
int xbp_lanes(int bytes);

static int wrong, compared;
static uint64_t state = 1;

static double drawn(void) { /* in [-1, 1) */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / (double)(1ull << 52) - 1;
}

static void *room(int64_t count, size_t bytes) {
    void *memory = malloc((size_t)count * bytes);
    if (!memory) exit(2);
    return memory;
}

/* A sum of `terms` products of order 1 in any order errs by √terms · u, at most about 20 of that. */
static void judge(const char *kernel, size_t bytes, double error, double largest, int64_t terms) {
    const double u = bytes == 4 ? 1.2e-7 : 2.3e-16, bound = 20 * sqrt((double)terms) * u * (1 + largest);
    compared++;
    if (error <= bound) return;
    wrong++;
    printf("%s, %d bytes: wrong by %g, where %g is allowed\n", kernel, (int)bytes, error, bound);
}

#define real float
#define NAME(name) name##_float32
#include "driver.c"
#undef real
#undef NAME
#define real double
#define NAME(name) name##_float64
#include "driver.c"

static void count(void *task, int part, int parts) {
    (void)parts;
    ((int *)task)[part * 64]++;
}

int main(void) {
    const unsigned expected = DIGEST;
    int done[8 * 64];
    if (xbp_digest != expected) return 3;
    for (int threads = 1; threads <= 8; threads++) { /* more are started, and not all have a part later */
        for (int i = 0; i < 8 * 64; i++) done[i] = 0;
        for (int round = 0; round < 200; round++) in_parallel(count, done, threads);
        for (int part = 0; part < threads; part++) wrong += done[part * 64] != 200;
    }
    for (int threads = 1; threads <= 3; threads++) {
        all_float32(threads);
        all_float64(threads);
    }
    printf("%d lanes, %d comparisons, %d wrong\n", xbp_lanes(4), compared, wrong);
    return wrong > 0;
}
#else

int NAME(convolve)(const convolution *t);
int NAME(convolve_backward)(const convolution *t);
int NAME(convolve_positions)(const convolution *t);
int NAME(convolve_positions_backward)(const convolution *t);
int NAME(pool)(const pooling *t);
int NAME(affine)(const affine *t);
int NAME(softmax)(rows *t);
int NAME(normalize)(rows *t);
void NAME(multiply_direct)(product *t);
void NAME(multiply_blocked)(product *t);
double NAME(cross_entropy)(const real *logits, const int64_t *labels, real *gradient, real scale, int64_t n,
                           int64_t c, int threads);
void NAME(gelu)(real *to, const real *a, const real *b, real s, real t, real u, int64_t n, int threads);
void NAME(tanh)(real *to, const real *a, const real *b, real s, real t, real u, int64_t n, int threads);
void NAME(silu)(real *to, const real *a, const real *b, real s, real t, real u, int64_t n, int threads);
void NAME(rectify)(real *to, const real *a, const real *b, real s, real t, real u, int64_t n, int threads);

static real *NAME(numbers)(int64_t n) {
    real *x = room(n, sizeof(real));
    for (int64_t i = 0; i < n; i++) x[i] = (real)drawn();
    return x;
}

static void NAME(compare)(const char *kernel, const real *x, const double *truth, int64_t n, int64_t terms) {
    double error = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const double e = fabs((double)x[i] - truth[i]);
        if (!(e <= error)) error = isnan(e) ? INFINITY : e;
        if (fabs(truth[i]) > largest) largest = fabs(truth[i]);
    }
    judge(kernel, sizeof(real), error, largest, terms);
}

/* Images, stored row-major or with the batch innermost. */
static images NAME(layout)(real *data, int64_t n, int64_t c, int64_t h, int64_t w, int innermost) {
    if (innermost) return (images){data, 1, h * w * n, w * n, n};
    return (images){data, c * h * w, h * w, w, 1};
}
#define AT(x, i, j, k, l) ((real *)(x).data)[(i) * (x).n + (j) * (x).c + (k) * (x).h + (l) * (x).w]

/* y = w * x + b and its gradients, summed directly; without ReLU and pooling. By vectors of images, or of positions,
 * whose kernels have a stride of 1, taps that are `apart`, and results with the batch innermost. */
static void NAME(convolutions)(int64_t n, int64_t c, int64_t h, int64_t w, int64_t o, int64_t k, int64_t stride,
                               int64_t pad, int innermost, int threads, int positions, int64_t apart) {
    const int64_t reach = apart * (k - 1), to = innermost || positions;
    const int64_t oh = (h + 2 * pad - reach - 1) / stride + 1, ow = (w + 2 * pad - reach - 1) / stride + 1;
    const int64_t sizes[] = {n * c * h * w, n * o * oh * ow, o * c * k * k, o};
    real *x = NAME(numbers)(sizes[0]), *dy = NAME(numbers)(sizes[1]), *weight = NAME(numbers)(sizes[2]);
    real *bias = NAME(numbers)(o), *y = NAME(numbers)(sizes[1]), *dx = NAME(numbers)(sizes[0]);
    real *dw = NAME(numbers)(sizes[2]), *db = NAME(numbers)(o);
    double *ty = room(sizes[1], 8), *tdx = room(sizes[0], 8), *tdw = room(sizes[2], 8), *tdb = room(o, 8);
    convolution t = {
        .x = NAME(layout)(x, n, c, h, w, innermost), .y = NAME(layout)(y, n, o, oh, ow, to),
        .dx = NAME(layout)(dx, n, c, h, w, to), .weight = weight, .bias = bias, .dweight = dw,
        .dbias = db, .n = n, .c = c, .h = h, .w = w, .o = o, .kh = k, .kw = k, .stride_h = stride,
        .stride_w = stride, .pad_h = pad, .pad_w = pad, .oh = oh, .ow = ow, .pool_h = 1, .pool_w = 1,
        .groups = 3, .apart_h = apart, .apart_w = apart, .threads = threads};
    images delta = NAME(layout)(dy, n, o, oh, ow, innermost);
    wrong += positions ? NAME(convolve_positions)(&t) : NAME(convolve)(&t);
    t.y = delta;
    wrong += positions ? NAME(convolve_positions_backward)(&t) : NAME(convolve_backward)(&t);
    t.y = NAME(layout)(y, n, o, oh, ow, to);
    for (int64_t i = 0; i < sizes[0]; i++) tdx[i] = 0;
    for (int64_t i = 0; i < sizes[2]; i++) tdw[i] = 0;
    for (int64_t i = 0; i < o; i++) tdb[i] = 0;
#define PLACE(a, i, j, p, q) (&AT(a, i, j, p, q) - (real *)(a).data)
    for (int64_t i = 0; i < n; i++)
        for (int64_t f = 0; f < o; f++)
            for (int64_t p = 0; p < oh; p++)
                for (int64_t q = 0; q < ow; q++) {
                    double sum = bias[f];
                    const double d = AT(delta, i, f, p, q);
                    for (int64_t j = 0; j < c; j++)
                        for (int64_t s = 0; s < k; s++)
                            for (int64_t u = 0; u < k; u++) {
                                const int64_t row = p * stride + s * apart - pad;
                                const int64_t column = q * stride + u * apart - pad;
                                if (row < 0 || row >= h || column < 0 || column >= w) continue;
                                const int64_t at = ((f * c + j) * k + s) * k + u;
                                sum += (double)weight[at] * AT(t.x, i, j, row, column);
                                tdx[PLACE(t.dx, i, j, row, column)] += weight[at] * d;
                                tdw[at] += d * AT(t.x, i, j, row, column);
                            }
                    tdb[f] += d;
                    ty[PLACE(t.y, i, f, p, q)] = sum;
                }
    const char *kernels = positions ? "of positions" : "of images";
    char names[4][48];
    const char *results[] = {"y", "dx", "dw", "db"};
    for (int i = 0; i < 4; i++) snprintf(names[i], sizeof names[i], "convolution %s, %s", kernels, results[i]);
    NAME(compare)(names[0], y, ty, sizes[1], c * k * k);
    NAME(compare)(names[1], dx, tdx, sizes[0], o * k * k);
    NAME(compare)(names[2], dw, tdw, sizes[2], n * oh * ow);
    NAME(compare)(names[3], db, tdb, o, n * oh * ow);
    void *all[] = {x, dy, weight, bias, y, dx, dw, db, ty, tdx, tdw, tdb};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Convolution, ReLU and maximum in one pass are those kernels one after the other. */
static void NAME(fused)(int64_t N, int positions, int threads) {
    enum { C = 3, H = 8, W = 6, O = 5 };
    const int64_t lanes = xbp_lanes(sizeof(real)), size = N * O * H * W;
    real *x = NAME(numbers)(N * C * H * W), *weight = NAME(numbers)(O * C * 9), *y = NAME(numbers)(size);
    real *z = NAME(numbers)(size / 4);
    double *truth = room(size / 4, 8);
    uint8_t *where = room((N + lanes - 1) / lanes * lanes * O * H * W / 4, 1);
    convolution t = {
        .x = NAME(layout)(x, N, C, H, W, 0), .y = NAME(layout)(y, N, O, H, W, positions), .weight = weight, .n = N,
        .c = C, .h = H, .w = W, .o = O, .kh = 3, .kw = 3, .stride_h = 1, .stride_w = 1, .pad_h = 1,
        .pad_w = 1, .oh = H, .ow = W, .pool_h = 1, .pool_w = 1, .apart_h = 1, .apart_w = 1, .threads = threads};
    int (*convolve)(const convolution *) = positions ? NAME(convolve_positions) : NAME(convolve);
    const images plain = t.y;
    wrong += convolve(&t);
    t.y = NAME(layout)(z, N, O, H / 2, W / 2, positions);
    t.where = where, t.relu = 1, t.pool_h = t.pool_w = 2;
    wrong += convolve(&t);
    for (int64_t i = 0; i < N; i++)
        for (int64_t f = 0; f < O; f++)
            for (int64_t p = 0; p < H; p += 2)
                for (int64_t q = 0; q < W; q += 2) {
                    double best = 0;
                    for (int s = 0; s < 4; s++) best = fmax(best, AT(plain, i, f, p + s / 2, q + s % 2));
                    truth[PLACE(t.y, i, f, p / 2, q / 2)] = best;
                }
    NAME(compare)("convolve with relu and pool", z, truth, size / 4, C * 9);
    pooling pool = {.x = plain, .y = t.y, .where = where, .n = N, .c = O,
                    .h = H, .w = W, .kh = 2, .kw = 2, .stride_h = 2, .stride_w = 2, .oh = H / 2, .ow = W / 2,
                    .threads = threads};
    wrong += NAME(pool)(&pool);
    for (int64_t i = 0; i < size / 4; i++) z[i] = z[i] > 0 ? z[i] : 0;
    NAME(compare)("pool", z, truth, size / 4, 1);
    void *all[] = {x, weight, y, z, truth, where};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* c (m, n) = a (m, k) b (k, n) or a bᵀ, and for a linear layer + bias. */
static void NAME(products)(int64_t m, int64_t k, int64_t n, int threads) {
    real *a = NAME(numbers)(m * k), *b = NAME(numbers)(k * n), *bias = NAME(numbers)(n), *c = NAME(numbers)(m * n);
    double *direct = room(m * n, 8), *linear = room(m * n, 8);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            direct[i * n + j] = 0, linear[i * n + j] = bias[j];
            for (int64_t p = 0; p < k; p++) {
                direct[i * n + j] += (double)a[i * k + p] * b[p * n + j];
                linear[i * n + j] += (double)a[i * k + p] * b[j * k + p];
            }
        }
    NAME(multiply_direct)(&(product){.a = a, .b = b, .c = c, .m = m, .n = n, .k = k, .lda = k, .ldb = n,
                                     .trans_a = NOT_TRANSPOSED, .trans_b = NOT_TRANSPOSED, .threads = threads});
    NAME(compare)("multiply_direct", c, direct, m * n, k);
    for (int turned = 0; turned < 2; turned++) {
        product blocked = {.a = a, .b = b, .c = c, .m = m, .n = n, .k = k, .lda = k, .ldb = turned ? k : n,
                           .trans_a = NOT_TRANSPOSED, .trans_b = NOT_TRANSPOSED + turned, .threads = threads};
        NAME(multiply_blocked)(&blocked);
        wrong += blocked.failed;
        for (int64_t i = 0; turned && i < m * n; i++) c[i] += bias[i % n];
        NAME(compare)("multiply_blocked", c, turned ? linear : direct, m * n, k);
    }
    wrong += NAME(affine)(&(affine){.x = a, .weight = b, .bias = bias, .y = c, .n = m, .in = k, .out = n,
                                    .threads = threads});
    NAME(compare)("affine", c, linear, m * n, k);
    void *all[] = {a, b, bias, c, direct, linear};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void NAME(along_rows)(int64_t n, int64_t c, int threads) {
    real *x = NAME(numbers)(n * c), *y = NAME(numbers)(n * c), *moments = NAME(numbers)(3 * n);
    double *soft = room(n * c, 8), *normal = room(n * c, 8);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0, mean = 0, squares = 0;
        for (int64_t j = 0; j < c; j++) sum += exp(x[i * c + j]), mean += x[i * c + j] / (double)c;
        for (int64_t j = 0; j < c; j++) squares += (x[i * c + j] - mean) * (x[i * c + j] - mean);
        for (int64_t j = 0; j < c; j++) {
            soft[i * c + j] = exp(x[i * c + j]) / sum;
            normal[i * c + j] = (x[i * c + j] - mean) / sqrt(squares / (double)c + 1e-5);
        }
    }
    rows t = {.x = x, .y = y, .moments = moments, .n = n, .c = c, .eps = 1e-5, .centre = 1, .threads = threads};
    wrong += NAME(softmax)(&t);
    NAME(compare)("softmax", y, soft, n * c, c);
    wrong += NAME(normalize)(&t);
    NAME(compare)("normalize", y, normal, n * c, c);
    void *all[] = {x, y, moments, soft, normal};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* -Σ log p[label], and scale · (p - one-hot). */
static void NAME(losses)(int64_t n, int64_t c, int threads) {
    real *z = NAME(numbers)(n * c), *gradient = NAME(numbers)(n * c);
    int64_t *labels = room(n, 8);
    double *truth = room(n * c, 8), loss = 0;
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        labels[i] = (i * 7 + 3) % c;
        for (int64_t j = 0; j < c; j++) sum += exp(z[i * c + j]);
        for (int64_t j = 0; j < c; j++) truth[i * c + j] = (exp(z[i * c + j]) / sum - (j == labels[i])) / 4;
        loss += log(sum) - z[i * c + labels[i]];
    }
    const double found = NAME(cross_entropy)(z, labels, gradient, (real)0.25, n, c, threads);
    NAME(compare)("cross_entropy, gradient", gradient, truth, n * c, c);
    judge("cross_entropy", sizeof(real), fabs(found - loss), loss, n);
    labels[n / 2] = c;
    wrong += !isnan(NAME(cross_entropy)(z, labels, gradient, (real)0.25, n, c, threads));
    free(z), free(gradient), free(labels), free(truth);
}

static void NAME(entries)(int64_t n, int threads) {
    real *x = NAME(numbers)(n), *y = NAME(numbers)(n);
    double *truth = room(n, 8);
#define EACH(name, what)                                                                    \
    for (int64_t i = 0; i < n; i++) {                                                       \
        const double v = x[i];                                                              \
        truth[i] = what;                                                                    \
    }                                                                                       \
    NAME(name)(y, x, NULL, 0, 0, 0, n, threads);                                    \
    NAME(compare)(#name, y, truth, n, 1);
    for (int64_t i = 0; i < n; i++) x[i] *= 9;
    EACH(gelu, v * erfc(-v / sqrt(2)) / 2)
    EACH(tanh, tanh(v))
    EACH(silu, v / (1 + exp(-v)))
    EACH(rectify, v > 0 ? v : 0)
    free(x), free(y), free(truth);
}

#include "networks.h"

static void NAME(all)(int threads) {
    for (int innermost = 0; innermost < 2; innermost++) {
        NAME(convolutions)(19, 1, 12, 12, 6, 5, 1, 2, innermost, threads, 0, 1);
        NAME(convolutions)(17, 8, 9, 8, 9, 3, 1, 1, innermost, threads, 0, 1); /* by Winograd's products */
        NAME(convolutions)(5, 3, 9, 7, 4, 3, 2, 1, innermost, threads, 0, 1);
        NAME(convolutions)(4, 2, 6, 6, 17, 2, 1, 0, innermost, threads, 0, 1);
        NAME(convolutions)(1, 5, 7, 7, 20, 5, 1, 2, innermost, threads, 1, 1);
        NAME(convolutions)(3, 2, 9, 8, 7, 3, 1, 1, innermost, threads, 1, 1);
        NAME(convolutions)(2, 9, 12, 11, 6, 3, 1, 2, innermost, threads, 1, 2);
        NAME(convolutions)(5, 33, 6, 6, 17, 1, 1, 0, innermost, threads, 1, 1);
        NAME(convolutions)(6, 60, 5, 7, 3, 1, 1, 0, innermost, threads, 1, 1);
        NAME(convolutions)(34, 16, 4, 4, 18, 5, 1, 2, innermost, threads, 1, 1); /* positions one by one */
    }
    NAME(fused)(21, 0, threads);
    NAME(fused)(2, 1, threads);
    NAME(fused)(37, 1, threads);
    for (int64_t c = 2; c < 10; c += 2) NAME(losses)(70, c, threads);
    NAME(losses)(37, 65, threads);
    NAME(losses)(4000, 5, threads);
    NAME(products)(37, 50, 67, threads);
    NAME(products)(7, 16, 16, threads);
    NAME(along_rows)(70, 37, threads);
    NAME(along_rows)(1000, 64, threads);
    NAME(entries)(1000, threads);
    NAME(entries)(40001, threads);
    NAME(networks)(threads);
}

#undef AT
#undef PLACE
#undef EACH
#endif
