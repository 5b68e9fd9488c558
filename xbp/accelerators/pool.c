/* A pool of threads that wait for work: the calling thread is number 0, the others stay alive
 * between calls, since starting a thread costs more than a small convolution.
 *
 * A task is cut into as many parts as there are threads, always in the same way, so a result
 * depends on the number of threads and on nothing else: where the pool is busy with somebody
 * else's task, or could not start its threads, the caller works all parts off itself. */
#include <pthread.h>
#include <sched.h>
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

static void after_fork(void) { /* only the thread that forked lives on in the child */
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.go, NULL);
    pool.started = 0;
    atomic_store(&pool.round, 0);
    atomic_store(&pool.sleeping, 0);
}

static int start(int threads) {
    static int forks_watched = 0;
    if (!forks_watched) forks_watched = !pthread_atfork(NULL, NULL, after_fork);
    while (pool.started + 1 < threads) {
        pthread_t id;
        pool.born[pool.started + 1] = atomic_load(&pool.round);
        if (pthread_create(&id, NULL, worker, (void *)(long)(pool.started + 1))) break;
        pthread_detach(id);
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
