/* What GCC and Clang, and the processors, have in different forms. */
#ifndef XBP_COMPILER_H
#define XBP_COMPILER_H

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
#include <immintrin.h>
#define VECTOR_BYTES 64
#define VECTOR_REGISTER "v"
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define VECTOR_REGISTER "x"
#else
#define VECTOR_BYTES 16
#ifdef __SSE2__
#define VECTOR_REGISTER "x"
#elif defined(__aarch64__)
#define VECTOR_REGISTER "w"
#else
#define VECTOR_REGISTER "m" /* an unknown processor: through memory */
#endif
#endif

/* p + n for a pointer that may be NULL, as NULL + 0 is undefined. */
#define AFTER(p, n) ((p) ? (p) + (n) : NULL)

/* Tiles of sums that stay in registers. */
#if defined(__AVX512F__) || defined(__aarch64__) /* 32 registers */
#define PANEL 4        /* 6 × 4 sums, 4 vectors and a number */
#define MOST_OUTPUTS 8 /* 8 × 3 sums, 3 inputs and a weight */
#else /* 16 registers */
#define PANEL 2
#define MOST_OUTPUTS 4 /* 4 × 3 sums, 3 inputs and a weight */
#endif

/* Keeps the compiler from reloading a factor from memory for each of its products, and from contracting
 * a product and a sum. */
#define IN_REGISTER(v) __asm__("" : "+" VECTOR_REGISTER(v))

/* Before a loop of at most 16 rounds: unroll it whole. Their number is known to the compiler, or may be. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_IF_KNOWN /* short loops are unrolled by default; the pragma would warn of others */
#else
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_IF_KNOWN UNROLL
#endif

/* Bring a line of memory near that will be needed soon; any address is allowed. */
#define FETCH(p) __builtin_prefetch(p)

/* The same for later, into the second-level cache, so that nothing leaves the first. */
#define FETCH_SOON(p) __builtin_prefetch(p, 0, 2)

/* The lanes of two vectors, numbered throughout, in the order of constants that follow. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif

#endif
