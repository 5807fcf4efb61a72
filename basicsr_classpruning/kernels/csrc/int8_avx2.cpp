// Compiled with -mavx2 -mfma -ffp-contract=off.
#define CP_INT8_DOT 0
#define CP_INT8_WIDTH 8
#include "int8_tiles.h"

const cp::int8_engine cp::int8_avx2_engine = {run_layer, run_jobs, quantize};
