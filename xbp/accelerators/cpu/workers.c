/* Worker threads. The calling thread is number 0; the workers stay alive between calls, since starting
 * a thread costs more than a small convolution.
 *
 * A task is split into as many parts as there are threads, always in the same way, so that a result
 * depends on the number of threads alone. If the workers are busy with another caller's task, or could
 * not be started, the caller does all parts itself. */
#include "kernels.h"
#include "threads.h"

#define MOST_THREADS 64
#define SPINS 20000 /* about 1 ms, longer than a training step's pause between calls; waking up a
                     * thread takes 80 µs */

static struct {
    lock_t busy, lock;
    condition_t go;
    atomic_uint round;   /* number of tasks so far */
    atomic_int sleeping; /* threads that wait on `go` */
    atomic_int left;     /* threads still at this task */
    unsigned born[MOST_THREADS]; /* the round before each thread's first */
    int started, threads;
    part_function *work;
    void *task;
} workers = {.busy = LOCK_INITIALIZER, .lock = LOCK_INITIALIZER, .go = CONDITION_INITIALIZER};

THREAD worker(void *argument) {
    const int number = (int)(intptr_t)argument;
    unsigned seen = workers.born[number];
    for (;;) {
        for (int spin = 0; spin < SPINS && atomic_load(&workers.round) == seen; spin++) {
            relax();
            if (spin % 64 == 63) give_way(); /* to another library's threads */
        }
        if (atomic_load(&workers.round) == seen) {
            acquire(&workers.lock);
            atomic_fetch_add(&workers.sleeping, 1);
            while (atomic_load(&workers.round) == seen) wait_for(&workers.go, &workers.lock);
            atomic_fetch_sub(&workers.sleeping, 1);
            release(&workers.lock);
        }
        seen = atomic_load(&workers.round);
        if (number < workers.threads) workers.work(workers.task, number, workers.threads);
        atomic_fetch_sub(&workers.left, 1);
    }
    return 0;
}

static int start(int threads) {
    while (workers.started + 1 < threads) {
        workers.born[workers.started + 1] = atomic_load(&workers.round);
        if (!start_thread(worker, workers.started + 1)) break;
        workers.started++;
    }
    return workers.started + 1 >= threads;
}

void in_parallel(part_function *work, void *task, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads > 1 && try_to_acquire(&workers.busy)) {
        if (start(threads)) {
            workers.work = work;
            workers.task = task;
            workers.threads = threads;
            atomic_store(&workers.left, workers.started); /* workers without a part count down, too */
            atomic_fetch_add(&workers.round, 1);
            if (atomic_load(&workers.sleeping)) {
                acquire(&workers.lock);
                wake_all(&workers.go);
                release(&workers.lock);
            }
            work(task, 0, threads);
            for (int spin = 1; atomic_load(&workers.left); spin++) {
                relax();
                if (spin % 256 == 0) give_way();
            }
            release(&workers.busy);
            return;
        }
        release(&workers.busy);
    }
    for (int part = 0; part < threads; part++) work(task, part, threads);
}

/* --- matrix products, with the BLAS limited to one thread each --- */

static struct {
    lock_t lock;
    condition_t changed;
    int holders, forks; /* products under way; forks that wait for their end */
    int threads;        /* the BLAS's own number of threads */
} blas = {.lock = LOCK_INITIALIZER, .changed = CONDITION_INITIALIZER};

/* The first product limits the BLAS to one thread, the last one restores its number of threads. */
void hold_blas(const product *t) {
    acquire(&blas.lock);
    while (blas.forks) wait_for(&blas.changed, &blas.lock);
    if (blas.holders++ == 0) {
        blas.threads = t->get_threads();
        t->set_threads(1);
    }
    release(&blas.lock);
}

void release_blas(const product *t) {
    acquire(&blas.lock);
    if (--blas.holders == 0) {
        t->set_threads(blas.threads);
        wake_all(&blas.changed);
    }
    release(&blas.lock);
}

/* --- a thread's workspace: fresh pages in each call would cost as much as the arithmetic --- */

static slot_t scratch; /* frees a thread's workspace when the thread ends */

__attribute__((constructor)) static void prepare(void) { make_slot(&scratch); }

void *take_scratch(int64_t bytes) {
    static _Thread_local struct { void *memory; int64_t bytes; } mine;
    if (bytes > mine.bytes) {
        free_aligned(mine.memory);
        mine.memory = take_aligned((size_t)bytes);
        mine.bytes = mine.memory ? bytes : 0;
        set_slot(scratch, mine.memory);
    }
    return mine.memory;
}

/* --- forks: the child has the forking thread alone --- */
#ifndef _WIN32

/* No product is under way during a fork. OpenBLAS ends its threads before a fork and restarts them at
 * its next use; if another thread does so before the fork is done, the child waits for ever for threads
 * that it does not have. */
static void before_fork(void) {
    acquire(&blas.lock);
    blas.forks++;
    while (blas.holders) wait_for(&blas.changed, &blas.lock);
}

static void after_fork(void) {
    blas.forks--;
    wake_all(&blas.changed);
    release(&blas.lock);
}

static void in_child(void) {
    pthread_mutex_init(&blas.lock, NULL);
    pthread_cond_init(&blas.changed, NULL);
    blas.forks = 0;
    pthread_mutex_init(&workers.busy, NULL);
    pthread_mutex_init(&workers.lock, NULL);
    pthread_cond_init(&workers.go, NULL);
    workers.started = 0;
    atomic_store(&workers.sleeping, 0);
}

/* Handlers for `before` run in reverse order of registration, hence this one before that of OpenBLAS,
 * which numpy has loaded. */
__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(before_fork, after_fork, in_child);
}
#endif
