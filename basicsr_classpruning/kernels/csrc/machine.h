// Sizes that the code is compiled for; shared by packing and the tile loops.
#pragma once

// AVX2: 16 registers. A single channel's sums use 12 (three hold weights, one the input); pairs 6 rows, quads 3.
#define CP_AVX2_WIDTH 8
#define CP_AVX2_ROWS 12
#define CP_AVX2_PAIR_ROWS 6
#define CP_AVX2_QUAD_ROWS 3

// AVX-512: 32 registers.
#define CP_AVX512_WIDTH 16
#define CP_AVX512_ROWS 12
#define CP_AVX512_PAIR_ROWS 12
#define CP_AVX512_QUAD_ROWS 6
