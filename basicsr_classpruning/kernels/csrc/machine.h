// Sizes that the code is compiled for; shared by packing and the tile loops.
#pragma once

// AVX2: 16 registers. A single channel's sums use 14 (one holds the weight); four channels leave 3 rows, 2 leave 6.
#define CP_AVX2_WIDTH 8
#define CP_AVX2_ROWS 14
#define CP_AVX2_SINGLE_ROWS 14
#define CP_AVX2_PAIR_ROWS 6
#define CP_AVX2_QUAD_ROWS 3

// AVX-512: 32 registers.
#define CP_AVX512_WIDTH 16
#define CP_AVX512_ROWS 12
#define CP_AVX512_SINGLE_ROWS 12
#define CP_AVX512_PAIR_ROWS 12
#define CP_AVX512_QUAD_ROWS 6
