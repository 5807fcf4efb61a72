// The code of the AVX-512 engine, each vector in two AVX2 registers: slow, but it runs the same logic on processors
// without AVX-512. Compiled with -mavx2 -mfma.
#include "machine.h"
#define CP_WIDTH CP_AVX512_WIDTH
#define CP_ROWS CP_AVX512_ROWS
#define CP_PAIR_ROWS CP_AVX512_PAIR_ROWS
#define CP_QUAD_ROWS CP_AVX512_QUAD_ROWS
#include "between.h"
#include "patches.h"
#include "pointwise.h"

const cp::engine cp::wide_engine = {run_planes, run_winograd, run_jobs,
                                    run_pointwise, run_depthwise, run_attention};
