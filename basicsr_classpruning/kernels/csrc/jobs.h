// Which rectangles of an output take which weights: one list for all layers of a network, in cells, which have as many
// pixels as a layer has at its place in the network.
#pragma once
#include <cstdint>

union word;

constexpr int32_t CP_NOTHING = -1;  // nothing is computed: the sums are zero, without a bias
constexpr int cp_most_weights = 32;

struct cp_job {
  int32_t y, x, rows, columns;  // in cells, or parts of them
  int32_t weight;               // its place among the call's weights, or CP_NOTHING
};

struct cp_weight {
  const word* packed;
  const float* bias;   // (out_channels) or null
  const float* scale;  // (out_channels), of 8-bit integers only
};

// The jobs of a call; a call with none computes its whole output with one weight.
struct cp_jobs {
  const cp_job* list;
  int64_t count;
  const cp_weight* weights;
  int32_t weight_count;
  int32_t cell;  // pixels of a cell's side in the output, before a pixel shuffle
};
