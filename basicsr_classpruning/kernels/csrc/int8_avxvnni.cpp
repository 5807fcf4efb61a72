// Compiled with -mavx2 -mfma -mavxvnni -ffp-contract=off; with an older compiler without -mavxvnni, and then never used.
#ifdef __AVXVNNI__
#define CP_INT8_DOT 1
#else
#define CP_INT8_DOT 0
#endif
#define CP_INT8_WIDTH 8
#include "int8_tiles.h"

const cp::int8_engine cp::int8_avxvnni_engine = {run_layer, run_jobs, quantize};
#ifdef __AVXVNNI__
const bool cp::int8_avxvnni_compiled = true;
#else
const bool cp::int8_avxvnni_compiled = false;
#endif
