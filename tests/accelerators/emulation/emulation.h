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

using std::exp;
using std::log;
using std::sqrt;

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

enum { MOST_THREADS = 256, STACK = 1 << 16, RUNNING = 0, DONE = -1 };

struct fiber {
    ucontext_t first;
    jmp_buf at;
    bool begun;
    int state; /* RUNNING, DONE, or the line of the barrier at which it waits */
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
    threadIdx = {(unsigned)thread, 0, 0};
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

extern "C" char __start_shared_memory[] __attribute__((weak)), __stop_shared_memory[] __attribute__((weak));

static int launch(int blocks_x, int blocks_y, int threads, int order) {
    if (threads > MOST_THREADS) return 2;
    const int blocks = blocks_x * blocks_y;
    int *block = (int *)malloc(blocks * sizeof(int)), thread[MOST_THREADS], failed = 0;
    arrange(block, blocks, order);
    arrange(thread, threads, order);
    gridDim = {(unsigned)blocks_x, (unsigned)blocks_y, 1};
    blockDim = {(unsigned)threads, 1, 1};
    for (int b = 0; b < blocks && !failed; b++) {
        blockIdx = {(unsigned)(block[b] % blocks_x), (unsigned)(block[b] / blocks_x), 0};
        if (__start_shared_memory)
            memset(__start_shared_memory, 0xFF, (size_t)(__stop_shared_memory - __start_shared_memory));
        for (int state = RUNNING; state != DONE && !failed;) {
            for (int i = 0; i < threads; i++) {
                resume(thread[i]);
                if (i == 0) state = fibers[thread[i]].state;
                else if (fibers[thread[i]].state != state) failed = 1; /* not all at one barrier */
            }
        }
    }
    for (int i = 0; i < threads && failed; i++) fibers[i].begun = false; /* where they stand is lost */
    free(block);
    return failed;
}

} /* namespace emulation */

#define __syncthreads() emulation::leave(__LINE__)

/* A kernel `name`, by the name under which it is found, `emulated_name`. */
#define EMULATED(name, task)                                                                        \
    extern "C" int emulated_##name(void *given, int blocks_x, int blocks_y, int threads, int order) { \
        emulation::run = [](void *it) { name(*(const task *)it); };                                 \
        emulation::argument = given;                                                                \
        return emulation::launch(blocks_x, blocks_y, threads, order);                               \
    }
