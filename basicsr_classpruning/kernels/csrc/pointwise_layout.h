// A call of a layer without taps and what stands around it.
#pragma once
#include "layout.h"

enum cp_layout { CP_PLANES = 0, CP_TOKENS = 1 };

// y = activation(layer(p) [+ residual]) [+ residual], where p is x, each picture's channels times `scale`, then each
// pixel's channels normalised. With a gate, layer(p) is the product of the output channels' two halves, which were packed
// in turns: the first of each, the second of each, ...
//
// CP_PLANES: x is (batch, in_channels, pixels), pixels side by side, y (batch, out_channels, pixels), contiguous.
// CP_TOKENS: x is (batch, pixels, in_channels), channels side by side, y (batch, pixels, out_channels), contiguous.
struct cp_pointwise_call {
  const word* packed;
  const float* x;
  float* y;
  const float* bias;      // one value for each output channel before the gate, or null
  const float* residual;  // laid out as y, or null
  const float* slope;     // as in cp_call
  const float* scale;     // (batch, in_channels) or null
  int64_t batch, pixels, in_channels, out_channels;  // out_channels: of y
  int64_t x_stride_n, x_stride;                      // x_stride: between channels (CP_PLANES) or pixels (CP_TOKENS)
  int32_t layout, activation, order, gate, threads;
  float eps;  // added to the variance; negative: no normalisation
};

extern "C" {
// As cp_pack, for a kernel of 1 x 1 with strides of 1, no padding and any number of zeros; at most 64 + 2 * weights + 2 *
// out * in words.
CP_EXPORT int64_t cp_pack_pointwise(const float* weight, const cp_geometry* geometry, int32_t isa, word* packed);
// `packed`: by cp_pack or cp_pack_pointwise. Returns a cp_status.
CP_EXPORT int32_t cp_run_pointwise(const cp_pointwise_call* call);
}

namespace cp {

// Lists, which are read faster than the classes of cp_pack where there are few pixels: weights are then most of what is
// read.
constexpr int pointwise_rows = 12;  // most vectors of pixels of a tile

struct pointwise_header {
  int32_t magic, isa;
  cp_geometry geometry;
  int32_t rows;   // vectors of pixels of a tile
  int32_t chunk;  // input channels copied at a time
};
constexpr int32_t pointwise_magic = 0x4e4d5031;
constexpr int pointwise_words = 16;
static_assert(sizeof(pointwise_header) <= pointwise_words * sizeof(word), "the header has room for its fields");
// After the header: for each chunk, for each job: how many output channels (1 or 4), how many entries, then the entries.
// One channel: all weights, then the channels of the chunk that they belong to, a byte each, so that little memory is
// read. Four: byte offset into the tile buffer, four weights. Output channels come in order.
constexpr int most_chunk = 256;
inline int64_t index_words(int64_t entries) { return (entries + 3) / 4; }

}  // namespace cp
