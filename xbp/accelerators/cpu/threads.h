/* Threads, locks, forks and memory of a thread, by POSIX and by Windows. */
#ifndef XBP_THREADS_H
#define XBP_THREADS_H

#include <stdint.h>
#include <stdlib.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <malloc.h>

typedef SRWLOCK lock_t;
typedef CONDITION_VARIABLE condition_t;
#define LOCK_INITIALIZER SRWLOCK_INIT
#define CONDITION_INITIALIZER CONDITION_VARIABLE_INIT

static inline void acquire(lock_t *lock) { AcquireSRWLockExclusive(lock); }
static inline int try_to_acquire(lock_t *lock) { return TryAcquireSRWLockExclusive(lock); }
static inline void release(lock_t *lock) { ReleaseSRWLockExclusive(lock); }
static inline void wait_for(condition_t *condition, lock_t *lock) {
    SleepConditionVariableSRW(condition, lock, INFINITE, 0);
}
static inline void wake_all(condition_t *condition) { WakeAllConditionVariable(condition); }
static inline void give_way(void) { SwitchToThread(); }

/* A clock that never goes back. */
static inline int64_t nanoseconds(void) {
    LARGE_INTEGER ticks, second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&second);
    return ticks.QuadPart / second.QuadPart * 1000000000 +
           ticks.QuadPart % second.QuadPart * 1000000000 / second.QuadPart;
}

typedef DWORD WINAPI thread_function(void *argument);
#define THREAD static DWORD WINAPI

/* Start a thread that nobody waits for; 0 if there is none to be had. */
static inline int start_thread(thread_function *body, intptr_t argument) {
    const HANDLE thread = CreateThread(NULL, 0, body, (void *)argument, 0, NULL);
    return thread != NULL && CloseHandle(thread);
}

static inline void *take_aligned(size_t bytes) { return _aligned_malloc(bytes, 64); }
static inline void free_aligned(void *memory) { _aligned_free(memory); }

/* A thread's own pointer, freed when the thread ends. */
typedef DWORD slot_t;
static void WINAPI free_slot(void *memory) { _aligned_free(memory); }
static inline void make_slot(slot_t *slot) { *slot = FlsAlloc(free_slot); }
static inline void set_slot(slot_t slot, void *memory) { FlsSetValue(slot, memory); }

#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

typedef pthread_mutex_t lock_t;
typedef pthread_cond_t condition_t;
#define LOCK_INITIALIZER PTHREAD_MUTEX_INITIALIZER
#define CONDITION_INITIALIZER PTHREAD_COND_INITIALIZER

static inline void acquire(lock_t *lock) { pthread_mutex_lock(lock); }
static inline int try_to_acquire(lock_t *lock) { return !pthread_mutex_trylock(lock); }
static inline void release(lock_t *lock) { pthread_mutex_unlock(lock); }
static inline void wait_for(condition_t *condition, lock_t *lock) { pthread_cond_wait(condition, lock); }
static inline void wake_all(condition_t *condition) { pthread_cond_broadcast(condition); }
static inline void give_way(void) { sched_yield(); }

/* A clock that never goes back. */
static inline int64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

typedef void *thread_function(void *argument);
#define THREAD static void *

/* Start a thread that nobody waits for; 0 if there is none to be had. All signals are blocked in it, so
 * that the program's own threads receive them; only faults of a kernel, which Python's faulthandler
 * reports, stay with it. */
static inline int start_thread(thread_function *body, intptr_t argument) {
    const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t blocked, before;
    pthread_t id;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) sigdelset(&blocked, own[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before); /* inherited by the new thread */
    const int failed = pthread_create(&id, NULL, body, (void *)argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) pthread_detach(id);
    return !failed;
}

static inline void *take_aligned(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }
static inline void free_aligned(void *memory) { free(memory); }

/* A thread's own pointer, freed when the thread ends. */
typedef pthread_key_t slot_t;
static inline void make_slot(slot_t *slot) { pthread_key_create(slot, free_aligned); }
static inline void set_slot(slot_t slot, void *memory) { pthread_setspecific(slot, memory); }
#endif

/* A pause between two looks at a number that another thread changes. */
static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* pauses longer than `yield`, which most processors ignore */
#endif
}

#endif
