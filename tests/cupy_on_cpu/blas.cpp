/* libcublas: products of real matrices, column by column as in cublas_api.h.
 *
 * Stricter than cuBLAS: in a capture, a handle must have been given a workspace for its stream, as
 * one that it allocates by itself belongs to no graph. */

#include "machine.h"

#include <cmath>
#include <cstdint>
#include <cstring>

using namespace machine;

enum { NOT_INITIALIZED = 1, INVALID = 7, EXECUTION_FAILED = 13, BLAS_NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 }; /* cudaDataType */
enum { SUM_OF_32F = 68 }; /* cublasComputeType_t */

struct bfloat16 {
    uint16_t bits;
    operator float() const {
        const uint32_t all = (uint32_t)bits << 16;
        float x;
        std::memcpy(&x, &all, sizeof x);
        return x;
    }
};

struct float16 {
    uint16_t bits;
    operator float() const {
        const int exponent = bits >> 10 & 31, digits = bits & 1023;
        const float size = exponent == 31 ? (digits ? NAN : INFINITY)
                         : std::ldexp((float)(digits + (exponent ? 1024 : 0)), (exponent ? exponent : 1) - 25);
        return bits >> 15 ? -size : size;
    }
};

struct blas {
    void *stream;
    bool has_workspace;
    int pointers_on_device, math;
};

struct matrices {
    int transposed_a, transposed_b, m, n, k, lda, ldb, ldc;
};

template <class T, class F>
static void multiply(const matrices &of, T alpha, const F *a, const F *b, T beta, T *c) {
    for (int j = 0; j < of.n; j++)
        for (int i = 0; i < of.m; i++) {
            T sum = 0;
            for (int l = 0; l < of.k; l++)
                sum += (T)a[of.transposed_a ? l + (int64_t)i * of.lda : i + (int64_t)l * of.lda] *
                       (T)b[of.transposed_b ? j + (int64_t)l * of.ldb : l + (int64_t)j * of.ldb];
            T &entry = c[i + (int64_t)j * of.ldc];
            entry = alpha * sum + (beta == 0 ? 0 : beta * entry); /* with beta 0, C is not read */
        }
}

/* `each(i)` has the i-th operands; the batch is done in stream order. */
template <class T, class Each>
static int submit(blas *it, const matrices &of, const void *alpha, const void *beta, int batch, Each each) {
    if (!it) return NOT_INITIALIZED;
    if (of.m < 0 || of.n < 0 || of.k < 0 || of.lda < (of.transposed_a ? of.k : of.m) ||
        of.ldb < (of.transposed_b ? of.n : of.k) || of.ldc < of.m)
        return INVALID;
    std::lock_guard<std::recursive_mutex> hold(lock);
    stream *s = stream_of(it->stream);
    if (!s || (s->capturing && !it->has_workspace)) return EXECUTION_FAILED;
    const T a = it->pointers_on_device ? 0 : *(const T *)alpha, b = it->pointers_on_device ? 0 : *(const T *)beta;
    const bool late = it->pointers_on_device; /* then they are read when the product is computed */
    const int status = machine::submit(it->stream, [=]() -> int {
        for (int i = 0; i < batch; i++) {
            auto [x, y, z] = each(i);
            multiply(of, late ? *(const T *)alpha : a, x, y, late ? *(const T *)beta : b, z);
        }
        return SUCCESS;
    });
    return status ? EXECUTION_FAILED : 0;
}

template <class T, class F = T> struct operands {
    const F *a, *b;
    T *c;
};

template <class T, class F = T>
static int strided(blas *it, matrices of, const void *alpha, const void *a, long long next_a, const void *b,
                   long long next_b, const void *beta, void *c, long long next_c, int batch) {
    return submit<T>(it, of, alpha, beta, batch, [=](int i) {
        return operands<T, F>{(const F *)a + i * next_a, (const F *)b + i * next_b, (T *)c + i * next_c};
    });
}

template <class T>
static int gathered(blas *it, matrices of, const void *alpha, const T *const *a, const T *const *b,
                    const void *beta, T *const *c, int batch) {
    return submit<T>(it, of, alpha, beta, batch, [=](int i) { return operands<T>{a[i], b[i], c[i]}; });
}

#define SHAPE blas *it, int ta, int tb, int m, int n, int k
#define OF matrices{ta, tb, m, n, k, lda, ldb, ldc}

extern "C" {

int cublasCreate_v2(blas **to) { return *to = new blas{}, 0; }
int cublasDestroy_v2(blas *it) { return delete it, 0; }
int cublasGetVersion_v2(blas *, int *version) { return *version = 130000, 0; }
int cublasSetStream_v2(blas *it, void *s) { return it->stream = s, it->has_workspace = false, 0; }
int cublasGetStream_v2(blas *it, void **s) { return *s = it->stream, 0; }
int cublasSetWorkspace_v2(blas *it, void *at, size_t size) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (size && end_of_memory((size_t)at) < (size_t)at + size) return INVALID;
    return it->has_workspace = at && size, 0;
}
int cublasSetMathMode(blas *it, int math) { return it->math = math, 0; }
int cublasGetMathMode(blas *it, int *math) { return *math = it->math, 0; }
int cublasSetPointerMode_v2(blas *it, int on_device) { return it->pointers_on_device = on_device, 0; }
int cublasGetPointerMode_v2(blas *it, int *on_device) { return *on_device = it->pointers_on_device, 0; }

int cublasSgemm_v2(SHAPE, const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta,
                   float *c, int ldc) {
    return strided<float>(it, OF, alpha, a, 0, b, 0, beta, c, 0, 1);
}
int cublasDgemm_v2(SHAPE, const double *alpha, const double *a, int lda, const double *b, int ldb,
                   const double *beta, double *c, int ldc) {
    return strided<double>(it, OF, alpha, a, 0, b, 0, beta, c, 0, 1);
}
int cublasSgemmStridedBatched(SHAPE, const float *alpha, const float *a, int lda, long long next_a, const float *b,
                              int ldb, long long next_b, const float *beta, float *c, int ldc, long long next_c,
                              int batch) {
    return strided<float>(it, OF, alpha, a, next_a, b, next_b, beta, c, next_c, batch);
}
int cublasDgemmStridedBatched(SHAPE, const double *alpha, const double *a, int lda, long long next_a,
                              const double *b, int ldb, long long next_b, const double *beta, double *c, int ldc,
                              long long next_c, int batch) {
    return strided<double>(it, OF, alpha, a, next_a, b, next_b, beta, c, next_c, batch);
}
int cublasSgemmBatched(SHAPE, const float *alpha, const float *const *a, int lda, const float *const *b, int ldb,
                       const float *beta, float *const *c, int ldc, int batch) {
    return gathered<float>(it, OF, alpha, a, b, beta, c, batch);
}
int cublasDgemmBatched(SHAPE, const double *alpha, const double *const *a, int lda, const double *const *b, int ldb,
                       const double *beta, double *const *c, int ldc, int batch) {
    return gathered<double>(it, OF, alpha, a, b, beta, c, batch);
}
int cublasGemmStridedBatchedEx(SHAPE, const void *alpha, const void *a, int type_a, int lda, long long next_a,
                               const void *b, int type_b, int ldb, long long next_b, const void *beta, void *c,
                               int type_c, int ldc, long long next_c, int batch, int compute, int) {
    if (type_a != type_b) return BLAS_NOT_SUPPORTED;
    if (type_c == R_32F && compute == SUM_OF_32F && type_a == R_16F)
        return strided<float, float16>(it, OF, alpha, a, next_a, b, next_b, beta, c, next_c, batch);
    if (type_c == R_32F && compute == SUM_OF_32F && type_a == R_16BF)
        return strided<float, bfloat16>(it, OF, alpha, a, next_a, b, next_b, beta, c, next_c, batch);
    if (type_b != type_c) return BLAS_NOT_SUPPORTED;
    if (type_c == R_32F) return strided<float>(it, OF, alpha, a, next_a, b, next_b, beta, c, next_c, batch);
    if (type_c == R_64F) return strided<double>(it, OF, alpha, a, next_a, b, next_b, beta, c, next_c, batch);
    return BLAS_NOT_SUPPORTED;
}
int cublasGemmEx(SHAPE, const void *alpha, const void *a, int type_a, int lda, const void *b, int type_b, int ldb,
                 const void *beta, void *c, int type_c, int ldc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(it, ta, tb, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c,
                                      type_c, ldc, 0, 1, compute, algorithm);
}
int cublasSgemmEx(SHAPE, const float *alpha, const void *a, int type_a, int lda, const void *b, int type_b, int ldb,
                  const float *beta, void *c, int type_c, int ldc) {
    if (type_c != R_32F) return BLAS_NOT_SUPPORTED;
    return cublasGemmEx(it, ta, tb, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, 0, 0);
}

} /* extern "C" */
