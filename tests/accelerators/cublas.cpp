/* A stand-in for libcublas that records what it is told; handles are all 42. */

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" {
int calls, stream; size_t workspace, at; int fails, mode, made;
int cublasSetMathMode(void *handle, int wanted) { mode = wanted; return handle != (void *)42; }
int cublasCreate_v2(void **handle) { made++; *handle = (void *)42; return fails; }
int cublasSetStream_v2(void *handle, void *s) { calls++; stream = (int)(intptr_t)s; workspace = 0;
    return handle != (void *)42; }
int cublasSetWorkspace_v2(void *handle, void *where, size_t size) {
    workspace = where ? size : 0; at = (size_t)where;
    return handle != (void *)42; }
}
/* C ← α op(A) op(B) + β C, all of them column by column, as in cublas_api.h */
#define GEMM(name, T) \
    extern "C" int name(void *handle, int ta, int tb, int m, int n, int k, const T *alpha, \
                        const T *a, int lda, const T *b, int ldb, const T *beta, T *c, int ldc) { \
        if (handle != (void *)42 || *alpha != 1 || *beta != 0 || !workspace) return 1; \
        if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7; \
        for (int j = 0; j < n; j++) \
            for (int i = 0; i < m; i++) { \
                T sum = 0; \
                for (int l = 0; l < k; l++) \
                    sum += (ta ? a[l + i * lda] : a[i + l * lda]) * \
                           (tb ? b[j + l * ldb] : b[l + j * ldb]); \
                c[i + j * ldc] = sum; \
            } \
        return 0; \
    }
GEMM(cublasSgemm_v2, float)
GEMM(cublasDgemm_v2, double)
#define STACKS(name, gemm, T) \
    extern "C" int name(void *handle, int ta, int tb, int m, int n, int k, const T *alpha, \
                        const T *a, int lda, long long next_a, const T *b, int ldb, \
                        long long next_b, const T *beta, T *c, int ldc, long long next_c, \
                        int count) { \
        for (int i = 0; i < count; i++) \
            if (int status = gemm(handle, ta, tb, m, n, k, alpha, a + i * next_a, lda, \
                                  b + i * next_b, ldb, beta, c + i * next_c, ldc)) return status; \
        return 0; \
    }
STACKS(cublasSgemmStridedBatched, cublasSgemm_v2, float)
STACKS(cublasDgemmStridedBatched, cublasDgemm_v2, double)

/* Sums of float32 (0). Factors of float16 (2) or bfloat16 (14) are multiplied as such (68), those of float32 in
 * TF32 (77). */
extern "C" {
int factors, compute;
}

static float number(const void *from, int type, long long i) {
    if (type == 0) return ((const float *)from)[i];
    const uint16_t bits = ((const uint16_t *)from)[i];
    if (type == 14) {
        const uint32_t all = (uint32_t)bits << 16;
        float found;
        std::memcpy(&found, &all, 4);
        return found;
    }
    const int exponent = bits >> 10 & 31, digits = bits & 1023;
    const float size = exponent == 31 ? (digits ? NAN : INFINITY)
                     : ldexpf((float)(digits + (exponent ? 1024 : 0)), (exponent ? exponent : 1) - 25);
    return bits >> 15 ? -size : size;
}
extern "C" int cublasGemmStridedBatchedEx(
    void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int type_a, int lda,
    long long next_a, const void *b, int type_b, int ldb, long long next_b, const float *beta, float *c, int type_c,
    int ldc, long long next_c, int count, int how, int algorithm) {
    if (handle != (void *)42 || *alpha != 1 || *beta != 0 || !workspace) return 1;
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;
    if (type_a != type_b || type_c != 0 || algorithm != -1) return 15;
    if (!(type_a == 0 ? how == 77 : how == 68 && (type_a == 2 || type_a == 14))) return 15;
    factors = type_a, compute = how;
    for (int s = 0; s < count; s++)
        for (int j = 0; j < n; j++)
            for (int i = 0; i < m; i++) {
                float sum = 0;
                for (int l = 0; l < k; l++)
                    sum += number(a, type_a, s * next_a + (ta ? l + (long long)i * lda : i + (long long)l * lda)) *
                           number(b, type_b, s * next_b + (tb ? j + (long long)l * ldb : l + (long long)j * ldb));
                c[s * next_c + i + (long long)j * ldc] = sum;
            }
    return 0;
}
extern "C" int cublasGemmEx(
    void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int type_a, int lda,
    const void *b, int type_b, int ldb, const float *beta, float *c, int type_c, int ldc, int how, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c,
                                      type_c, ldc, 0, 1, how, algorithm);
}
