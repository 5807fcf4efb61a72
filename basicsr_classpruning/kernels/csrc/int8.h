// Layers of 8-bit integers: the C interface, and how a packed weight and the tile buffers are laid out.
//
// Activations are unsigned bytes, channels in fours: (batch, ceil(channels / 4), height, width, 4). Four neighbouring
// channels of a pixel, a unit, are one 32-bit lane; a weight's unit is four signed bytes. What is computed, bit for bit,
// stands in sparsity/int8.py.
#pragma once
#include "layout.h"

enum cp_int8_isa { CP_INT8_AVX2 = 0, CP_INT8_AVXVNNI = 1, CP_INT8_AVX512VNNI = 2 };

// s = scale * sum(w (x - x_zero)) [+ bias] [* factor]; y = activation(s [+ residual]) [+ residual], or, with a pixel
// shuffle by r, y = shuffle(activation(s)) [+ residual]; q = clamp(round(y * q_inverse_scale) + q_zero, 0, 255).
struct cp_int8_call {
  const word* packed;
  const uint8_t* x;       // (batch, ceil(in_channels / 4), height, width, 4)
  float* y;               // (batch, out_channels, out_height, out_width), shuffled; or null
  uint8_t* q;             // (batch, ceil(out_channels / 4), out_height, out_width, 4), shuffled; or null
  const float* scale;     // (out_channels)
  const float* bias;      // (out_channels) or null
  const float* factor;    // (out_channels) or null
  const float* residual;  // laid out as y, or null
  const float* slope;     // CP_PRELU: (out_channels); CP_LEAKY: one value; otherwise null
  int64_t batch, in_channels, height, width;
  int64_t out_channels, out_height, out_width;
  float q_inverse_scale;
  int32_t q_zero, x_zero;
  int32_t activation;  // cp_activation, not CP_GELU
  int32_t order;       // cp_residual
  int32_t shuffle;     // 1: none
  int32_t threads;
  const cp_jobs* jobs;  // as of cp_call; `packed`, `scale` and `bias` are then not read
};

// Floats with any strides to activations; channels that fill the last unit become the zero point.
struct cp_int8_quantize_call {
  const float* x;
  uint8_t* q;
  int64_t batch, channels, height, width;
  int64_t x_stride_n, x_stride_c, x_stride_h, x_stride_w;
  float inverse_scale;
  int32_t zero;
  int32_t isa;  // cp_int8_isa
  int32_t threads;
};

extern "C" {
CP_EXPORT int32_t cp_int8_supported(int32_t isa);
// Packs integers (out, in, kernel_h, kernel_w), contiguous, from -127 to 127. Returns the number of words; writes them
// where `packed` is not null. Units of zeros are dropped.
CP_EXPORT int64_t cp_int8_pack(const int8_t* weight, const cp_geometry* geometry, int32_t isa, word* packed);
// Both return a cp_status.
CP_EXPORT int32_t cp_int8_run(const cp_int8_call* call);
CP_EXPORT int32_t cp_int8_quantize(const cp_int8_quantize_call* call);
}

namespace cp {

// The output is cut into tiles as in layout.h, one vector of pixels wide. Of each chunk of input units one copy for each
// kernel column is made in the tile buffer, shifted, so that every load is aligned, padded with the zero point:
//     [unit of the chunk][kernel column][row phase][row][vector]
//
// Jobs are `group` neighbouring output channels. Their units are classed by which of the group's weights are not zero,
// so that what is loaded serves all of them; each class has its own loop.
struct int8_header {
  int32_t magic, isa;
  cp_geometry geometry;
  int32_t group;
  int32_t chunk;       // input units copied at a time
  int32_t plane_rows;  // rows of one phase in the buffer
  int32_t phases;
};
constexpr int32_t int8_magic = 0x4e4d4938;
constexpr int int8_header_words = sizeof(int8_header) / sizeof(word);
// After the header: the sum of the weights of each output channel, which the input's zero point is multiplied by. Then
// for each chunk, for each job: a count for each class, then for each class its entries (byte offset into the tile
// buffer, the units that are not zero). With AVX2 `group` is 1 and there are two classes: entries as above, and twins
// (two offsets, two units), whose products are added in 16 bits.

constexpr int int8_tile_rows = 12;
inline int int8_classes(int isa, int group) { return isa == CP_INT8_AVX2 ? 2 : (1 << group) - 1; }
inline int int8_width(int isa) { return isa == CP_INT8_AVX512VNNI ? 16 : 8; }
// Whether tiles of at most half a vector's width are computed two in one, the lower half of their rows beside the upper.
inline bool int8_halves(const cp_int8_call& c, const cp_geometry& g) {
  return c.shuffle == 1 && g.stride_h == 1 && g.stride_w == 1;
}
inline int64_t int8_units(int64_t channels) { return (channels + 3) / 4; }

// `vpmaddubsw` adds two products of an unsigned and a signed byte in 16 bits: exactly, if the two weights' magnitudes
// sum to at most this (255 * 128 < 2^15).
constexpr int int8_most_pair = 128;

struct int8_engine {
  int (*run)(const cp_int8_call&);
  int (*jobs)(const cp_int8_call&, const part*, const ticket*, long tickets);
  int (*quantize)(const cp_int8_quantize_call&);
};
extern const int8_engine int8_avx2_engine, int8_avxvnni_engine, int8_avx512_engine;
// Whether the compiler knew the instructions.
extern const bool int8_avxvnni_compiled;

}  // namespace cp
