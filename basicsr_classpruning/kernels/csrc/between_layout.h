// Calls of what lies between the layers of a block: depthwise 3 x 3 convolutions and window attention.
#pragma once
#include "layout.h"

// y = activation(depthwise(x)), or with a gate activation(the product of the two halves of depthwise(x)'s channels). The
// kernel is 3 x 3, strides and dilations are 1, zeros are outside the picture. All planes are contiguous.
struct cp_depthwise_call {
  const float* x;       // (batch, channels, height, width); with a gate, 2 * channels
  float* y;             // (batch, channels, height, width)
  const float* weight;  // (channels of x, 3, 3)
  const float* bias;    // (channels of x) or null
  float* means;         // of each plane of y: (batch, channels), or null
  const float* slope;   // as in cp_call
  int64_t batch, channels, height, width;
  int32_t gate, activation, isa, threads;
};

// Attention among the pixels of each window of a picture that is rolled by `shift` up and to the left, and back again:
// softmax(scale * q k^T + bias) v for each head. Pixels that the roll has brought together from opposite borders do not
// attend to each other (their bias is lowered by 100). Planes are contiguous; window divides height and width, 16 divides
// window * window.
struct cp_attention_call {
  const float* x;     // (batch, 3 * channels, height, width): q, k, v, each of them head by head
  float* y;           // (batch, channels, height, width)
  const float* bias;  // (heads, key, query)
  int64_t batch, channels, heads, height, width, window, shift;
  float scale;
  int32_t isa, threads;
};

extern "C" {
// Both return a cp_status.
CP_EXPORT int32_t cp_run_depthwise(const cp_depthwise_call* call);
CP_EXPORT int32_t cp_run_attention(const cp_attention_call* call);
}
