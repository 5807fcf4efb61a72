// What follows the sums: bias, residual, activation, and the store into the output.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "micro.h"

namespace {

inline void start_with_bias(vec* sums, const float* bias, int channels, int rows) {
  for (int o = 0; o < channels; o++) {
    const vec b = broadcast(bias ? bias[o] : 0.f);
    for (int r = 0; r < rows; r++) sums[o * CP_ROWS + r] = b;
  }
}

// A rational approximation of erf on [-4, 4], outside of which erf is 1 to float precision: x P(x^2) / Q(x^2), the
// coefficients widely used for single precision (Eigen, XNNPACK); within 4e-7 of erf.
inline vec erf(vec x) {
  const vec limit = broadcast(4.f);
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const vec s = x * x;
  vec p = broadcast(-2.72614225801306e-10f);
  p = p * s + 2.77068142495902e-08f;
  p = p * s + -2.10102402082508e-06f;
  p = p * s + -5.69250639462346e-05f;
  p = p * s + -7.34990630326855e-04f;
  p = p * s + -2.95459980854025e-03f;
  p = p * s + -1.60960333262415e-02f;
  vec q = broadcast(-1.45660718464996e-05f);
  q = q * s + -2.13374055278905e-04f;
  q = q * s + -1.68282697438203e-03f;
  q = q * s + -7.37332916720468e-03f;
  q = q * s + -1.42647390514189e-02f;
  return x * p / q;
}

// NaN stays NaN, as in torch.
template <int ACTIVATION>
inline __attribute__((always_inline)) vec activate(vec x, vec slope) {
  if constexpr (ACTIVATION == CP_RELU) return x < 0.f ? vec{} : x;
  if constexpr (ACTIVATION == CP_LEAKY || ACTIVATION == CP_PRELU) return x < 0.f ? x * slope : x;
  if constexpr (ACTIVATION == CP_GELU) return x * 0.5f * (1.f + erf(x * 0.70710678118654752f));
  return x;
}

template <int ACTIVATION>
inline __attribute__((always_inline)) vec finish(vec x, vec residual, vec slope, int order) {
  if (order == CP_BEFORE_ACTIVATION) x += residual;
  x = activate<ACTIVATION>(x, slope);
  if (order == CP_AFTER_ACTIVATION) x += residual;
  return x;
}

inline vec load_some(const float* p, int count) {
  if (count == CP_WIDTH) return *reinterpret_cast<const unaligned_vec*>(p);
#if CP_WIDTH == 16 && defined(__AVX512F__)
  return reinterpret_cast<vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
#else
  alignas(sizeof(vec)) float all[CP_WIDTH] = {};
  std::memcpy(all, p, count * sizeof(float));
  return *reinterpret_cast<const vec*>(all);
#endif
}

inline void store_some(float* p, vec x, int count) {
  if (count == CP_WIDTH) {
    *reinterpret_cast<unaligned_vec*>(p) = x;
    return;
  }
#if CP_WIDTH == 16 && defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(x));
#else
  alignas(sizeof(vec)) float all[CP_WIDTH];
  *reinterpret_cast<vec*>(all) = x;
  std::memcpy(p, all, count * sizeof(float));
#endif
}

// A tile in the output's planes, before a shuffle.
struct place {
  long image, y0, x0;
  int rows, columns;
};

// Stores a tile of one channel, its first value at `start`.
template <int ACTIVATION>
void store_plane(const vec* sums, const place& at, long start, const cp_call& e, vec slope) {
  if (at.columns == CP_WIDTH && !e.order) {
    for (int r = 0; r < at.rows; r++)
      *reinterpret_cast<unaligned_vec*>(e.y + start + r * e.out_width) = activate<ACTIVATION>(sums[r], slope);
    return;
  }
  for (int r = 0; r < at.rows; r++) {
    const long i = start + r * e.out_width;
    const vec residual = e.order ? load_some(e.residual + i, at.columns) : vec{};
    store_some(e.y + i, finish<ACTIVATION>(sums[r], residual, slope, e.order), at.columns);
  }
}

inline vec slope_of(const cp_call& e, int o) {
  if (!e.slope) return vec{};
  return broadcast(e.slope[e.activation == CP_PRELU ? o : 0]);
}

// Stores a tile of some output channels, from `first` on.
template <int ACTIVATION>
void store_planes(const vec* sums, const place& at, int first, int channels, const cp_call& e) {
  const long plane = e.out_height * e.out_width;
  long start = (at.image * e.out_channels + first) * plane + at.y0 * e.out_width + at.x0;
  for (int o = first; o < first + channels; o++, sums += CP_ROWS, start += plane)
    store_plane<ACTIVATION>(sums, at, start, e, slope_of(e, o));
}

// The values of r vectors in turns: line[0][0], line[1][0], …, line[0][1], …
inline void interleave(vec (&line)[2]) {
  typedef int32_t lanes __attribute__((vector_size(CP_WIDTH * 4)));
  lanes low{}, high{};
#pragma GCC unroll 16
  for (int l = 0; l < CP_WIDTH; l++) {
    low[l] = l / 2 + (l & 1) * CP_WIDTH;
    high[l] = low[l] + CP_WIDTH / 2;
  }
  const vec first = line[0];
  line[0] = __builtin_shuffle(first, line[1], low);
  line[1] = __builtin_shuffle(first, line[1], high);
}

inline void interleave(vec (&line)[4]) {
  vec even[2] = {line[0], line[2]}, odd[2] = {line[1], line[3]};
  interleave(even);
  interleave(odd);
  for (int i = 0; i < 2; i++) {
    vec both[2] = {even[i], odd[i]};
    interleave(both);
    line[2 * i] = both[0];
    line[2 * i + 1] = both[1];
  }
}

inline void interleave(vec (&line)[3]) {
  vec all[3];
  for (int l = 0; l < CP_WIDTH; l++)
    for (int i = 0; i < 3; i++) reinterpret_cast<float*>(all)[3 * l + i] = line[i][l];
  for (int i = 0; i < 3; i++) line[i] = all[i];
}

// Stores a tile of some output channels, from `first` on: R * R of them are pixels of one channel, R a row of it.
template <int ACTIVATION, int R>
void store_shuffled_by(const vec* sums, const place& at, int first, int channels, const cp_call& e) {
  const long pitch = e.out_width * R, plane = e.out_height * R * pitch, planes = e.out_channels / (R * R);
  for (int o = first; o < first + channels; o += R, sums += R * CP_ROWS) {
    const long c = o / (R * R), dy = o / R % R;
    const long start = (at.image * planes + c) * plane + (at.y0 * R + dy) * pitch + at.x0 * R;
    for (int row = 0; row < at.rows; row++) {
      vec line[R];
      for (int dx = 0; dx < R; dx++) line[dx] = activate<ACTIVATION>(sums[dx * CP_ROWS + row], slope_of(e, o + dx));
      interleave(line);
      for (int i = 0; i < R && at.columns * R > i * CP_WIDTH; i++) {
        const int left = at.columns * R - i * CP_WIDTH, count = left < CP_WIDTH ? left : CP_WIDTH;
        const long to = start + row * R * pitch + i * CP_WIDTH;
        store_some(e.y + to, e.order ? line[i] + load_some(e.residual + to, count) : line[i], count);
      }
    }
  }
}

template <int ACTIVATION>
void store_shuffled(const vec* sums, const place& at, int first, int channels, const cp_call& e) {
  switch (e.shuffle) {
    case 2: return store_shuffled_by<ACTIVATION, 2>(sums, at, first, channels, e);
    case 3: return store_shuffled_by<ACTIVATION, 3>(sums, at, first, channels, e);
    default: return store_shuffled_by<ACTIVATION, cp_most_shuffle>(sums, at, first, channels, e);
  }
}

// W x W transposition: step by step, quarters swap places.
inline void transpose(vec (&m)[CP_WIDTH]) {
  typedef int32_t lanes __attribute__((vector_size(CP_WIDTH * 4)));
#pragma GCC unroll 4
  for (int s = 1; s < CP_WIDTH; s *= 2) {
    lanes low{}, high{};
#pragma GCC unroll 16
    for (int l = 0; l < CP_WIDTH; l++) {
      low[l] = l & s ? CP_WIDTH + (l ^ s) : l;
      high[l] = l & s ? CP_WIDTH + l : l | s;
    }
#pragma GCC unroll 16
    for (int i = 0; i < CP_WIDTH; i++)
      if (!(i & s)) {
        const vec a = m[i], b = m[i | s];
        m[i] = __builtin_shuffle(a, b, low);
        m[i | s] = __builtin_shuffle(a, b, high);
      }
  }
}

// Calls Store<activation>(arguments...).
#define CP_WITH_ACTIVATION(activation, store, ...)           \
  switch (activation) {                                      \
    case CP_RELU: store<CP_RELU>(__VA_ARGS__); break;        \
    case CP_LEAKY: store<CP_LEAKY>(__VA_ARGS__); break;      \
    case CP_PRELU: store<CP_PRELU>(__VA_ARGS__); break;      \
    case CP_GELU: store<CP_GELU>(__VA_ARGS__); break;        \
    default: store<CP_NONE>(__VA_ARGS__);                    \
  }

}  // namespace
