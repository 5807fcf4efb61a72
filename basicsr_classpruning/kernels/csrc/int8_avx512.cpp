// Compiled with the flags of engine_avx512.cpp, -mavx512bw -mavx512vnni -ffp-contract=off.
#define CP_INT8_DOT 1
#define CP_INT8_WIDTH 16
#include "int8_tiles.h"

const cp::int8_engine cp::int8_avx512_engine = {run_layer, run_jobs, quantize};
