/* libcuda and libnvrtc: kernels are compiled by `nvrtc.py`, loaded as shared libraries, launched by
 * the emulation.
 *
 * What NVRTC hands out as machine code is the text "on-cpu", a length, and a shared library. */

#include "machine.h"

#include <cuda.h>
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

using namespace machine;

struct image {
    char magic[8];
    size_t size;
};
static const char MAGIC[8] = "on-cpu\0";

struct loaded {
    void *library;
    int device;
};

struct function {
    std::shared_ptr<loaded> of;
    int (*run)(void **arguments, const unsigned *blocks, const unsigned *threads, int order);
    std::vector<size_t> sizes; /* of its parameters, in bytes */
};

struct module { /* what a CUmodule is */
    std::shared_ptr<loaded> it;
};

static int order() {
    const char *value = getenv("CUDA_ON_CPU_ORDER");
    return value ? atoi(value) : 0;
}

extern "C" {

CUresult cuGetErrorName(CUresult error, const char **to) {
    switch ((int)error) {
    case INVALID_HANDLE: *to = "CUDA_ERROR_INVALID_HANDLE"; break;
    case NOT_FOUND: *to = "CUDA_ERROR_NOT_FOUND"; break;
    case NO_KERNEL_IMAGE: *to = "CUDA_ERROR_NO_BINARY_FOR_GPU"; break;
    case LAUNCH_FAILED: *to = "CUDA_ERROR_LAUNCH_FAILED"; break;
    case CAPTURE_UNSUPPORTED: *to = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
    case CAPTURE_IMPLICIT: *to = "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"; break;
    case CAPTURE_INVALIDATED: *to = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
    default: *to = "CUDA_ERROR";
    }
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **to) {
    *to = (int)error == LAUNCH_FAILED ? "the threads of a block wait at different barriers, or are too many"
                                      : "said by the stand-in for CUDA on a CPU";
    return CUDA_SUCCESS;
}

/* --- contexts: one a device, named by its number and one --- */

CUresult cuCtxGetCurrent(CUcontext *to) { return *to = (CUcontext)(size_t)(device + 1), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext given) { return device = given ? (int)(size_t)given - 1 : 0, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *to) { return *to = device, CUDA_SUCCESS; }
CUresult cuStreamGetCtx(CUstream s, CUcontext *to) {
    return *to = (CUcontext)(size_t)((size_t)s > 2 ? ((stream *)s)->device + 1 : device + 1), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }

/* --- modules --- */

CUresult cuModuleLoadData(CUmodule *to, const void *given) {
    const auto *it = (const image *)given;
    if (memcmp(it->magic, MAGIC, sizeof MAGIC)) return (CUresult)NO_KERNEL_IMAGE;
    char path[] = "/tmp/cuda-on-cpu-XXXXXX"; /* a new name each time: by its name a library is known */
    const int file = mkstemp(path);
    const bool written = file >= 0 && write(file, it + 1, it->size) == (ssize_t)it->size;
    void *library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) fprintf(stderr, "%s\n", dlerror());
    close(file);
    unlink(path);
    if (!library) return (CUresult)NO_KERNEL_IMAGE;
    auto kept = std::make_shared<loaded>(loaded{library, device});
    *to = (CUmodule) new module{kept};
    return CUDA_SUCCESS;
}

/* What a graph still launches after this is refused, where a GPU does anything. */
CUresult cuModuleUnload(CUmodule given) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    auto *it = (module *)given;
    it->it->library = nullptr;
    delete it;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *to, CUmodule given, const char *name) {
    auto &it = ((module *)given)->it;
    const std::string known = std::string("emulated_") + name;
    auto *made = new function{it, nullptr, {}};
    *(void **)&made->run = dlsym(it->library, known.c_str());
    auto sizes = (const size_t *(*)())dlsym(it->library, (known + "_sizes").c_str());
    if (!made->run || !sizes) return delete made, (CUresult)NOT_FOUND;
    for (const size_t *size = sizes(); *size; size++) made->sizes.push_back(*size);
    *to = (CUfunction)made;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *to, CUfunction_attribute attribute, CUfunction) {
    *to = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction given, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z,
                        unsigned threads_x, unsigned threads_y, unsigned threads_z, unsigned shared,
                        CUstream s, void **arguments, void **) {
    auto *f = (function *)given;
    if (f->of->device != device) return (CUresult)INVALID_HANDLE;
    const size_t blocks = (size_t)blocks_x * blocks_y * blocks_z, threads = (size_t)threads_x * threads_y * threads_z;
    if (!blocks || !threads || threads > 1024 || shared > 48 << 10) return (CUresult)INVALID_VALUE;
    std::vector<std::vector<char>> copies; /* by value, as they are now */
    for (size_t i = 0; i < f->sizes.size(); i++)
        copies.emplace_back((char *)arguments[i], (char *)arguments[i] + f->sizes[i]);
    return (CUresult)submit(s, [=, run = f->run, of = f->of]() mutable -> int {
        if (!of->library) return INVALID_HANDLE;
        std::vector<void *> places;
        for (auto &copy : copies) places.push_back(copy.data());
        const unsigned grid[] = {blocks_x, blocks_y, blocks_z}, block[] = {threads_x, threads_y, threads_z};
        return run(places.data(), grid, block, order()) ? LAUNCH_FAILED : SUCCESS;
    });
}

/* A launch that may begin before the work before it has ended, which here it never does. */
CUresult cuLaunchKernelEx(const CUlaunchConfig *it, CUfunction given, void **arguments, void **extra) {
    for (unsigned i = 0; i < it->numAttrs; i++)
        if (it->attrs[i].id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION ||
            it->attrs[i].value.programmaticStreamSerializationAllowed != 1)
            return (CUresult)INVALID_VALUE;
    return cuLaunchKernel(given, it->gridDimX, it->gridDimY, it->gridDimZ, it->blockDimX, it->blockDimY,
                          it->blockDimZ, it->sharedMemBytes, it->hStream, arguments, extra);
}

/* --- NVRTC --- */

typedef struct program {
    std::string source, log, compiled;
    std::vector<std::string> expressions, names;
} *nvrtcProgram;
enum { COMPILATION = 6 };

const char *nvrtcGetErrorString(int error) {
    return error == COMPILATION ? "NVRTC_ERROR_COMPILATION" : error ? "NVRTC_ERROR" : "NVRTC_SUCCESS";
}
int nvrtcVersion(int *major, int *minor) { return *major = CUDA_VERSION / 1000, *minor = CUDA_VERSION % 1000 / 10, 0; }
int nvrtcGetNumSupportedArchs(int *to) { return *to = 1, 0; }
int nvrtcGetSupportedArchs(int *to) { return *to = 90, 0; }

int nvrtcCreateProgram(nvrtcProgram *to, const char *source, const char *, int headers, const char **, const char **) {
    if (headers) return NOT_SUPPORTED;
    *to = new program{source, "", "", {}, {}};
    return 0;
}
int nvrtcDestroyProgram(nvrtcProgram *given) { return delete *given, *given = nullptr, 0; }

static std::string contents(const std::string &path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

int nvrtcCompileProgram(nvrtcProgram it, int count, const char **options) {
    if (it->source.empty()) return 0;
    char folder[] = "/tmp/cuda-on-cpu-XXXXXX";
    if (!mkdtemp(folder)) return COMPILATION;
    const std::string in = folder;
    std::ofstream(in + "/kernels.cu") << it->source;
    std::ofstream expressions(in + "/expressions");
    for (auto &expression : it->expressions) expressions << expression << "\n";
    expressions.close();
    std::vector<std::string> words = {PYTHON, "-S", COMPILER, in};
    words.insert(words.end(), options, options + count);
    std::vector<char *> command;
    for (auto &word : words) command.push_back(word.data());
    command.push_back(nullptr);
    const pid_t child = fork();
    if (!child) {
        execv(command[0], command.data());
        _exit(127);
    }
    int status = -1;
    waitpid(child, &status, 0);
    it->log = contents(in + "/log");
    it->compiled = contents(in + "/kernels.so");
    for (const char *name : {"/kernels.cu", "/kernels.so", "/expressions", "/log"}) unlink((in + name).c_str());
    rmdir(folder);
    return status ? COMPILATION : 0;
}

int nvrtcGetCUBINSize(nvrtcProgram it, size_t *to) { return *to = sizeof(image) + it->compiled.size(), 0; }
int nvrtcGetCUBIN(nvrtcProgram it, char *to) {
    image head = {{}, it->compiled.size()};
    memcpy(head.magic, MAGIC, sizeof MAGIC);
    memcpy(to, &head, sizeof head);
    memcpy(to + sizeof head, it->compiled.data(), it->compiled.size());
    return 0;
}
/* PTX is asked for once, of an empty program, to tell compilers apart. */
int nvrtcGetPTXSize(nvrtcProgram, size_t *to) { return *to = sizeof "// " DIGEST, 0; }
int nvrtcGetPTX(nvrtcProgram, char *to) { return strcpy(to, "// " DIGEST), 0; }
int nvrtcAddNameExpression(nvrtcProgram it, const char *expression) {
    it->names.push_back("expression_" + std::to_string(it->expressions.size()));
    return it->expressions.push_back(expression), 0;
}
int nvrtcGetLoweredName(nvrtcProgram it, const char *expression, const char **to) {
    for (size_t i = 0; i < it->names.size(); i++)
        if (it->expressions[i] == expression) return *to = it->names[i].c_str(), 0;
    return NOT_FOUND;
}

int nvrtcGetProgramLogSize(nvrtcProgram it, size_t *to) { return *to = it->log.size() + 1, 0; }
int nvrtcGetProgramLog(nvrtcProgram it, char *to) { return memcpy(to, it->log.c_str(), it->log.size() + 1), 0; }

} /* extern "C" */
