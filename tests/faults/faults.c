/* Calls of the C library that fail on purpose: loaded before it (LD_PRELOAD), so that Python's calls come here
 * first. Calls for paths in one folder, and for files opened there, are counted; the n-th one fails. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { FAIL, INTERRUPT, SHORTEN, KILL }; /* as in __main__.py */

static char folder[4096];
static const char *name = "";
static size_t length;
static long failing, calls;
static int number, mode;
static unsigned char opened[4096]; /* by descriptor: in the folder */

void faults_arm(const char *where, long call, int kind, int error) {
    length = strlen(strncpy(folder, where, sizeof folder - 1));
    failing = call, calls = 0, mode = kind, number = error, name = "";
}
void faults_disarm(void) { length = 0; }
long faults_calls(void) { return calls; }
const char *faults_name(void) { return name; }

static int inside(int from, const char *path) {
    if (path[0] != '/' && from >= 0) return from < (int)sizeof opened && opened[from];
    return length && !strncmp(path, folder, length);
}
static int known(int file) { return length && file >= 0 && file < (int)sizeof opened && opened[file]; }

/* Whether this call fails. Only some calls may be interrupted. */
static int fails(const char *called, int slow) {
    if (!length || mode == SHORTEN || (mode == INTERRUPT && !slow) || ++calls != failing) return 0;
    name = called;
    if (mode == KILL) kill(getpid(), SIGKILL);
    errno = number;
    return 1;
}

#define NEXT(result, function, ...)                                            \
    static result (*next)(__VA_ARGS__);                                        \
    if (!next) next = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #function)

#define OPEN(function)                                                         \
    int function(const char *path, int flags, ...) {                           \
        NEXT(int, function, const char *, int, ...);                           \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        const int bits = va_arg(rest, int), ours = inside(-1, path);           \
        va_end(rest);                                                          \
        if (ours && fails("open", 1)) return -1;                               \
        const int file = next(path, flags, bits);                              \
        if (file >= 0 && file < (int)sizeof opened) opened[file] = ours;       \
        return file;                                                           \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                                       \
    int function(int from, const char *path, int flags, ...) {                 \
        NEXT(int, function, int, const char *, int, ...);                      \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        const int bits = va_arg(rest, int), ours = inside(from, path);         \
        va_end(rest);                                                          \
        if (ours && fails("openat", 1)) return -1;                             \
        const int file = next(from, path, flags, bits);                        \
        if (file >= 0 && file < (int)sizeof opened) opened[file] = ours;       \
        return file;                                                           \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t bytes) {
    NEXT(ssize_t, write, int, const void *, size_t);
    if (known(file)) {
        if (fails("write", 1)) return -1;
        if (mode == SHORTEN && bytes > 1 && ++calls == failing) name = "write", bytes /= 2;
    }
    return next(file, data, bytes);
}
int close(int file) {
    NEXT(int, close, int);
    const int ours = known(file);
    if (ours) opened[file] = 0;
    const int result = next(file); /* it is closed, whatever close says */
    return ours && fails("close", 1) ? -1 : result;
}
int fsync(int file) {
    NEXT(int, fsync, int);
    return known(file) && fails("fsync", 1) ? -1 : next(file);
}
int ftruncate64(int file, off64_t size) {
    NEXT(int, ftruncate64, int, off64_t);
    return known(file) && fails("ftruncate", 1) ? -1 : next(file, size);
}
int mkdir(const char *path, mode_t bits) {
    NEXT(int, mkdir, const char *, mode_t);
    return inside(-1, path) && fails("mkdir", 0) ? -1 : next(path, bits);
}
int chmod(const char *path, mode_t bits) {
    NEXT(int, chmod, const char *, mode_t);
    return inside(-1, path) && fails("chmod", 0) ? -1 : next(path, bits);
}
int rename(const char *from, const char *to) {
    NEXT(int, rename, const char *, const char *);
    return inside(-1, to) && fails("rename", 0) ? -1 : next(from, to);
}
int unlink(const char *path) {
    NEXT(int, unlink, const char *);
    return inside(-1, path) && fails("unlink", 0) ? -1 : next(path);
}
int unlinkat(int from, const char *path, int flags) {
    NEXT(int, unlinkat, int, const char *, int);
    return inside(from, path) && fails("unlinkat", 0) ? -1 : next(from, path, flags);
}
int rmdir(const char *path) {
    NEXT(int, rmdir, const char *);
    return inside(-1, path) && fails("rmdir", 0) ? -1 : next(path);
}
