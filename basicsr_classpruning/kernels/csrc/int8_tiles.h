// Layers of 8-bit integers, tile by tile; compiled once for each instruction set (int8_avx2.cpp and others).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own immintrin.h
#include <immintrin.h>

#include <array>
#include <cstring>
#include <utility>

#include "int8.h"

namespace {

constexpr int width = CP_INT8_WIDTH;
constexpr int half = width / 2;
constexpr int row_bytes = 4 * width;
constexpr int tile_rows = cp::int8_tile_rows;

typedef float fvec __attribute__((vector_size(4 * CP_INT8_WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * CP_INT8_WIDTH)));
typedef uint32_t uvec __attribute__((vector_size(4 * CP_INT8_WIDTH)));  // four bytes in each lane

inline long at_most(long a, long b) { return a < b ? a : b; }
inline long ceil_div(long a, long b) { return (a + b - 1) / b; }

// --- inner loops ----------------------------------------------------------------------------------------------------

#if CP_INT8_WIDTH == 16
inline ivec broadcast(int32_t i) { return reinterpret_cast<ivec>(_mm512_set1_epi32(i)); }
inline ivec dot(ivec sum, ivec x, ivec w) {
  return reinterpret_cast<ivec>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(w)));
}
inline fvec larger(fvec a, fvec b) { return _mm512_max_ps(a, b); }  // b where one is not a number; so smaller
inline fvec smaller(fvec a, fvec b) { return _mm512_min_ps(a, b); }
inline ivec rounded(fvec v) { return reinterpret_cast<ivec>(_mm512_cvtps_epi32(v)); }  // half to even
// Pixels `first` to `last` of a vector from memory, the others from `rest`.
inline ivec load_between(const uint8_t* p, int first, int last, ivec rest) {
  const __mmask16 mask = static_cast<__mmask16>(last > first ? (1u << last) - (1u << first) : 0);
  return reinterpret_cast<ivec>(_mm512_mask_loadu_epi32(reinterpret_cast<__m512i>(rest), mask, p));
}
#else
inline ivec broadcast(int32_t i) { return reinterpret_cast<ivec>(_mm256_set1_epi32(i)); }
inline fvec larger(fvec a, fvec b) { return _mm256_max_ps(a, b); }  // b where one is not a number; so smaller
inline fvec smaller(fvec a, fvec b) { return _mm256_min_ps(a, b); }
inline ivec rounded(fvec v) { return reinterpret_cast<ivec>(_mm256_cvtps_epi32(v)); }  // half to even
// Pixels `first` to `last` of a vector from memory, the others from `rest`.
inline ivec load_between(const uint8_t* p, int first, int last, ivec rest) {
  const ivec index = {0, 1, 2, 3, 4, 5, 6, 7};
  const ivec mask = (index >= first) & (index < last);
  const __m256i found = _mm256_maskload_epi32(reinterpret_cast<const int*>(p), reinterpret_cast<__m256i>(mask));
  return mask ? reinterpret_cast<ivec>(found) : rest;
}
#endif
// Output channels of a job, and rows of their sums that are held in registers.
constexpr int group = CP_INT8_WIDTH == 16 ? 4 : CP_INT8_DOT ? 2 : 1;
constexpr int rows_at_once = 6;
#ifdef __AVXVNNI__
inline ivec dot(ivec sum, ivec x, ivec w) {
  return reinterpret_cast<ivec>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(x),
                                                        reinterpret_cast<__m256i>(w)));
}
#endif

#if CP_INT8_DOT
template <int GROUP, int MASK, int ROWS>
inline const word* walk(const word* s, int32_t entries, const uint8_t* tile, ivec (&sums)[GROUP][ROWS]) {
  constexpr bool shared = (MASK & (MASK - 1)) != 0;
  for (; entries > 0; entries--) {
    const ivec* x = reinterpret_cast<const ivec*>(tile + s++->i);
    ivec w[GROUP];
#pragma GCC unroll 4
    for (int j = 0; j < GROUP; j++)
      if (MASK >> j & 1) w[j] = broadcast(s++->i);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      ivec v = x[r];
      if (shared) asm("" : "+v"(v));  // else it may be loaded once for each channel
#pragma GCC unroll 4
      for (int j = 0; j < GROUP; j++)
        if (MASK >> j & 1) sums[j][r] = dot(sums[j][r], v, w[j]);
    }
  }
  return s;
}

template <int GROUP, int ROWS, int... MASKS>
inline const word* walk_all(const word* s, const uint8_t* tile, ivec (&sums)[GROUP][ROWS], std::integer_sequence<int, MASKS...>) {
  const word* counts = s;
  s += sizeof...(MASKS);
  ((s = walk<GROUP, MASKS + 1, ROWS>(s, counts[MASKS].i, tile, sums)), ...);
  return s;
}

template <int GROUP, int ROWS>
inline const word* walk_all(const word* s, const uint8_t* tile, ivec (&sums)[GROUP][ROWS]) {
  return walk_all<GROUP, ROWS>(s, tile, sums, std::make_integer_sequence<int, (1 << GROUP) - 1>{});
}
#else
// Products of an unsigned and a signed byte, two added in 16 bits: packing made sure that they fit.
inline __m256i products(const uint8_t* x, int32_t w) {
  return _mm256_maddubs_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(x)), _mm256_set1_epi32(w));
}
inline ivec widened(__m256i pairs) { return reinterpret_cast<ivec>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }

template <int GROUP, int ROWS>
inline const word* walk_all(const word* s, const uint8_t* tile, ivec (&sums)[GROUP][ROWS]) {
  static_assert(GROUP == 1);
  int32_t single = s[0].i, twins = s[1].i;
  s += 2;
  for (; single > 0; single--, s += 2)
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) sums[0][r] += widened(products(tile + s[0].i + r * row_bytes, s[1].i));
  for (; twins > 0; twins--, s += 4)
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
      sums[0][r] += widened(_mm256_add_epi16(products(tile + s[0].i + r * row_bytes, s[1].i),
                                             products(tile + s[2].i + r * row_bytes, s[3].i)));
  return s;
}
#endif

// One chunk of one job: from `start` (one value for each channel) where it is given, otherwise from the sums so far.
template <int GROUP, int ROWS>
const word* run_rows(const word* stream, const uint8_t* tile, ivec* sums, const int32_t* start) {
  ivec a[GROUP][ROWS];
#pragma GCC unroll 4
  for (int j = 0; j < GROUP; j++)
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) a[j][r] = start ? broadcast(start[j]) : sums[j * tile_rows + r];
  stream = walk_all<GROUP, ROWS>(stream, tile, a);
#pragma GCC unroll 4
  for (int j = 0; j < GROUP; j++)
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) sums[j * tile_rows + r] = a[j][r];
  return stream;
}

typedef const word* (*run_rows_of)(const word*, const uint8_t*, ivec*, const int32_t*);

template <int... ROWS>
constexpr std::array<run_rows_of, rows_at_once> all_rows(std::integer_sequence<int, ROWS...>) {
  return {run_rows<group, ROWS + 1>...};
}

const word* run_job(const word* stream, const uint8_t* tile, int rows, ivec* sums, const int32_t* start) {
  static constexpr auto runs = all_rows(std::make_integer_sequence<int, rows_at_once>{});
  const int blocks = static_cast<int>(ceil_div(rows, rows_at_once));
  const word* end = stream;
  for (int i = 0; i < blocks; i++) {
    const int first = i * rows / blocks, last = (i + 1) * rows / blocks;
    end = runs[last - first - 1](stream, tile + first * row_bytes, sums + first, start);
  }
  return end;
}

// --- floats ---------------------------------------------------------------------------------------------------------

inline uvec four(int32_t byte) { return uvec{} + static_cast<uint32_t>(byte) * 0x01010101u; }
inline fvec all(float f) { return fvec{} + f; }

// The first n of a vector; the others are 0.
inline fvec load_floats(const float* p, long n) {
  fvec v;
  if (n >= width) {
    std::memcpy(&v, p, sizeof v);
    return v;
  }
#if CP_INT8_WIDTH == 16
  return reinterpret_cast<fvec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
#else
  return reinterpret_cast<fvec>(load_between(reinterpret_cast<const uint8_t*>(p), 0, static_cast<int>(n), ivec{}));
#endif
}

// The first n of a vector.
template <class V>
inline void store(void* p, V v, long n) {
  if (n >= width) {
    std::memcpy(p, &v, sizeof v);
    return;
  }
#if CP_INT8_WIDTH == 16
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512i>(v));
#else
  const ivec index = {0, 1, 2, 3, 4, 5, 6, 7}, mask = index < static_cast<int>(n);
  _mm256_maskstore_epi32(static_cast<int*>(p), reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(v));
#endif
}

// Elements `first` to `last` of a vector.
template <class V>
inline void store_between(void* p, V v, int first, int last) {
#if CP_INT8_WIDTH == 16
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << last) - (1u << first)), reinterpret_cast<__m512i>(v));
#else
  const ivec index = {0, 1, 2, 3, 4, 5, 6, 7}, mask = (index >= first) & (index < last);
  _mm256_maskstore_epi32(static_cast<int*>(p), reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(v));
#endif
}

// Puts the elements of R vectors in turns: a0 b0 … a1 b1 …
template <int R>
inline void interleave(fvec (&line)[R]) {
  if constexpr (R == 2) {
    ivec low, high;
#pragma GCC unroll 16
    for (int i = 0; i < width; i++) {
      low[i] = i / 2 + i % 2 * width;
      high[i] = low[i] + width / 2;
    }
    const fvec a = line[0], b = line[1];
    line[0] = __builtin_shuffle(a, b, low);
    line[1] = __builtin_shuffle(a, b, high);
  } else if constexpr (R == 4) {
    fvec even[2] = {line[0], line[2]}, odd[2] = {line[1], line[3]};
    interleave(even);
    interleave(odd);
    for (int i = 0; i < 2; i++) {
      fvec both[2] = {even[i], odd[i]};
      interleave(both);
      line[2 * i] = both[0];
      line[2 * i + 1] = both[1];
    }
  } else {
    float all[R * width];
    for (int i = 0; i < width; i++)
      for (int j = 0; j < R; j++) all[i * R + j] = line[j][i];
    std::memcpy(line, all, sizeof all);
  }
}

// Floats to levels from 0 to 255, of four channels in one lane. Beyond 16 bits, where numbers saturate before the zero
// point is added, all levels are 0 or 255. What is not a number becomes 0.
struct quantizer {
  fvec inverse_scale;
#if CP_INT8_WIDTH == 16
  __m512i zero;
#else
  __m256i zero;
#endif

  quantizer(float inverse, int32_t zero_point) : inverse_scale(all(inverse)) {
#if CP_INT8_WIDTH == 16
    zero = _mm512_set1_epi16(static_cast<int16_t>(zero_point));
#else
    zero = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
#endif
  }

  // The conversion knows no number beyond 32 bits; the second operand comes through where it is not a number.
  auto whole(fvec y) const {
    const ivec i = rounded(smaller(all(1e6f), y * inverse_scale));
#if CP_INT8_WIDTH == 16
    return reinterpret_cast<__m512i>(i);
#else
    return reinterpret_cast<__m256i>(i);
#endif
  }

  uvec levels(const fvec (&y)[4]) const {
    const __m128i by_pixel = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#if CP_INT8_WIDTH == 16
    const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(whole(y[0]), whole(y[1])), zero);
    const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(whole(y[2]), whole(y[3])), zero);
    return reinterpret_cast<uvec>(_mm512_shuffle_epi8(_mm512_packus_epi16(low, high), _mm512_broadcast_i32x4(by_pixel)));
#else
    const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(whole(y[0]), whole(y[1])), zero);
    const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(whole(y[2]), whole(y[3])), zero);
    return reinterpret_cast<uvec>(_mm256_shuffle_epi8(_mm256_packus_epi16(low, high), _mm256_broadcastsi128_si256(by_pixel)));
#endif
  }
};

// --- tiles ----------------------------------------------------------------------------------------------------------

struct workspace {
  uint8_t* tile;
  ivec* sums;
  int32_t* start;
};

struct place {
  long image, y0, x0;
  int rows, columns;
  int lower = 0;  // rows below these, in the second half of the vectors: as many, or one fewer
};

// Whether sums that are zero leave a residual as it is.
inline bool keeps_residual(const cp_int8_call& c) {
  return c.order == CP_AFTER_ACTIVATION || (c.order == CP_BEFORE_ACTIVATION && c.activation == CP_NONE);
}

struct layer {
  const cp_int8_call& call;
  cp::int8_header head;
  long row_blocks, column_blocks, units, out_padded;
  int together;  // channels that are stored together: four, behind a pixel shuffle
  int32_t phases[cp::max_stride];  // the row phases that are used
  int failed = 0;

  explicit layer(const cp_int8_call& c) : call(c) {
    std::memcpy(&head, c.packed, sizeof head);
    row_blocks = ceil_div(c.out_height, tile_rows);
    column_blocks = ceil_div(c.out_width, width);
    units = cp::int8_units(c.in_channels);
    out_padded = 4 * cp::int8_units(c.out_channels);
    together = 4 * c.shuffle * c.shuffle;
    int32_t index[cp::max_stride];
    cp::used_phases(head.geometry, index);
    for (int p = 0; p < head.geometry.stride_h; p++)
      if (index[p] >= 0) phases[index[p]] = p;
  }

  long tiles() const { return call.batch * row_blocks * column_blocks; }

  // Then sums are done with one group of channels after the other, and need not be kept.
  bool one_chunk() const { return head.chunk >= units; }

  workspace get_workspace() const {
    const long tile = static_cast<long>(head.chunk) * head.geometry.kernel_w * head.phases * head.plane_rows * width;
    const long tile_words = ceil_div(tile, 16) * 16, kept = one_chunk() ? together : out_padded;
    const long sums = kept * tile_rows * width;
    float* memory = cp::scratch(tile_words + sums + out_padded);
    if (!memory) return {};
    return {reinterpret_cast<uint8_t*>(memory), reinterpret_cast<ivec*>(memory + tile_words),
            reinterpret_cast<int32_t*>(memory + tile_words + sums)};
  }

  // Rows of the buffer: of each row the pixels from column x0 on, the zero point outside the picture.
  void copy_rows(const uint8_t* plane, long y0, long x0, int rows, ivec padding, uint8_t* to) const {
    const long pitch = call.width * 4;
    const int first = static_cast<int>(at_most(y0 < 0 ? -y0 : 0, rows));
    const int last = static_cast<int>(at_most(call.height > y0 ? call.height - y0 : 0, rows));
    const uint8_t* from = plane + y0 * pitch + x0 * 4;
    for (int r = 0; r < first; r++) std::memcpy(to + r * row_bytes, &padding, row_bytes);
    if (x0 >= 0 && x0 + width <= call.width) {
      for (int r = first; r < last; r++) std::memcpy(to + r * row_bytes, from + r * pitch, row_bytes);
    } else {
      const int left = static_cast<int>(at_most(x0 < 0 ? -x0 : 0, width));
      const int right = static_cast<int>(at_most(call.width > x0 ? call.width - x0 : 0, width));
      for (int r = first; r < last; r++) {
        const ivec row = load_between(from + r * pitch, left, right, padding);
        std::memcpy(to + r * row_bytes, &row, row_bytes);
      }
    }
    for (int r = last > first ? last : first; r < rows; r++) std::memcpy(to + r * row_bytes, &padding, row_bytes);
  }

  // The same in both halves of the vectors, the second one `apart` rows below the first.
  void copy_halves(const uint8_t* plane, long y0, long x0, int rows, long apart, ivec padding, uint8_t* to) const {
    const int left = static_cast<int>(at_most(x0 < 0 ? -x0 : 0, half));
    const int right = static_cast<int>(at_most(call.width > x0 ? call.width - x0 : 0, half));
    for (int r = 0; r < rows; r++, to += row_bytes) {
      ivec row = padding;
      for (int i = 0; i < 2; i++) {
        const long y = y0 + r + i * apart;
        if (y >= 0 && y < call.height)
          row = load_between(plane + (y * call.width + x0 - i * half) * 4, left + i * half, right + i * half, row);
      }
      std::memcpy(to, &row, row_bytes);
    }
  }

  // The same of every stride_h-th row from y0 on, and every stride_w-th pixel from x0 on.
  void copy_strided(const uint8_t* plane, long y0, long x0, int rows, ivec padding, uint8_t* to) const {
    for (int r = 0; r < rows; r++, to += row_bytes) {
      std::memcpy(to, &padding, row_bytes);
      const long y = y0 + r * head.geometry.stride_h;
      if (y < 0 || y >= call.height) continue;
      for (int i = 0; i < width; i++) {
        const long x = x0 + i * head.geometry.stride_w;
        if (x >= 0 && x < call.width) std::memcpy(to + 4 * i, plane + (y * call.width + x) * 4, 4);
      }
    }
  }

  void copy_chunk(long u0, long u1, const place& at, uint8_t* tile) const {
    const cp_geometry& g = head.geometry;
    const ivec padding = reinterpret_cast<ivec>(four(call.x_zero));
    const int rows = at.rows + cp::shift_of(g, g.kernel_h - 1);
    const bool strided = g.stride_h > 1 || g.stride_w > 1;
    for (long u = u0; u < u1; u++) {
      const uint8_t* plane = call.x + (at.image * units + u) * call.height * call.width * 4;
      for (int kx = 0; kx < g.kernel_w; kx++) {
        const long x0 = at.x0 * g.stride_w + kx * g.dilation_w - g.pad_w;
        for (int p = 0; p < head.phases; p++, tile += head.plane_rows * row_bytes) {
          const long y0 = at.y0 * g.stride_h + phases[p] - g.pad_h;
          if (strided)
            copy_strided(plane, y0, x0, rows, padding, tile);
          else if (at.lower)
            copy_halves(plane, y0, x0, rows, at.rows, padding, tile);
          else
            copy_rows(plane, y0, x0, rows, padding, tile);
        }
      }
    }
  }

  // What is made of sums before a pixel shuffle, each step rounded; the order that of sparsity/int8.py and what follows.
  template <int ACTIVATION, int ORDER>
  struct steps {
    fvec scale, bias, factor, slope;
    bool with_factor;

    steps() = default;
    steps(const cp_int8_call& c, long o)
        : scale(all(c.scale[o])),
          bias(all(c.bias ? c.bias[o] : 0.f)),
          factor(all(c.factor ? c.factor[o] : 1.f)),
          slope(all(ACTIVATION == CP_PRELU ? c.slope[c.activation == CP_LEAKY ? 0 : o] : 0.f)),
          with_factor(c.factor) {}

    fvec operator()(ivec sum, fvec residual) const {
      fvec v = __builtin_convertvector(sum, fvec) * scale + bias;
      if (with_factor) v *= factor;
      if (ORDER == CP_BEFORE_ACTIVATION) v += residual;
      if (ACTIVATION == CP_RELU) v = larger(fvec{}, v);
      if (ACTIVATION == CP_PRELU) v = v > 0.f ? v : v * slope;
      if (ORDER == CP_AFTER_ACTIVATION) v += residual;
      return v;
    }
  };

  // Row r of a tile, of floats or levels: p is where it begins, `pitch` elements from row to row.
  static fvec load_row(const float* p, const place& at, int r, long pitch) {
    if (!at.lower) return load_floats(p, at.columns);
    const auto lanes = [&](long offset, int first, ivec rest) {
      return load_between(reinterpret_cast<const uint8_t*>(p + offset), first, first + at.columns, rest);
    };
    const ivec upper = lanes(0, 0, ivec{});
    return reinterpret_cast<fvec>(r < at.lower ? lanes(at.rows * pitch - half, half, upper) : upper);
  }

  template <class V>
  static void store_row(void* p, V v, const place& at, int r, long pitch) {
    if (!at.lower) return store(p, v, at.columns);
    store_between(p, v, 0, at.columns);
    if (r < at.lower) store_between(static_cast<char*>(p) + (at.rows * pitch - half) * 4, v, half, half + at.columns);
  }

  // Up to four channels of a tile, from o on: floats, levels, or both. WHOLE: four channels of whole vectors.
  template <int ACTIVATION, int ORDER, bool FLOATS, bool LEVELS, bool WHOLE>
  void store_four(const ivec* sums, long o, int channels_left, const place& at) const {
    const long pitch = call.out_width, plane = call.out_height * pitch, first = at.y0 * pitch + at.x0;
    const long start = (at.image * call.out_channels + o) * plane + first;
    const int channels = WHOLE ? 4 : channels_left, rows = at.rows;
    const float* const residual = ORDER ? call.residual + start : nullptr;
    float* const y = FLOATS ? call.y + start : nullptr;
    uint8_t* const q = LEVELS ? call.q + ((at.image * (out_padded / 4) + o / 4) * plane + first) * 4 : nullptr;
    const quantizer quantized(call.q_inverse_scale, call.q_zero);
    steps<ACTIVATION, ORDER> finish[4];
    for (int j = 0; j < channels; j++) finish[j] = {call, o + j};
    for (int r = 0; r < rows; r++) {
      fvec v[4] = {};
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        if (j >= channels) continue;
        const long i = j * plane + r * pitch;
        fvec added = {};
        if (ORDER) added = WHOLE ? load_floats(residual + i, width) : load_row(residual + i, at, r, pitch);
        v[j] = finish[j](sums[j * tile_rows + r], added);
        if (FLOATS && WHOLE) store(y + i, v[j], width);
        if (FLOATS && !WHOLE) store_row(y + i, v[j], at, r, pitch);
      }
      if (LEVELS && WHOLE) store(q + r * pitch * 4, quantized.levels(v), width);
      if (LEVELS && !WHOLE) store_row(q + r * pitch * 4, quantized.levels(v), at, r, pitch);
    }
  }

  template <int ACTIVATION, int ORDER, bool FLOATS, bool LEVELS>
  void store_four(const ivec* sums, long o, int channels, const place& at) const {
    if (channels == 4 && at.columns == width)
      store_four<ACTIVATION, ORDER, FLOATS, LEVELS, true>(sums, o, channels, at);
    else
      store_four<ACTIVATION, ORDER, FLOATS, LEVELS, false>(sums, o, channels, at);
  }

  template <int ACTIVATION, int ORDER>
  void store_four(const ivec* sums, long o, int channels, const place& at) const {
    if (!call.q) return store_four<ACTIVATION, ORDER, true, false>(sums, o, channels, at);
    if (!call.y) return store_four<ACTIVATION, ORDER, false, true>(sums, o, channels, at);
    store_four<ACTIVATION, ORDER, true, true>(sums, o, channels, at);
  }

  // `channels` of a tile, from o on: stored, or, before a pixel shuffle, floats in place of their sums.
  template <int ACTIVATION>
  void finish(ivec* sums, long o, int channels, const place& at) const {
    if (call.shuffle > 1) {
      for (int j = 0; j < channels; j++) {
        const steps<ACTIVATION, CP_NO_RESIDUAL> finish(call, o + j);
        for (int r = 0; r < at.rows; r++) {
          const fvec v = finish(sums[j * tile_rows + r], fvec{});
          std::memcpy(sums + j * tile_rows + r, &v, sizeof v);
        }
      }
      return;
    }
    if (call.order == CP_NO_RESIDUAL) return store_four<ACTIVATION, CP_NO_RESIDUAL>(sums, o, channels, at);
    if (call.order == CP_BEFORE_ACTIVATION) return store_four<ACTIVATION, CP_BEFORE_ACTIVATION>(sums, o, channels, at);
    store_four<ACTIVATION, CP_AFTER_ACTIVATION>(sums, o, channels, at);
  }

  // Up to four channels behind a pixel shuffle by R, from the channels that are `o` and following before it. WHOLE: four
  // channels of whole vectors.
  template <int R, bool WHOLE>
  void store_shuffled(const ivec* sums, long o, int channels, const place& at) const {
    const long row = call.out_width * R, plane = call.out_height * R * row, planes = call.out_channels / (R * R);
    const long c = o / (R * R), first = at.y0 * R * row + at.x0 * R;
    const int together = WHOLE ? 4 : channels / (R * R), columns = (WHOLE ? width : at.columns) * R, rows = at.rows;
    const long start = (at.image * planes + c) * plane + first;
    const float* const residual = call.order == CP_AFTER_ACTIVATION ? call.residual + start : nullptr;
    float* const y = call.y ? call.y + start : nullptr;
    uint8_t* const q = call.q ? call.q + ((at.image * cp::int8_units(planes) + c / 4) * plane + first) * 4 : nullptr;
    const quantizer quantized(call.q_inverse_scale, call.q_zero);
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < R; i++) {
        const long to = (r * R + i) * row;
        fvec lines[R][4] = {};
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          if (k >= together) continue;
          fvec line[R];
#pragma GCC unroll 4
          for (int j = 0; j < R; j++) std::memcpy(line + j, sums + ((k * R + i) * R + j) * tile_rows + r, sizeof(fvec));
          interleave(line);
#pragma GCC unroll 4
          for (int p = 0; p < R; p++) {
            const long offset = k * plane + to + p * width, left = columns - p * width;
            if (!WHOLE && left <= 0) continue;
            if (residual) line[p] += load_floats(residual + offset, left);
            if (y) store(y + offset, line[p], left);
            lines[p][k] = line[p];
          }
        }
        if (!q) continue;
#pragma GCC unroll 4
        for (int p = 0; p < R; p++)
          if (WHOLE || columns > p * width)
            store(q + to * 4 + p * row_bytes, quantized.levels(lines[p]), columns - p * width);
      }
  }

  template <int R>
  void store_shuffled(const ivec* sums, long o, int channels, const place& at) const {
    if (channels == 4 * R * R && at.columns == width)
      store_shuffled<R, true>(sums, o, channels, at);
    else
      store_shuffled<R, false>(sums, o, channels, at);
  }

  // `together` channels of a tile, or as many as are left, from o on.
  void store_block(ivec* sums, long o, const place& at) const {
    const int channels = static_cast<int>(at_most(together, call.out_channels - o));
    if (call.activation == CP_NONE)
      finish<CP_NONE>(sums, o, channels, at);
    else if (call.activation == CP_RELU)
      finish<CP_RELU>(sums, o, channels, at);
    else
      finish<CP_PRELU>(sums, o, channels, at);
    if (call.shuffle == 2) store_shuffled<2>(sums, o, channels, at);
    if (call.shuffle == 3) store_shuffled<3>(sums, o, channels, at);
    if (call.shuffle == 4) store_shuffled<4>(sums, o, channels, at);
  }

  static void fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

  // Fetches what four channels from o on are added to and stored in, while their sums are computed.
  void fetch_four(long o, const place& at) const {
    const long plane = call.out_height * call.out_width, first = at.y0 * call.out_width + at.x0;
    const long start = (at.image * call.out_channels + o) * plane + first;
    const int channels = static_cast<int>(at_most(4, call.out_channels - o));
    const long last = at.x0 % width ? at.columns - 1 : 0;  // in patches a row may lie in two lines of the cache
    for (int r = 0; r < at.rows + at.lower; r++) {
      const long i = start + r * call.out_width;
      if (call.q) fetch(call.q + ((at.image * (out_padded / 4) + o / 4) * plane + first + r * call.out_width) * 4);
      for (int j = 0; j < channels; j++) {
        if (call.order != CP_NO_RESIDUAL) fetch(call.residual + i + j * plane);
        if (call.order != CP_NO_RESIDUAL && last) fetch(call.residual + i + j * plane + last);
        if (call.y && call.y != call.residual) fetch(call.y + i + j * plane);
      }
    }
  }

  void run_tile(const place& at) {
    const workspace w = get_workspace();
    if (!w.tile) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    const word* weight_sums = call.packed + cp::int8_header_words;
    for (long o = 0; o < out_padded; o++) w.start[o] = o < call.out_channels ? -call.x_zero * weight_sums[o].i : 0;
    const word* stream = weight_sums + call.out_channels;
    for (long u0 = 0; u0 < units; u0 += head.chunk) {
      const long u1 = at_most(u0 + head.chunk, units);
      copy_chunk(u0, u1, at, w.tile);
      for (long o = 0; o < call.out_channels; o += group) {
        ivec* const sums = w.sums + (one_chunk() ? o % together : o) * tile_rows;
        if (u1 == units && o % 4 == 0 && call.shuffle == 1) fetch_four(o, at);
        stream = run_job(stream, w.tile, at.rows, sums, u0 ? nullptr : w.start + o);
        const long done = at_most(o + group, call.out_channels), first = (done - 1) / together * together;
        if (u1 == units && (done == call.out_channels || done % together == 0))
          store_block(w.sums + (one_chunk() ? 0 : first) * tile_rows, first, at);
      }
    }
  }

  // What is made of sums that are zero: of these pixels neighbours may read some.
  void store_zeros(const place& at) {
    if (call.order == CP_NO_RESIDUAL) return clear(at);
    if (keeps_residual(call) && !call.y && call.shuffle == 1 && at.columns <= half) return store_levels(at);
    const workspace w = get_workspace();
    if (!w.tile) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    for (long o = 0; o < call.out_channels; o += together) {
      if (call.shuffle == 1 && o + 4 < call.out_channels) fetch_four(o + 4, at);
      if (call.shuffle > 1 || o == 0) std::memset(w.sums, 0, static_cast<size_t>(together) * tile_rows * row_bytes);
      store_block(w.sums, o, at);
    }
  }

  // The levels of a residual, its pixels row by row: most of what is set to zeros is one pixel wide.
  void store_levels(const place& at) const {
    const long plane = call.out_height * call.out_width, first = at.y0 * call.out_width + at.x0;
    const quantizer quantized(call.q_inverse_scale, call.q_zero);
    const int pixels = at.rows * at.columns;
    long offsets[tile_rows * half];
    for (int i = 0; i < pixels; i++) offsets[i] = first + i / at.columns * call.out_width + i % at.columns;
    for (long o = 0; o < call.out_channels; o += 4) {
      const float* const from = call.residual + (at.image * call.out_channels + o) * plane;
      uint8_t* const to = call.q + (at.image * out_padded + o) * plane;
      const int channels = static_cast<int>(at_most(4, call.out_channels - o));
      for (int i = 0; i < pixels; i += width) {
        const int n = static_cast<int>(at_most(width, pixels - i));
        float lanes[4][width] = {};
        for (int j = 0; j < channels; j++)
          for (int k = 0; k < n; k++) lanes[j][k] = from[j * plane + offsets[i + k]];
        fvec v[4];
        std::memcpy(v, lanes, sizeof v);
        const uvec levels = quantized.levels(v);
        uint32_t found[width];
        std::memcpy(found, &levels, sizeof found);
        for (int k = 0; k < n; k++) std::memcpy(to + offsets[i + k] * 4, found + k, 4);
      }
    }
  }

  // Every activation makes zero of zero, and zero becomes the zero point.
  void clear(const place& at) const {
    const long r = call.shuffle, pitch = call.out_width * r, plane = call.out_height * r * pitch;
    const long first = at.y0 * r * pitch + at.x0 * r, planes = call.out_channels / (r * r);
    const size_t columns = static_cast<size_t>(at.columns) * r;
    for (long y = 0; y < at.rows * r; y++) {
      if (call.y)
        for (long c = 0; c < planes; c++) std::memset(call.y + (at.image * planes + c) * plane + first + y * pitch, 0, columns * sizeof(float));
      if (call.q)
        for (long u = 0; u < cp::int8_units(planes); u++)
          std::memset(call.q + ((at.image * cp::int8_units(planes) + u) * plane + first + y * pitch) * 4, call.q_zero, columns * 4);
    }
  }

  void run_index(long index) {
    const long column = index % column_blocks, block = index / column_blocks % row_blocks;
    const long y0 = block * call.out_height / row_blocks, y1 = (block + 1) * call.out_height / row_blocks;
    const long x0 = column * width;
    run_tile({index / column_blocks / row_blocks, y0, x0, static_cast<int>(y1 - y0),
              static_cast<int>(at_most(width, call.out_width - x0))});
  }
};

void run_index(void* context, long index) { static_cast<layer*>(context)->run_index(index); }

int run_layer(const cp_int8_call& call) {
  layer l(call);
  if (l.head.group != group) return CP_NOT_PACKED_FOR_THIS;
  cp::parallel_for(l.tiles(), call.threads, run_index, &l);
  return l.failed ? CP_NO_MEMORY : CP_OK;
}

// --- patches --------------------------------------------------------------------------------------------------------

// A call in patches: each job of the list by its own weight.
struct patches {
  const cp_int8_call& call;
  const cp::part* parts;
  const cp::ticket* tickets;
  int failed = 0;

  // The call with one of its weights; the first one, without a bias, where there is nothing to do.
  cp_int8_call with(int32_t weight) const {
    const cp_weight& w = call.jobs->weights[weight == CP_NOTHING ? 0 : weight];
    cp_int8_call mine = call;
    mine.packed = w.packed;
    mine.scale = w.scale;
    mine.bias = w.bias;
    if (weight == CP_NOTHING) {
      mine.bias = nullptr;
      if (keeps_residual(call) && call.y == call.residual) mine.y = nullptr;  // they are there already
    }
    return mine;
  }

  void run_tile(long index) {
    const cp::ticket& ticket = tickets[index];
    const cp::part& p = parts[ticket.first];
    const cp_int8_call mine = with(ticket.weight);
    layer l(mine);
    place at{p.image, p.y, p.x, p.rows, p.columns};
    if (ticket.weight == CP_NOTHING) {
      if (mine.y || mine.q) l.store_zeros(at);
    } else {
      if (p.columns <= half && cp::int8_halves(mine, l.head.geometry)) {
        at.lower = p.rows / 2;
        at.rows -= at.lower;
      }
      l.run_tile(at);
    }
    if (l.failed) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  }
};

void run_ticket(void* context, long index) { static_cast<patches*>(context)->run_tile(index); }

int run_jobs(const cp_int8_call& call, const cp::part* parts, const cp::ticket* tickets, long count) {
  patches p{call, parts, tickets};
  for (int32_t k = 0; k < call.jobs->weight_count; k++) {
    const cp_int8_call mine = p.with(k);
    if (layer(mine).head.group != group) return CP_NOT_PACKED_FOR_THIS;
  }
  cp::parallel_for(count, call.threads, run_ticket, &p);
  return p.failed ? CP_NO_MEMORY : CP_OK;
}

// --- floats to activations ------------------------------------------------------------------------------------------

void quantize_row(void* context, long index) {
  const cp_int8_quantize_call& c = *static_cast<const cp_int8_quantize_call*>(context);
  const long units = cp::int8_units(c.channels);
  const long y = index % c.height, u = index / c.height % units, n = index / c.height / units;
  const int channels = static_cast<int>(at_most(4, c.channels - 4 * u));
  const float* from = c.x + n * c.x_stride_n + 4 * u * c.x_stride_c + y * c.x_stride_h;
  uint8_t* to = c.q + index * c.width * 4;
  const quantizer quantized(c.inverse_scale, c.zero);
  for (long x = 0; x < c.width; x += width) {
    const long n_x = at_most(width, c.width - x);
    fvec v[4] = {};
    for (int j = 0; j < channels; j++) {
      const float* p = from + j * c.x_stride_c + x * c.x_stride_w;
      if (c.x_stride_w == 1)
        v[j] = load_floats(p, n_x);
      else
        for (long i = 0; i < n_x; i++) v[j][i] = p[i * c.x_stride_w];
    }
    store(to + 4 * x, quantized.levels(v), n_x);
  }
}

int quantize(const cp_int8_quantize_call& call) {
  const long rows = call.batch * cp::int8_units(call.channels) * call.height;
  cp::parallel_for(rows, call.threads, quantize_row, const_cast<cp_int8_quantize_call*>(&call));
  return CP_OK;
}

}  // namespace
