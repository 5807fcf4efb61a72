// Compiled with -mavx512f -mavx512vl -mavx512dq -mfma.
#include "machine.h"
#define CP_WIDTH CP_AVX512_WIDTH
#define CP_ROWS CP_AVX512_ROWS
#define CP_PAIR_ROWS CP_AVX512_PAIR_ROWS
#define CP_QUAD_ROWS CP_AVX512_QUAD_ROWS
#include "between.h"
#include "patches.h"
#include "pointwise.h"

const cp::engine cp::avx512_engine = {run_planes, run_winograd, run_jobs,
                                      run_pointwise, run_depthwise, run_attention};
