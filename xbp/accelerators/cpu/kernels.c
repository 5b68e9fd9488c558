/* The kernels, in single and in double precision. */
#include <math.h>
#include "kernels.h"
#include <stdlib.h>
#include <string.h>
#include "arrays.h"
#include "fetch.h"

#define real float
#define REAL_BYTES 4
#define whole int32_t
#define NAME(name) name##_float32
#define SQRT sqrtf
#include "lanes.h"
#include "correlate.h"
#include "winograd.h"
#include "tiles.h"
#include "winograd_weight.h"
#include "convolution.h"
#include "gradients.h"
#include "backward_in_tiles.h"
#include "convolution_backward.h"
#include "columns.h"
#include "positions.h"
#include "positions_weight.h"
#include "positions_backward.h"
#include "pooling.h"
#include "elementwise.h"
#include "updates.h"
#include "product.h"
#include "affine.h"
#include "special.h"
#include "dense.h"
#include "normalization.h"
#include "rows.h"
#include "cross_entropy.h"
#include "blocked.h"
#include "recurrence.h"
#include "attention.h"
#include "embedding.h"
#include "replay.h"
#undef real
#undef REAL_BYTES
#undef whole
#undef NAME
#undef SQRT
#undef LOOP

#define real double
#define REAL_BYTES 8
#define whole int64_t
#define NAME(name) name##_float64
#define SQRT sqrt
#include "lanes.h"
#include "correlate.h"
#include "winograd.h"
#include "tiles.h"
#include "winograd_weight.h"
#include "convolution.h"
#include "gradients.h"
#include "backward_in_tiles.h"
#include "convolution_backward.h"
#include "columns.h"
#include "positions.h"
#include "positions_weight.h"
#include "positions_backward.h"
#include "pooling.h"
#include "elementwise.h"
#include "updates.h"
#include "product.h"
#include "affine.h"
#include "special.h"
#include "dense.h"
#include "normalization.h"
#include "rows.h"
#include "cross_entropy.h"
#include "blocked.h"
#include "recurrence.h"
#include "attention.h"
#include "embedding.h"
#include "replay.h"

const unsigned xbp_digest = DIGEST; /* of this build's sources */

int xbp_lanes(int bytes) { return VECTOR_BYTES / bytes; }
