// Compiled with -mavx2 -mfma.
#include "machine.h"
#define CP_WIDTH CP_AVX2_WIDTH
#define CP_ROWS CP_AVX2_ROWS
#define CP_PAIR_ROWS CP_AVX2_PAIR_ROWS
#define CP_QUAD_ROWS CP_AVX2_QUAD_ROWS
#include "between.h"
#include "patches.h"
#include "pointwise.h"

const cp::engine cp::avx2_engine = {run_planes, run_winograd, run_jobs,
                                    run_pointwise, run_depthwise, run_attention};
