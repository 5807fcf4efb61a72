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

// Some rows of a channel, `pitch` floats apart, and where they go, `to_pitch` floats apart.
struct row_copy {
  const float* from;
  long pitch;
  float* to;
  long to_pitch;
  int rows;
};

// Copies COUNT floats of each row as load(where) gives them.
template <int COUNT, class Load>
inline void copy_rows(row_copy c, Load load) {
  for (int r = 0; r < c.rows; r++, c.from += c.pitch, c.to += c.to_pitch) {
    const vec x = load(c.from);
    std::memcpy(c.to, &x, COUNT * sizeof(float));
  }
}

inline vec load_all(const float* p) { return *reinterpret_cast<const unaligned_vec*>(p); }

// Every second float.
inline vec load_halved(const float* p) {
  lanes even;
  for (int l = 0; l < CP_WIDTH; l++) even[l] = l < CP_WIDTH / 2 ? 2 * l : 2 * l + 1;
  return __builtin_shuffle(load_all(p), load_all(p + CP_WIDTH - 1), even);  // the last float read is needed
}

inline vec load_strided(const float* p, long stride, lanes mask) {
  vec x{};
  for (int l = 0; l < CP_WIDTH; l++)
    if (mask[l]) x[l] = p[l * stride];
  return x;
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

  // COUNT of the columns; all of them for a stride above 1.
  template <int COUNT>
  void copy(const row_copy& c) const {
    if (stride == 1 && all) return copy_rows<COUNT>(c, load_all);
    if (stride == 1) return copy_rows<COUNT>(c, [&](const float* p) { return masked_load(p, inside); });
    if (stride == 2 && all) return copy_rows<COUNT>(c, load_halved);
    copy_rows<COUNT>(c, [&](const float* p) { return load_strided(p, stride, inside); });
  }
};

}  // namespace
