/* Worker threads. The calling thread does the first part of a task; the workers stay alive between calls,
 * since starting a thread costs more than a small convolution.
 *
 * A task is split into as many parts as there are threads, always in the same way, so that a result
 * depends on the number of threads alone. A thread that has done its own part takes those that nobody has
 * begun: the caller does not wait for a worker that another program keeps from its core. If the workers
 * are busy with another caller's task, or could not be started, the caller does all parts itself. */
#include "kernels.h"
#include "threads.h"

#define MOST_THREADS 64
#define SPINS 20000 /* about 1 ms, longer than a training step's pause between calls; waking up a
                     * thread takes 80 µs */

/* A worker that loses its core in the middle of a part stalls the caller. After a wait of at least
 * LEAST_STALL, longer than the caller's own work, callers do all parts themselves for STALLS times as long. */
#define LEAST_STALL 1000000 /* nanoseconds */
#define STALLS 16
#define MOST_ALONE 250000000

static struct {
    lock_t busy, lock;
    condition_t go;
    atomic_ullong untaken; /* a bit for each part that nobody has begun */
    atomic_int undone;     /* parts that are not done, without the caller's own */
    atomic_int sleeping;   /* threads that wait on `go` */
    int started, threads;
    part_function *work;
    void *task;
} workers = {.busy = LOCK_INITIALIZER, .lock = LOCK_INITIALIZER, .go = CONDITION_INITIALIZER};

atomic_llong xbp_alone_until; /* the time up to which callers do all parts themselves */

/* Do a part of the task; 0 if somebody else has begun it. What describes the task stays as it is while a
 * part is undone. */
static int take_part(int part) {
    const unsigned long long bit = 1ULL << part;
    if (!(atomic_load(&workers.untaken) & bit) || !(atomic_fetch_and(&workers.untaken, ~bit) & bit)) return 0;
    workers.work(workers.task, part, workers.threads);
    atomic_fetch_sub(&workers.undone, 1);
    return 1;
}

static void take_others(void) {
    unsigned long long untaken;
    while ((untaken = atomic_load(&workers.untaken))) take_part(__builtin_ctzll(untaken));
}

THREAD worker(void *argument) {
    const int number = (int)(intptr_t)argument;
    for (;;) {
        for (int spin = 0; spin < SPINS; spin++) {
            if (take_part(number)) {
                take_others();
                spin = 0;
            }
            relax();
            if (spin % 64 == 63) give_way(); /* to another library's threads */
        }
        acquire(&workers.lock);
        atomic_fetch_add(&workers.sleeping, 1);
        while (!(atomic_load(&workers.untaken) & 1ULL << number)) wait_for(&workers.go, &workers.lock);
        atomic_fetch_sub(&workers.sleeping, 1);
        release(&workers.lock);
    }
    return 0;
}

static int start(int threads) {
    while (workers.started + 1 < threads && start_thread(worker, workers.started + 1)) workers.started++;
    return workers.started + 1 >= threads;
}

/* Wait for the workers' parts. */
static void wait_for_workers(int64_t begun) {
    int64_t own = 0, waited;
    for (int spin = 1; atomic_load(&workers.undone); spin++) {
        relax();
        if (spin % 256) continue;
        if (!own) own = nanoseconds();
        give_way();
    }
    if (!own) return; /* none, or next to none */
    waited = nanoseconds() - own;
    if (waited < LEAST_STALL || waited < own - begun) return;
    waited = waited < MOST_ALONE / STALLS ? waited * STALLS : MOST_ALONE;
    atomic_store(&xbp_alone_until, nanoseconds() + waited);
}

void in_parallel(part_function *work, void *task, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    const int64_t begun = threads > 1 ? nanoseconds() : 0;
    if (begun > atomic_load(&xbp_alone_until) && try_to_acquire(&workers.busy)) {
        if (start(threads)) {
            workers.work = work;
            workers.task = task;
            workers.threads = threads;
            atomic_store(&workers.undone, threads - 1);
            atomic_store(&workers.untaken, ~0ULL >> (MOST_THREADS - threads) & ~1ULL); /* not the first */
            if (atomic_load(&workers.sleeping)) {
                acquire(&workers.lock);
                wake_all(&workers.go);
                release(&workers.lock);
            }
            work(task, 0, threads);
            take_others();
            wait_for_workers(begun);
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
    atomic_store(&workers.untaken, 0);
}

/* Handlers for `before` run in reverse order of registration, hence this one before that of OpenBLAS,
 * which numpy has loaded. */
__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(before_fork, after_fork, in_child);
}
#endif
