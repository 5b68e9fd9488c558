/* An allocator for the kernels that counts its blocks, and refuses the n-th one from now on. */
#include <stdatomic.h>
#include <stdlib.h>

static atomic_long blocks, asked, refusing;
static atomic_int refused;

static int refuses(void) {
    if (!refusing || atomic_fetch_add(&asked, 1) + 1 != refusing) return 0;
    return refused = 1;
}
static void *counted(void *memory) {
    if (memory) atomic_fetch_add(&blocks, 1);
    return memory;
}

void *counted_malloc(size_t bytes) { return refuses() ? NULL : counted(malloc(bytes)); }
void *counted_aligned_alloc(size_t alignment, size_t bytes) {
    return refuses() ? NULL : counted(aligned_alloc(alignment, bytes));
}
void counted_free(void *memory) {
    if (memory) atomic_fetch_sub(&blocks, 1);
    free(memory);
}

void memory_refuse(long n) { asked = 0, refused = 0, refusing = n; } /* 0: none */
int memory_refused(void) { return refused; }
long memory_blocks(void) { return blocks; }
