/* What each kernel of CuPy includes. */

#define FORGIVING 1 /* in its cumulative sums, threads without an entry miss the barriers */
#include "device.h"

#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
