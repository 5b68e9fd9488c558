/* malloc and free for a build of the kernels that detects errors (see tests/guards.py): memory full of
 * nan, at the end of a page, between guard pages. An access to the next page, or a write to the previous
 * one, ends the process. */
#include <string.h>
#include <sys/mman.h>
#undef malloc
#undef aligned_alloc
#undef free
#include <stdlib.h>

enum { PAGE = 4096 };

void *guarded_aligned_alloc(size_t alignment, size_t size) {
    const size_t used = (size + alignment - 1) / alignment * alignment;
    const size_t whole = (used + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
    char *block = aligned_alloc(PAGE, whole);
    if (!block) return NULL;
    memcpy(block, &whole, sizeof whole);
    memset(block + PAGE, 0xff, whole - 2 * PAGE);
    mprotect(block, PAGE, PROT_READ);
    mprotect(block + whole - PAGE, PAGE, PROT_NONE);
    return block + whole - PAGE - used;
}

void *guarded_malloc(size_t size) { return guarded_aligned_alloc(16, size ? size : 1); }

void guarded_free(void *memory) {
    if (!memory) return;
    char *block = (char *)((size_t)memory / PAGE * PAGE) - PAGE;
    size_t whole;
    memcpy(&whole, block, sizeof whole);
    mprotect(block, PAGE, PROT_READ | PROT_WRITE);
    mprotect(block + whole - PAGE, PAGE, PROT_READ | PROT_WRITE);
    free(block);
}
