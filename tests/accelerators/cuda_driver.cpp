/* A stand-in for libcuda that records a launch by cuLaunchKernelEx.
 *
 * CUDA_HEADER: whether cuda.h of a CUDA toolkit is there, whose structs these are. */

#if CUDA_HEADER
#include <cuda.h>
#include <cstddef>
static_assert(sizeof(CUlaunchAttributeID) == 4 && CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION == 6, "");
#else
#include <cstddef>
typedef int CUresult;
typedef void *CUfunction;
struct CUlaunchAttribute {
    int id;
    char pad[4];
    union {
        char pad[64];
        int programmaticStreamSerializationAllowed;
        void *pointer; /* in some of its members, which says how it is aligned */
    } value;
};
struct CUlaunchConfig {
    unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    void *hStream;
    CUlaunchAttribute *attrs;
    unsigned numAttrs;
};
#endif

extern "C" {
size_t layout[] = {sizeof(CUlaunchConfig), offsetof(CUlaunchConfig, gridDimX), offsetof(CUlaunchConfig, blockDimX),
                   offsetof(CUlaunchConfig, sharedMemBytes), offsetof(CUlaunchConfig, hStream),
                   offsetof(CUlaunchConfig, attrs), offsetof(CUlaunchConfig, numAttrs), sizeof(CUlaunchAttribute),
                   offsetof(CUlaunchAttribute, id), offsetof(CUlaunchAttribute, value)};
int launches, status, allowed;
unsigned sizes[7];
size_t function, stream, size;
char task[4096]; /* the first `size` bytes that the kernel's argument points to */

CUresult cuLaunchKernelEx(const CUlaunchConfig *it, CUfunction given, void **arguments, void **extra) {
    if (status) return (CUresult)status;
    launches++;
    const unsigned found[] = {it->gridDimX,  it->gridDimY,  it->gridDimZ,      it->blockDimX,
                              it->blockDimY, it->blockDimZ, it->sharedMemBytes};
    for (int i = 0; i < 7; i++) sizes[i] = found[i];
    function = (size_t)given, stream = (size_t)it->hStream;
    allowed = it->numAttrs == 1 && (int)it->attrs->id == 6 && !extra
                  ? it->attrs->value.programmaticStreamSerializationAllowed : 0;
    for (size_t i = 0; i < size; i++) task[i] = ((const char *)arguments[0])[i];
    return (CUresult)0;
}
}
