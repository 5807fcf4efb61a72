// Copies the input that a tile reads into the tile buffer (layout.h), in vectors; outside the picture are zeros.
#pragma once
#include <immintrin.h>

#include "epilogue.h"

namespace {

typedef int32_t lanes __attribute__((vector_size(CP_WIDTH * 4), may_alias));

// Floats p[l] of the lanes whose mask is -1, zero in the others, which are not read.
inline vec masked_load(const float* p, lanes mask) {
  vec x;
#if CP_WIDTH == 16 && defined(__AVX512F__)
  const __m512i m = reinterpret_cast<__m512i>(mask);
  x = reinterpret_cast<vec>(_mm512_maskz_loadu_ps(_mm512_movepi32_mask(m), p));
#else
  for (int l = 0; l < CP_WIDTH; l += 8) {
    const __m256i m = *reinterpret_cast<const __m256i*>(reinterpret_cast<const int32_t*>(&mask) + l);
    *reinterpret_cast<__m256*>(reinterpret_cast<float*>(&x) + l) = _mm256_maskload_ps(p + l, m);
  }
#endif
  return x;
}

// A channel's rows, and where they go: `rows` vectors, CP_WIDTH floats apart, from the rows `pitch` apart.
struct row_copy {
  const float* from;
  long pitch;
  float* to;
  int rows;
};

inline void copy_inside(row_copy c) {
  for (int r = 0; r < c.rows; r++, c.from += c.pitch, c.to += CP_WIDTH)
    *reinterpret_cast<vec*>(c.to) = *reinterpret_cast<const unaligned_vec*>(c.from);
}

inline void copy_masked(row_copy c, lanes mask) {
  for (int r = 0; r < c.rows; r++, c.from += c.pitch, c.to += CP_WIDTH)
    *reinterpret_cast<vec*>(c.to) = masked_load(c.from, mask);
}

// Every second float.
inline void copy_halved(row_copy c) {
  lanes even;
  for (int l = 0; l < CP_WIDTH; l++) even[l] = l < CP_WIDTH / 2 ? 2 * l : 2 * l + 1;
  for (int r = 0; r < c.rows; r++, c.from += c.pitch, c.to += CP_WIDTH) {
    const vec low = *reinterpret_cast<const unaligned_vec*>(c.from);
    const vec high = *reinterpret_cast<const unaligned_vec*>(c.from + CP_WIDTH - 1);  // the last float read is needed
    *reinterpret_cast<vec*>(c.to) = __builtin_shuffle(low, high, even);
  }
}

inline void copy_strided(row_copy c, long stride, lanes mask) {
  for (int r = 0; r < c.rows; r++, c.from += c.pitch, c.to += CP_WIDTH)
    for (int l = 0; l < CP_WIDTH; l++) c.to[l] = mask[l] ? c.from[l * stride] : 0.f;
}

inline void fill_zero(float* to, int rows) {
  for (int r = 0; r < rows; r++, to += CP_WIDTH) *reinterpret_cast<vec*>(to) = vec{};
}

// The columns left, left + stride, … of rows that are `width` long: all inside, or some of them.
struct columns {
  long left, stride;
  lanes inside;
  bool all;

  columns(long left_, long stride_, long width) : left(left_), stride(stride_), all(true) {
    for (int l = 0; l < CP_WIDTH; l++) {
      const long x = left + l * stride;
      inside[l] = x >= 0 && x < width ? -1 : 0;
      all = all && inside[l];
    }
  }
  void copy(const row_copy& c) const {
    if (stride == 1 && all) return copy_inside(c);
    if (stride == 1) return copy_masked(c, inside);
    if (stride == 2 && all) return copy_halved(c);
    copy_strided(c, stride, inside);
  }
};

}  // namespace
