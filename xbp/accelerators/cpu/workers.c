/* Worker threads. The calling thread is number 0; the workers stay alive between calls, since starting
 * a thread costs more than a small convolution.
 *
 * A task is split into as many parts as there are threads, always in the same way, so that a result
 * depends on the number of threads alone. If the workers are busy with another caller's task, or could
 * not be started, the caller does all parts itself. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include "kernels.h"

#define MOST_THREADS 64
#define SPINS 20000 /* about 1 ms, longer than a training step's pause between calls; waking up a
                     * thread takes 80 µs */

static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t go;
    atomic_uint round;   /* number of tasks so far */
    atomic_int sleeping; /* threads that wait on `go` */
    atomic_int left;     /* threads still at this task */
    unsigned born[MOST_THREADS]; /* the round before each thread's first */
    int started, threads;
    part_function *work;
    void *task;
} workers = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .go = PTHREAD_COND_INITIALIZER};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void *worker(void *argument) {
    int number = (int)(long)argument;
    unsigned seen = workers.born[number];
    for (;;) {
        for (int spin = 0; spin < SPINS && atomic_load(&workers.round) == seen; spin++) {
            relax();
            if (spin % 64 == 63) sched_yield(); /* to another library's threads */
        }
        if (atomic_load(&workers.round) == seen) {
            pthread_mutex_lock(&workers.lock);
            atomic_fetch_add(&workers.sleeping, 1);
            while (atomic_load(&workers.round) == seen) pthread_cond_wait(&workers.go, &workers.lock);
            atomic_fetch_sub(&workers.sleeping, 1);
            pthread_mutex_unlock(&workers.lock);
        }
        seen = atomic_load(&workers.round);
        if (number < workers.threads) workers.work(workers.task, number, workers.threads);
        atomic_fetch_sub(&workers.left, 1);
    }
    return NULL;
}

/* Start a worker with all signals blocked, so that the program's own threads receive them; only faults
 * of a kernel, which Python's faulthandler reports, stay with the worker. */
static int create(int number) {
    const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t blocked, before;
    pthread_t id;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) sigdelset(&blocked, own[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before); /* inherited by the new thread */
    const int failed = pthread_create(&id, NULL, worker, (void *)(long)number);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) pthread_detach(id);
    return !failed;
}

static int start(int threads) {
    while (workers.started + 1 < threads) {
        workers.born[workers.started + 1] = atomic_load(&workers.round);
        if (!create(workers.started + 1)) break;
        workers.started++;
    }
    return workers.started + 1 >= threads;
}

void in_parallel(part_function *work, void *task, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads > 1 && !pthread_mutex_trylock(&workers.busy)) {
        if (start(threads)) {
            workers.work = work;
            workers.task = task;
            workers.threads = threads;
            atomic_store(&workers.left, workers.started); /* workers without a part count down, too */
            atomic_fetch_add(&workers.round, 1);
            if (atomic_load(&workers.sleeping)) {
                pthread_mutex_lock(&workers.lock);
                pthread_cond_broadcast(&workers.go);
                pthread_mutex_unlock(&workers.lock);
            }
            work(task, 0, threads);
            for (int spin = 1; atomic_load(&workers.left); spin++) {
                relax();
                if (spin % 256 == 0) sched_yield();
            }
            pthread_mutex_unlock(&workers.busy);
            return;
        }
        pthread_mutex_unlock(&workers.busy);
    }
    for (int part = 0; part < threads; part++) work(task, part, threads);
}

/* --- matrix products, with the BLAS limited to one thread each --- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int holders, forks; /* products under way; forks that wait for their end */
    int threads;        /* the BLAS's own number of threads */
} blas = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* The first product limits the BLAS to one thread, the last one restores its number of threads. */
void hold_blas(const product *t) {
    pthread_mutex_lock(&blas.lock);
    while (blas.forks) pthread_cond_wait(&blas.changed, &blas.lock);
    if (blas.holders++ == 0) {
        blas.threads = t->get_threads();
        t->set_threads(1);
    }
    pthread_mutex_unlock(&blas.lock);
}

void release_blas(const product *t) {
    pthread_mutex_lock(&blas.lock);
    if (--blas.holders == 0) {
        t->set_threads(blas.threads);
        pthread_cond_broadcast(&blas.changed);
    }
    pthread_mutex_unlock(&blas.lock);
}

/* --- forks: the child has the forking thread alone --- */

/* No product is under way during a fork. OpenBLAS ends its threads before a fork and restarts them at
 * its next use; if another thread does so before the fork is done, the child waits for ever for threads
 * that it does not have. */
static void before_fork(void) {
    pthread_mutex_lock(&blas.lock);
    blas.forks++;
    while (blas.holders) pthread_cond_wait(&blas.changed, &blas.lock);
}

static void after_fork(void) {
    blas.forks--;
    pthread_cond_broadcast(&blas.changed);
    pthread_mutex_unlock(&blas.lock);
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
