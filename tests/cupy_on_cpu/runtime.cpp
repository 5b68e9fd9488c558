/* libcudart: what CuPy's `cupy_backends.cuda.api.runtime` asks of the CUDA runtime.
 *
 * Stricter than a GPU where that is cheap: new memory is filled with nan, memory that was freed is
 * never given out again and may not be touched, a page behind each allocation may not either, and
 * copies must say truly which side is the device. */

#include "machine.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

namespace machine {

std::recursive_mutex lock;
thread_local int device = 0;

struct allocation {
    size_t size;
    int device;
};
static std::map<size_t, allocation> memory; /* by address */
static std::map<size_t, size_t> pinned;
static std::set<stream *> streams;
static size_t in_use[64];

static size_t setting(const char *name, size_t otherwise) {
    const char *value = getenv(name);
    return value ? strtoull(value, nullptr, 10) : otherwise;
}

int devices() {
    static const int count = (int)setting("CUDA_ON_CPU_DEVICES", 1);
    return count;
}

static size_t total_memory() {
    static const size_t bytes = setting("CUDA_ON_CPU_MEMORY", (size_t)4 << 30);
    return bytes;
}

/* The default stream of each device, which cannot be captured. */
static stream *default_stream() {
    static stream *made[64];
    if (!made[device]) made[device] = new stream{device, 0, 0, nullptr};
    return made[device];
}

stream *stream_of(void *handle) {
    if ((size_t)handle <= 2) return default_stream(); /* 1 and 2: its explicit names */
    auto *s = (stream *)handle;
    return streams.count(s) && s->device == device ? s : nullptr;
}

int submit(void *handle, work task) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    stream *s = stream_of(handle);
    if (!s) return INVALID_HANDLE;
    if (!s->capturing) {
        if (s == default_stream())
            if (int refused = refuse_implicit()) return refused;
        return task();
    }
    if (s->capturing->invalidated) return CAPTURE_INVALIDATED;
    (s->capturing->origin == s ? s->capturing->recorded : s->branch).push_back(std::move(task));
    return SUCCESS;
}

int refuse_while_capturing(stream *s) {
    if (!s->capturing) return SUCCESS;
    if (s->capturing->invalidated) return CAPTURE_INVALIDATED;
    s->capturing->invalidated = true;
    return CAPTURE_UNSUPPORTED;
}

int refuse_implicit() {
    for (stream *s : streams)
        if (s->device == device && s->capturing && !(s->flags & cudaStreamNonBlocking)) {
            s->capturing->invalidated = true;
            return CAPTURE_IMPLICIT;
        }
    return SUCCESS;
}

int refuse_unsafe() {
    for (stream *s : streams)
        if (s->capturing && s->capturing->how != RELAXED) return refuse_while_capturing(s);
    return SUCCESS;
}

size_t end_of_memory(size_t address, int *on) {
    auto next = memory.upper_bound(address);
    if (next == memory.begin()) return 0;
    auto [first, it] = *--next;
    if (address >= first + it.size) return 0;
    if (on) *on = it.device;
    return first + it.size;
}

static bool on_device(const void *address, size_t size) {
    return size == 0 || end_of_memory((size_t)address) >= (size_t)address + size;
}

static int copy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    const bool to_device = on_device(to, size), from_device = on_device(from, size);
    if (kind != cudaMemcpyDefault && kind != cudaMemcpyHostToHost)
        if (to_device != (kind != cudaMemcpyDeviceToHost) ||
            from_device != (kind != cudaMemcpyHostToDevice))
            return INVALID_VALUE;
    memmove(to, from, size);
    return SUCCESS;
}

struct event {
    bool captured = false;
    std::weak_ptr<capture> of; /* if captured: by which, where, and after how much of a branch's work */
    stream *by = nullptr;
    size_t count = 0;
};

/* The origin of a capture waits for a branch's event: only now comes the work before it, as late as a
 * GPU may do it. So the origin's work since the fork is done first, where eager work has the host's order. */
static void join(capture &to, const event &at) {
    graph &branch = at.by->branch;
    const auto end = branch.begin() + (at.count > at.by->before ? at.count - at.by->before : 0);
    to.recorded.insert(to.recorded.end(), branch.begin(), end);
    at.by->before += end - branch.begin();
    branch.erase(branch.begin(), end);
}

} /* namespace machine */

using namespace machine;
#define ENTER std::lock_guard<std::recursive_mutex> hold(lock)
#define FAIL(status) return last = (cudaError_t)(status)
#define TRY(status)                                    \
    do {                                               \
        if (int failed_ = (status)) FAIL(failed_);     \
    } while (0)

static thread_local cudaError_t last = cudaSuccess;

extern "C" {

/* --- errors and versions --- */

const char *cudaGetErrorName(cudaError_t error) {
    switch ((int)error) {
    case INVALID_VALUE: return "cudaErrorInvalidValue";
    case OUT_OF_MEMORY: return "cudaErrorMemoryAllocation";
    case INVALID_DEVICE: return "cudaErrorInvalidDevice";
    case INVALID_HANDLE: return "cudaErrorInvalidResourceHandle";
    case LAUNCH_FAILED: return "cudaErrorLaunchFailure";
    case NOT_SUPPORTED: return "cudaErrorNotSupported";
    case CAPTURE_UNSUPPORTED: return "cudaErrorStreamCaptureUnsupported";
    case CAPTURE_INVALIDATED: return "cudaErrorStreamCaptureInvalidated";
    case CAPTURE_MERGE: return "cudaErrorStreamCaptureMerge";
    case CAPTURE_UNMATCHED: return "cudaErrorStreamCaptureUnmatched";
    case CAPTURE_UNJOINED: return "cudaErrorStreamCaptureUnjoined";
    case CAPTURE_ISOLATION: return "cudaErrorStreamCaptureIsolation";
    case CAPTURE_IMPLICIT: return "cudaErrorStreamCaptureImplicit";
    case CAPTURED_EVENT: return "cudaErrorCapturedEvent";
    default: return error ? "cudaErrorUnknown" : "cudaSuccess";
    }
}

const char *cudaGetErrorString(cudaError_t error) {
    switch ((int)error) {
    case OUT_OF_MEMORY: return "out of memory";
    case CAPTURE_UNSUPPORTED: return "operation not permitted when stream is capturing";
    case CAPTURE_INVALIDATED: return "operation failed due to a previous error during capture";
    case CAPTURE_IMPLICIT: return "operation would make the legacy stream depend on a capturing blocking stream";
    case CAPTURED_EVENT: return "operation not permitted on an event last recorded in a capturing stream";
    case NOT_SUPPORTED: return "the stand-in for CUDA on a CPU does not have it";
    default: return error ? "said by the stand-in for CUDA on a CPU" : "no error";
    }
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
}

cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }

/* --- devices --- */

cudaError_t cudaGetDeviceCount(int *count) { return *count = devices(), cudaSuccess; }
cudaError_t cudaGetDevice(int *id) { return *id = device, cudaSuccess; }

cudaError_t cudaSetDevice(int id) {
    if (id < 0 || id >= devices()) FAIL(INVALID_DEVICE);
    device = id;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    ENTER;
    for (stream *s : streams)
        if (s->device == device) TRY(refuse_while_capturing(s));
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int id) {
    if (id < 0 || id >= devices()) FAIL(INVALID_DEVICE);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    default: *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *of, int id) {
    if (id < 0 || id >= devices()) FAIL(INVALID_DEVICE);
    memset(of, 0, sizeof *of);
    strcpy(of->name, "CUDA on a CPU");
    of->totalGlobalMem = total_memory();
    of->sharedMemPerBlock = of->sharedMemPerBlockOptin = of->sharedMemPerMultiprocessor = 48 << 10;
    of->regsPerBlock = 65536;
    of->warpSize = 32;
    of->maxThreadsPerBlock = of->maxThreadsDim[0] = 1024;
    of->maxThreadsDim[1] = of->maxThreadsDim[2] = 1;
    of->maxGridSize[0] = 0x7fffffff;
    of->maxGridSize[1] = of->maxGridSize[2] = 65535;
    of->major = 9;
    of->multiProcessorCount = 132; /* as on an H100, so that CuPy chooses the same grids */
    of->maxThreadsPerMultiProcessor = 2048;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *to, int size, int id) {
    snprintf(to, size, "0000:%02X:00.0", id);
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { return *can = 0, cudaSuccess; }

/* --- memory --- */

cudaError_t cudaMalloc(void **to, size_t size) {
    ENTER;
    TRY(refuse_unsafe());
    *to = nullptr;
    if (!size) return cudaSuccess;
    if (in_use[device] + size > total_memory()) FAIL(OUT_OF_MEMORY);
    const size_t page = 4096, whole = (size + page - 1) / page * page;
    char *at = (char *)mmap(nullptr, whole + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at, whole, PROT_READ | PROT_WRITE)) FAIL(OUT_OF_MEMORY);
    memset(at, 0xFF, whole);
    at += (whole - size) / 512 * 512; /* its end as near to the page behind as its alignment allows */
    memory[(size_t)at] = {size, device};
    in_use[device] += size;
    *to = at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *given) {
    ENTER;
    TRY(refuse_unsafe());
    if (!given) return cudaSuccess;
    auto it = memory.find((size_t)given);
    if (it == memory.end()) FAIL(INVALID_VALUE);
    const size_t page = 4096, first = it->first / page * page;
    const size_t whole = (it->first + it->second.size + page - 1) / page * page - first;
    mmap((void *)first, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    in_use[it->second.device] -= it->second.size;
    memory.erase(it);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    ENTER;
    *total = total_memory();
    *available = *total - in_use[device];
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **to, size_t size, unsigned) {
    ENTER;
    TRY(refuse_unsafe());
    *to = malloc(size);
    pinned[(size_t)*to] = size;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *given) {
    ENTER;
    TRY(refuse_unsafe());
    pinned.erase((size_t)given);
    free(given);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *of, const void *address) {
    ENTER;
    memset(of, 0, sizeof *of);
    of->device = -2;
    if (end_of_memory((size_t)address, &of->device)) {
        of->type = cudaMemoryTypeDevice;
        of->devicePointer = (void *)address;
        return cudaSuccess;
    }
    auto next = pinned.upper_bound((size_t)address);
    if (next != pinned.begin() && (size_t)address < std::prev(next)->first + std::prev(next)->second) {
        of->type = cudaMemoryTypeHost;
        of->device = device;
        of->devicePointer = of->hostPointer = (void *)address;
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    ENTER;
    TRY(refuse_unsafe());
    TRY(refuse_implicit());
    FAIL(copy(to, from, size, kind));
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind, cudaStream_t s) {
    FAIL(submit(s, [=] { return copy(to, from, size, kind); }));
}

cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t size, cudaStream_t s) {
    return cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, s);
}

cudaError_t cudaMemset(void *to, int value, size_t size) {
    ENTER;
    TRY(refuse_unsafe());
    TRY(refuse_implicit());
    if (!on_device(to, size)) FAIL(INVALID_VALUE);
    memset(to, value, size);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t s) {
    FAIL(submit(s, [=] { return on_device(to, size) ? (memset(to, value, size), SUCCESS) : INVALID_VALUE; }));
}

/* --- streams and events --- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *to, unsigned flags, int priority) {
    ENTER;
    auto *s = new stream{device, flags, priority, nullptr};
    streams.insert(s);
    *to = (cudaStream_t)s;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *to) { return cudaStreamCreateWithPriority(to, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *to, unsigned flags) {
    return cudaStreamCreateWithPriority(to, flags, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    ENTER;
    if (!streams.erase((stream *)handle)) FAIL(INVALID_HANDLE);
    delete (stream *)handle;
    return cudaSuccess;
}

#define STREAM(handle)                      \
    ENTER;                                  \
    stream *s = stream_of(handle);          \
    if (!s) FAIL(INVALID_HANDLE)

cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned *flags) {
    STREAM(handle);
    return *flags = s->flags, cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int *priority) {
    STREAM(handle);
    return *priority = s->priority, cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    STREAM(handle);
    if (s == default_stream()) TRY(refuse_implicit());
    FAIL(refuse_while_capturing(s));
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    STREAM(handle);
    if (s == default_stream()) TRY(refuse_implicit());
    FAIL(refuse_while_capturing(s));
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *given) {
    FAIL(submit(handle, [=] {
        lock.unlock(); /* for Python, whose own lock another thread may hold while it waits for this one */
        function(given);
        lock.lock();
        return SUCCESS;
    }));
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode how) {
    STREAM(handle);
    if (s == default_stream()) FAIL(CAPTURE_UNSUPPORTED);
    if (s->capturing) FAIL(INVALID_VALUE);
    s->capturing = std::make_shared<capture>();
    s->capturing->how = (mode)how;
    s->capturing->origin = s;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *to) {
    STREAM(handle);
    *to = nullptr;
    if (!s->capturing) FAIL(INVALID_VALUE);
    if (s->capturing->origin != s) FAIL(CAPTURE_UNMATCHED);
    auto ended = s->capturing;
    bool joined = true;
    for (stream *other : streams) {
        if (other->capturing != ended) continue;
        joined = joined && other->branch.empty();
        other->capturing = nullptr, other->branch.clear(), other->before = 0;
    }
    if (!joined) FAIL(CAPTURE_UNJOINED);
    if (ended->invalidated) FAIL(CAPTURE_INVALIDATED);
    *to = (cudaGraph_t) new graph(std::move(ended->recorded));
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *is) {
    STREAM(handle);
    if (s == default_stream()) TRY(refuse_implicit());
    *is = !s->capturing                ? cudaStreamCaptureStatusNone
          : s->capturing->invalidated ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *to, unsigned) {
    return *to = (cudaEvent_t) new event, cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *to) { return cudaEventCreateWithFlags(to, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t given) { return delete (event *)given, cudaSuccess; }

cudaError_t cudaEventRecord(cudaEvent_t given, cudaStream_t handle) {
    STREAM(handle);
    if (s == default_stream()) TRY(refuse_implicit());
    *(event *)given = {s->capturing != nullptr, s->capturing, s, s->before + s->branch.size()};
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t given, unsigned) {
    STREAM(handle);
    const event &at = *(event *)given;
    if (!at.captured) FAIL(s->capturing ? CAPTURE_ISOLATION : SUCCESS);
    const auto of = at.of.lock();
    if (!of || s == default_stream()) FAIL(of ? CAPTURE_IMPLICIT : CAPTURED_EVENT);
    if (!s->capturing) s->capturing = of;
    if (s->capturing != of) FAIL(CAPTURE_MERGE);
    if (s == of->origin && at.by != s) join(*of, at);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t given) { FAIL(((event *)given)->captured ? CAPTURED_EVENT : SUCCESS); }
cudaError_t cudaEventSynchronize(cudaEvent_t given) { return cudaEventQuery(given); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { return *ms = 0, cudaSuccess; }

/* --- graphs: one is ready to launch as it was recorded --- */

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *to, cudaGraph_t from, unsigned long long) {
    return *to = (cudaGraphExec_t) new graph(*(graph *)from), cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t given) { return delete (graph *)given, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t given) { return delete (graph *)given, cudaSuccess; }
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t given, cudaStream_t handle) {
    for (const work &task : *(graph *)given) TRY(submit(handle, task));
    return cudaSuccess;
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

} /* extern "C" */
