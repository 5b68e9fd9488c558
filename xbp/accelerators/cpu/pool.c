/* A pool of threads that wait for work: the calling thread is number 0, the others stay alive
 * between calls, since starting a thread costs more than a small convolution.
 *
 * A task is cut into as many parts as there are threads, always in the same way, so a result
 * depends on the number of threads and on nothing else: where the pool is busy with somebody
 * else's task, or could not start its threads, the caller works all parts off itself. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include "kernels.h"

#define MOST_THREADS 64
#define SPINS 20000 /* about 1 ms: in a training step the next call comes sooner, and waking up a
                     * thread takes 80 µs of it */

static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t go;
    atomic_uint round;   /* counts tasks */
    atomic_int sleeping; /* how many threads wait on `go` */
    atomic_int left;     /* threads that are not done with this task */
    unsigned born[MOST_THREADS]; /* the round before each thread's first */
    int started, threads;
    part_function *work;
    void *task;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .go = PTHREAD_COND_INITIALIZER};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void *worker(void *argument) {
    int number = (int)(long)argument;
    unsigned seen = pool.born[number];
    for (;;) {
        for (int spin = 0; spin < SPINS && atomic_load(&pool.round) == seen; spin++) {
            relax();
            if (spin % 64 == 63) sched_yield(); /* another library's threads may want the core */
        }
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleeping, 1);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.go, &pool.lock);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load(&pool.round);
        if (number < pool.threads) pool.work(pool.task, number, pool.threads);
        atomic_fetch_sub(&pool.left, 1);
    }
    return NULL;
}

/* Signals are for the threads of the program, which may wait for one that they keep from being
 * handled; but a fault in a kernel is the thread's own, and has a handler in Python. */
static int create(int number) {
    const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t blocked, before;
    pthread_t id;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) sigdelset(&blocked, own[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before); /* which a new thread inherits */
    const int failed = pthread_create(&id, NULL, worker, (void *)(long)number);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) pthread_detach(id);
    return !failed;
}

static int start(int threads) {
    while (pool.started + 1 < threads) {
        pool.born[pool.started + 1] = atomic_load(&pool.round);
        if (!create(pool.started + 1)) break;
        pool.started++;
    }
    return pool.started + 1 >= threads;
}

void in_parallel(part_function *work, void *task, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads > 1 && !pthread_mutex_trylock(&pool.busy)) {
        if (start(threads)) {
            pool.work = work;
            pool.task = task;
            pool.threads = threads;
            atomic_store(&pool.left, pool.started); /* also those without a part say that they saw it */
            atomic_fetch_add(&pool.round, 1);
            if (atomic_load(&pool.sleeping)) {
                pthread_mutex_lock(&pool.lock);
                pthread_cond_broadcast(&pool.go);
                pthread_mutex_unlock(&pool.lock);
            }
            work(task, 0, threads);
            for (int spin = 1; atomic_load(&pool.left); spin++) {
                relax();
                if (spin % 256 == 0) sched_yield();
            }
            pthread_mutex_unlock(&pool.busy);
            return;
        }
        pthread_mutex_unlock(&pool.busy);
    }
    for (int part = 0; part < threads; part++) work(task, part, threads);
}

/* --- matrix products, which hold the BLAS to one thread each --- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int holders, forks; /* products under way, and threads that wait for their end to fork */
    int threads;        /* how many the BLAS used before */
} blas = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* The first product that begins holds the BLAS to one thread, the last that ends lets it go. */
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

/* --- forks: in the child only the thread that forked lives on --- */

/* OpenBLAS ends its threads before a fork and starts them again when it is next used, or told how
 * many. If that is by another thread, and before the fork is done, the child waits for ever for
 * threads that it believes it has. So no product is under way during a fork. */
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
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.go, NULL);
    pool.started = 0;
    atomic_store(&pool.sleeping, 0);
}

/* Handlers of before run in the order opposite to that of registration: this one before that of
 * OpenBLAS, which numpy has loaded. */
__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(before_fork, after_fork, in_child);
}
