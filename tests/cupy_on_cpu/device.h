/* What NVRTC knows of itself, in terms of the emulation, for CuPy's kernels and xbp's. */

#pragma once

#include "emulation.h"

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <tuple>
#include <utility>

#define MOST_DYNAMIC (48 << 10) /* bytes of shared memory that a launch may ask for */
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __constant__
#define __device_builtin__

#include "mathematics.h"

namespace emulation {

__shared__ double dynamic[MOST_DYNAMIC / sizeof(double)];

/* A kernel by its parameters: their sizes, then 0; and a call, given the addresses of arguments. */
template <class Function> struct kernel;
template <class... Parameters> struct kernel<void (*)(Parameters...)> {
    static inline const size_t sizes[] = {sizeof(Parameters)..., 0};
    template <size_t... I>
    static void call(void (*function)(Parameters...), void **at, std::index_sequence<I...>) {
        function(*(std::remove_const_t<Parameters> *)at[I]...);
    }
    static void call(void (*function)(Parameters...), void **at) {
        call(function, at, std::index_sequence_for<Parameters...>());
    }
};

} /* namespace emulation */

/* Shuffles among `width` neighbours of a warp: beyond them a thread keeps its own value. */
template <class T> static T __shfl_sync(unsigned, T x, int from, int width = 32) {
    const int lane = emulation::current % 32;
    return emulation::exchange(x, lane / width * width + from % width);
}
template <class T> static T __shfl_up_sync(unsigned, T x, int by, int width = 32) {
    const int lane = emulation::current % 32;
    return emulation::exchange(x, lane % width < by ? lane : lane - by);
}
template <class T> static T __shfl_down_sync(unsigned, T x, int by, int width = 32) {
    const int lane = emulation::current % 32;
    return emulation::exchange(x, lane % width + by >= width ? lane : lane + by);
}

#define VISIBLE extern "C" __attribute__((visibility("default")))

/* An entry point `name` for the kernel that the rest names, an instance of a template perhaps. */
#define KERNEL(name, ...)                                                                              \
    VISIBLE int emulated_##name(void **given, const dim3 *grid, const dim3 *block, int order) {        \
        using found = emulation::kernel<decltype(&__VA_ARGS__)>;                                       \
        emulation::run = [](void *at) { found::call(&__VA_ARGS__, (void **)at); };                     \
        emulation::argument = given;                                                                   \
        return emulation::launch(*grid, *block, order);                                                \
    }                                                                                                  \
    VISIBLE const size_t *emulated_##name##_sizes() { return emulation::kernel<decltype(&__VA_ARGS__)>::sizes; }
