/* The machine behind all four libraries: devices, memory, streams and graphs, in this process.
 *
 * Work is done at once, in the thread that asks for it. On a stream that is being captured it is
 * kept in the graph instead, and nothing is computed, as on a GPU. */

#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace machine {

/* Codes that CUDA's runtime and its driver share. */
enum status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    NO_KERNEL_IMAGE = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_MERGE = 902,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
};

using work = std::function<int()>; /* returns a status */
using graph = std::vector<work>;
enum mode { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 }; /* as cudaStreamCaptureMode */

struct stream;

struct capture {
    graph recorded;
    mode how;
    stream *origin; /* others join it by waiting for its events */
    bool invalidated = false;
};

struct stream {
    int device;
    unsigned flags; /* 1: does not wait for the default stream */
    int priority;
    std::shared_ptr<capture> capturing = nullptr;
    graph branch = {}; /* if it joined a capture: its work, until the origin waits for that */
    size_t before = 0; /* the work of earlier branches of this capture */
};

extern std::recursive_mutex lock;
extern thread_local int device;
int devices();

/* The stream that a handle of CUDA names, 0 the default one; null for another device's, or none's. */
stream *stream_of(void *handle);

/* Does `task`, or keeps it in the graph that `handle`'s stream records. */
int submit(void *handle, work task);

/* For what cannot be captured on this stream: a wait, a question. It ends a capture's usefulness. */
int refuse_while_capturing(stream *s);

/* For what uses the default stream without saying so, as `cudaMemcpy` does. */
int refuse_implicit();

/* For what only a capture in relaxed mode allows elsewhere: allocating, freeing. */
int refuse_unsafe();

/* The end of the memory in which `address` lies, and its device; 0 where that is no device memory. */
size_t end_of_memory(size_t address, int *device = nullptr);

} /* namespace machine */
