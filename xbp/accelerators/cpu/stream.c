/* Copies that bypass the caches, into memory that another core reads next. A plain store would first wait
 * until that core has given up its copy of the line. */
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define LINE 64

static void stream_lines(char *to, const char *from, int64_t bytes) {
#ifdef __SSE2__
    for (int64_t i = 0; i < bytes; i += LINE)
        for (int64_t j = i; j < i + LINE; j += 16)
            _mm_stream_si128((__m128i *)(to + j), _mm_loadu_si128((const __m128i *)(from + j)));
#else
    memcpy(to, from, bytes);
#endif
}

/* Copy `count` blocks of memory to `to`, one after the other. */
void xbp_stream(char *to, const char *const *from, const int64_t *bytes, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        const int64_t before = -(uintptr_t)to % LINE, head = before < bytes[k] ? before : bytes[k];
        const int64_t lines = (bytes[k] - head) / LINE * LINE;
        memcpy(to, from[k], head);
        stream_lines(to + head, from[k] + head, lines);
        memcpy(to + head + lines, from[k] + head + lines, bytes[k] - head - lines);
        to += bytes[k];
    }
#ifdef __SSE2__
    _mm_sfence(); /* streamed lines are in memory before what is written next */
#endif
}
