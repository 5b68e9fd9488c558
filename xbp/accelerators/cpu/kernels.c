/* The kernels, in single and in double precision. */
#include <math.h>
#include "kernels.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "arrays.h"

static pthread_key_t scratch; /* frees a thread's workspace when the thread ends */

__attribute__((constructor)) static void make_key(void) { pthread_key_create(&scratch, free); }

/* A thread's workspace, kept between calls: fresh pages would cost as much as the arithmetic. */
static void *take_scratch(long bytes) {
    static _Thread_local struct { void *memory; long bytes; } mine;
    if (bytes > mine.bytes) {
        free(mine.memory);
        mine.memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
        mine.bytes = mine.memory ? bytes : 0;
        pthread_setspecific(scratch, mine.memory);
    }
    return mine.memory;
}

#define real float
#define whole int32_t
#define NAME(name) name##_float32
#define EXP expf
#define LOG logf
#define SQRT sqrtf
#include "lanes.h"
#include "correlate.h"
#include "winograd.h"
#include "convolution.h"
#include "pooling.h"
#include "elementwise.h"
#include "updates.h"
#include "product.h"
#include "affine.h"
#include "special.h"
#include "dense.h"
#include "normalization.h"
#include "rows.h"
#include "recurrence.h"
#undef real
#undef whole
#undef NAME
#undef EXP
#undef LOG
#undef SQRT
#undef LOOP

#define real double
#define whole int64_t
#define NAME(name) name##_float64
#define EXP exp
#define LOG log
#define SQRT sqrt
#include "lanes.h"
#include "correlate.h"
#include "winograd.h"
#include "convolution.h"
#include "pooling.h"
#include "elementwise.h"
#include "updates.h"
#include "product.h"
#include "affine.h"
#include "special.h"
#include "dense.h"
#include "normalization.h"
#include "rows.h"
#include "recurrence.h"

const unsigned xbp_digest = DIGEST; /* of this build's sources */

int xbp_lanes(int bytes) { return VECTOR_BYTES / bytes; }
