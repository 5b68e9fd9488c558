/* CUDA's mathematics, as far as CuPy's own kernels and xbp's call it. */

#pragma once

using std::abs, std::acos, std::acosh, std::asin, std::asinh, std::atan, std::atan2, std::atanh;
using std::cbrt, std::ceil, std::copysign, std::cos, std::cosh, std::erf, std::erfc, std::exp2;
using std::expm1, std::fabs, std::floor, std::fmax, std::fmin, std::fmod, std::frexp, std::hypot;
using std::isfinite, std::isinf, std::isnan, std::ldexp, std::lgamma, std::log10, std::log1p, std::log2;
using std::modf, std::nextafter, std::pow, std::rint, std::round, std::signbit, std::sin, std::sinh;
using std::tan, std::tanh, std::tgamma, std::trunc;

template <class A, class B> static inline auto min(A a, B b) { return b < a ? b : a; }
template <class A, class B> static inline auto max(A a, B b) { return a < b ? b : a; }
static inline float rsqrt(float x) { return 1 / sqrt(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline float rsqrtf(float x) { return 1 / sqrt(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
static inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static inline long long __double_as_longlong(double x) { long long y; memcpy(&y, &x, 8); return y; }
static inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }

/* One thread runs at a time, so that nothing comes between. */
template <class T, class U> static inline T atomicAdd(T *at, U x) { const T was = *at; *at = was + (T)x; return was; }
template <class T, class U> static inline T atomicMax(T *at, U x) { const T was = *at; if (was < (T)x) *at = (T)x; return was; }
template <class T, class U> static inline T atomicMin(T *at, U x) { const T was = *at; if ((T)x < was) *at = (T)x; return was; }
template <class T, class U> static inline T atomicExch(T *at, U x) { const T was = *at; *at = (T)x; return was; }
template <class T, class U, class V> static inline T atomicCAS(T *at, U is, V to) { const T was = *at; if (was == (T)is) *at = (T)to; return was; }
