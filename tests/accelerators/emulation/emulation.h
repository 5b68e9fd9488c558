/* Enough of CUDA to run a kernel on the CPU, one block after another, exactly.
 *
 * The threads of a block are fibers: each runs to the next barrier, then the next one's turn comes, in
 * an order that is chosen. So a barrier is a barrier, and what no barrier orders comes in any order:
 * a kernel whose result changes with it has a race. Shared memory is filled with rubbish (nan) before
 * each block. A thread that ends, or waits at another barrier, while others wait is an error. */

#include <cmath>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>

using std::erfc;
using std::exp;
using std::fabs;
using std::fma;
using std::log;
using std::sqrt;
using std::tanh;

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))

static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

#ifndef FORGIVING
#define FORGIVING 0 /* whether threads may end while others wait at barriers, as GPUs let them */
#endif

namespace emulation {

enum { MOST_THREADS = 1024, WARP = 32, STACK = 1 << 16, RUNNING = 0, DONE = -1 };

struct fiber {
    ucontext_t first;
    jmp_buf at;
    bool begun;
    int state; /* RUNNING, DONE, or the barrier at which it waits: its line; below DONE, a warp's */
    char *stack;
};

static fiber fibers[MOST_THREADS];
static jmp_buf scheduler;
static int current;
static void (*run)(void *);
static void *argument;

static void leave(int state) {
    fibers[current].state = state;
    if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}

static void body() { /* a fiber's life: one thread after another */
    for (;;) {
        run(argument);
        leave(DONE);
    }
}

static void resume(int thread) {
    fiber &f = fibers[thread];
    current = thread;
    const unsigned t = thread, row = t / blockDim.x;
    threadIdx = {t % blockDim.x, row % blockDim.y, row / blockDim.y};
    f.state = RUNNING;
    if (_setjmp(scheduler)) return;
    if (f.begun) _longjmp(f.at, 1);
    f.begun = true;
    f.stack = (char *)malloc(STACK);
    getcontext(&f.first);
    f.first.uc_stack.ss_sp = f.stack;
    f.first.uc_stack.ss_size = STACK;
    f.first.uc_link = nullptr;
    makecontext(&f.first, body, 0);
    setcontext(&f.first);
}

/* Which of `n` is the one at `position`: in order, in reverse, or shuffled by seed `order`. */
static void arrange(int *to, int n, int order) {
    for (int i = 0; i < n; i++) to[i] = order == 1 ? n - 1 - i : i;
    unsigned state = 2654435761u * (unsigned)order + 1;
    for (int i = n - 1; i > 0 && order > 1; i--) {
        state = 1664525u * state + 1013904223u;
        const int j = (int)((state >> 8) % (unsigned)(i + 1)), kept = to[i];
        to[i] = to[j], to[j] = kept;
    }
}

/* Whether threads wait for their warp; `failed` if the others of it do not wait there. */
static bool warps_wait(int threads, int *failed) {
    bool waiting = false;
    for (int i = 0; i < threads; i++) {
        const int state = fibers[i].state, first = fibers[i - i % WARP].state;
        waiting = waiting || state < DONE;
        if (state != first && (state < DONE || first < DONE)) *failed = 1;
    }
    return waiting && !*failed;
}

extern "C" char __start_shared_memory[] __attribute__((weak)), __stop_shared_memory[] __attribute__((weak));

static int launch(dim3 grid, dim3 shape, int order) {
    const int blocks = grid.x * grid.y * grid.z, threads = shape.x * shape.y * shape.z;
    if (threads > MOST_THREADS) return 2;
    int *block = (int *)malloc(blocks * sizeof(int)), thread[MOST_THREADS], failed = 0;
    arrange(block, blocks, order);
    arrange(thread, threads, order);
    gridDim = grid;
    blockDim = shape;
    for (int b = 0; b < blocks && !failed; b++) {
        const unsigned at = block[b], row = at / grid.x;
        blockIdx = {at % grid.x, row % grid.y, row / grid.y};
        if (__start_shared_memory)
            memset(__start_shared_memory, 0xFF, (size_t)(__stop_shared_memory - __start_shared_memory));
        for (int i = 0; i < threads; i++) fibers[i].state = RUNNING;
        for (int state = RUNNING; state != DONE && !failed;) {
            for (int i = 0; i < threads; i++)
                if (fibers[thread[i]].state != DONE) resume(thread[i]);
            while (warps_wait(threads, &failed))
                for (int i = 0; i < threads; i++)
                    if (fibers[thread[i]].state < DONE) resume(thread[i]);
            state = DONE;
            for (int i = 0; i < threads; i++)
                if (fibers[i].state != DONE) state = fibers[i].state;
            for (int i = 0; i < threads; i++) /* not all at one barrier */
                if (fibers[i].state != state && !(FORGIVING && fibers[i].state == DONE)) failed = 1;
        }
    }
    for (int i = 0; i < threads && failed; i++) fibers[i].begun = false; /* where they stand is lost */
    free(block);
    return failed;
}

} /* namespace emulation */

/* One thread runs at a time, so that nothing comes between, and all see what one has written. */
static inline void __threadfence() {}
static inline unsigned atomicInc(unsigned *at, unsigned most) {
    const unsigned was = *at;
    *at = was >= most ? 0 : was + 1;
    return was;
}

#define __syncthreads() emulation::leave(__LINE__)
#define __syncwarp(...) emulation::leave(emulation::DONE - __LINE__)

namespace emulation {

/* What the thread `from` of this one's warp has; each gives its own. */
template <class T> static T exchange(T own, int from) {
    alignas(16) static char given[MOST_THREADS][16];
    memcpy(given[current], &own, sizeof own);
    __syncwarp();
    const T found = *(const T *)given[current - current % WARP + from];
    __syncwarp();
    return found;
}

/* Whether any thread of the block says so. */
static int any(int own) {
    static int said[MOST_THREADS];
    said[current] = own;
    __syncthreads();
    int found = 0;
    for (unsigned i = 0; i < blockDim.x; i++) found |= said[i] != 0;
    __syncthreads();
    return found;
}

} /* namespace emulation */

#define __syncthreads_or(own) emulation::any(own)

/* What the thread of this one's warp has whose number differs in the bits of `mask`. */
template <class T> static T __shfl_xor_sync(unsigned, T x, int mask, int = 32) {
    return emulation::exchange(x, emulation::current % 32 ^ mask);
}

/* A kernel `name`, by the name under which it is found, `emulated_name`. */
#define EMULATED(name, task)                                                                        \
    extern "C" int emulated_##name(void *given, int blocks_x, int blocks_y, int threads, int order) { \
        emulation::run = [](void *it) { name(*(const task *)it); };                                 \
        emulation::argument = given;                                                                \
        return emulation::launch({(unsigned)blocks_x, (unsigned)blocks_y, 1}, {(unsigned)threads, 1, 1}, order); \
    }
