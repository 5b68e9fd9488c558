/* The first statement of every kernel. With DEPENDENT (dependent.py) a kernel may begin before the kernels that it
 * depends on have ended. It waits here for their end and their writes, before it reads or writes memory, and then lets
 * the next kernel begin, which does the same. As each kernel waits, the end of one is the end of all before it. */
__device__ inline void await_earlier_kernels() {
#if defined(DEPENDENT) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
