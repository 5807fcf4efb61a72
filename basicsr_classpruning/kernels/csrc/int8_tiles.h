// Layers of 8-bit integers, tile by tile; compiled once for each instruction set (int8_avx2.cpp and others).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own immintrin.h
#include <immintrin.h>

#include <cstring>
#include <utility>

#include "int8.h"

namespace {

constexpr int width = CP_INT8_WIDTH;
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
#pragma GCC unroll 6
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
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) sums[0][r] += widened(products(tile + s[0].i + r * row_bytes, s[1].i));
  for (; twins > 0; twins--, s += 4)
#pragma GCC unroll 6
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
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) a[j][r] = start ? broadcast(start[j]) : sums[j * tile_rows + r];
  stream = walk_all<GROUP, ROWS>(stream, tile, a);
#pragma GCC unroll 4
  for (int j = 0; j < GROUP; j++)
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) sums[j * tile_rows + r] = a[j][r];
  return stream;
}

typedef const word* (*run_rows_of)(const word*, const uint8_t*, ivec*, const int32_t*);

const word* run_job(const word* stream, const uint8_t* tile, int rows, ivec* sums, const int32_t* start) {
  static constexpr run_rows_of runs[rows_at_once] = {run_rows<group, 1>, run_rows<group, 2>, run_rows<group, 3>,
                                                     run_rows<group, 4>, run_rows<group, 5>, run_rows<group, 6>};
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
  fvec v = {};
  if (n >= width)
    std::memcpy(&v, p, sizeof v);
  else
    std::memcpy(&v, p, n * sizeof(float));
  return v;
}

template <class V>
inline void store(void* p, V v, long n) {
  if (n >= width)
    std::memcpy(p, &v, sizeof v);
  else
    std::memcpy(p, &v, n * 4);
}

// Floats to levels from 0 to 255, of four channels in one lane. Limits of whole numbers are the same before rounding and
// after it. What is not a number becomes 0.
struct quantizer {
  fvec inverse_scale, low, high;
  uvec zeros;

  quantizer(float inverse, int32_t zero)
      : inverse_scale(all(inverse)),
        low(all(static_cast<float>(-zero))),
        high(all(static_cast<float>(255 - zero))),
        zeros(four(zero)) {}

  // The levels of channel j of a unit, less the zero point.
  uvec part(fvec y, int j) const {
    return reinterpret_cast<uvec>(rounded(smaller(larger(y * inverse_scale, low), high))) << (8 * j);
  }
  // Sums of such parts are taken to levels by adding the zero points.
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
};

struct layer {
  const cp_int8_call& call;
  cp::int8_header head;
  long row_blocks, column_blocks, units, out_padded;
  int32_t phases[cp::max_stride];  // the row phases that are used
  int failed = 0;

  explicit layer(const cp_int8_call& c) : call(c) {
    std::memcpy(&head, c.packed, sizeof head);
    row_blocks = ceil_div(c.out_height, tile_rows);
    column_blocks = ceil_div(c.out_width, width);
    units = cp::int8_units(c.in_channels);
    out_padded = 4 * cp::int8_units(c.out_channels);
    int32_t index[cp::max_stride];
    cp::used_phases(head.geometry, index);
    for (int p = 0; p < head.geometry.stride_h; p++)
      if (index[p] >= 0) phases[index[p]] = p;
  }

  long tiles() const { return call.batch * row_blocks * column_blocks; }

  workspace get_workspace() const {
    const long tile = static_cast<long>(head.chunk) * head.geometry.kernel_w * head.phases * head.plane_rows * width;
    const long tile_words = ceil_div(tile, 16) * 16, sums = out_padded * tile_rows * width;
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
          else
            copy_rows(plane, y0, x0, rows, padding, tile);
        }
      }
    }
  }

  // Four channels of a tile, the order of operations that of sparsity/int8.py and what follows it; behind them comes a
  // pixel shuffle, or nothing.
  template <int ACTIVATION, int ORDER>
  void store_four(ivec* sums, long o, const place& at) const {
    const int channels = static_cast<int>(at_most(4, call.out_channels - o));
    const quantizer levels(call.q_inverse_scale, call.q_zero);
    const long plane = call.out_height * call.out_width, first = at.y0 * call.out_width + at.x0;
    uvec parts[tile_rows] = {};
    for (int j = 0; j < channels; j++) {
      const long start = (at.image * call.out_channels + o + j) * plane + first;
      const fvec scale = all(call.scale[o + j]), bias = all(call.bias ? call.bias[o + j] : 0.f);
      const fvec factor = all(call.factor ? call.factor[o + j] : 1.f);
      const fvec slope = all(ACTIVATION == CP_PRELU ? call.slope[call.activation == CP_LEAKY ? 0 : o + j] : 0.f);
      for (int r = 0; r < at.rows; r++) {
        const long i = start + r * call.out_width;
        ivec& sum = sums[j * tile_rows + r];
        fvec v = __builtin_convertvector(sum, fvec) * scale + bias;
        if (call.factor) v *= factor;
        if (ORDER == CP_BEFORE_ACTIVATION) v += load_floats(call.residual + i, at.columns);
        if (ACTIVATION == CP_RELU) v = larger(fvec{}, v);
        if (ACTIVATION == CP_PRELU) v = v > 0.f ? v : v * slope;
        if (ORDER == CP_AFTER_ACTIVATION) v += load_floats(call.residual + i, at.columns);
        if (call.shuffle > 1)
          std::memcpy(&sum, &v, sizeof v);
        else if (call.y)
          store(call.y + i, v, at.columns);
        if (call.q) parts[r] += levels.part(v, j);
      }
    }
    if (!call.q) return;
    uint8_t* to = call.q + ((at.image * (out_padded / 4) + o / 4) * plane + first) * 4;
    for (int r = 0; r < at.rows; r++) store(to + r * call.out_width * 4, parts[r] + levels.zeros, at.columns);
  }

  template <int ACTIVATION>
  void store_four(ivec* sums, long o, const place& at) const {
    if (call.shuffle > 1 || call.order == CP_NO_RESIDUAL) return store_four<ACTIVATION, CP_NO_RESIDUAL>(sums, o, at);
    if (call.order == CP_BEFORE_ACTIVATION) return store_four<ACTIVATION, CP_BEFORE_ACTIVATION>(sums, o, at);
    store_four<ACTIVATION, CP_AFTER_ACTIVATION>(sums, o, at);
  }

  void store_four(ivec* sums, long o, const place& at) const {
    if (call.activation == CP_NONE) return store_four<CP_NONE>(sums, o, at);
    if (call.activation == CP_RELU) return store_four<CP_RELU>(sums, o, at);
    store_four<CP_PRELU>(sums, o, at);
  }

  template <int R>
  void store_shuffled(const ivec* sums, const place& at) const {
    const long row = call.out_width * R, plane = call.out_height * R * row;
    const long channels = call.out_channels / (R * R);
    for (long c = 0; c < channels; c++)
      for (int i = 0; i < R; i++)
        for (int r = 0; r < at.rows; r++) {
          const long start = (at.image * channels + c) * plane + ((at.y0 + r) * R + i) * row + at.x0 * R;
          const float* from = reinterpret_cast<const float*>(sums + ((c * R + i) * R * tile_rows + r));
          float line[R * width];
          for (int x = 0; x < width; x++)
            for (int j = 0; j < R; j++) line[x * R + j] = from[j * tile_rows * width + x];
          const long count = static_cast<long>(at.columns) * R;
          if (call.order == CP_AFTER_ACTIVATION)
            for (long x = 0; x < count; x++) line[x] += call.residual[start + x];
          std::memcpy(call.y + start, line, count * sizeof(float));
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
        stream = run_job(stream, w.tile, at.rows, w.sums + o * tile_rows, u0 ? nullptr : w.start + o);
        const long done = at_most(o + group, call.out_channels);
        if (u1 == units && (done % 4 == 0 || done == call.out_channels)) {
          const long four = (done - 1) / 4 * 4;
          store_four(w.sums + four * tile_rows, four, at);
        }
      }
    }
    if (call.shuffle == 2) store_shuffled<2>(w.sums, at);
    if (call.shuffle == 3) store_shuffled<3>(w.sums, at);
    if (call.shuffle == 4) store_shuffled<4>(w.sums, at);
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

// --- floats to activations ------------------------------------------------------------------------------------------

void quantize_row(void* context, long index) {
  const cp_int8_quantize_call& c = *static_cast<const cp_int8_quantize_call*>(context);
  const long units = cp::int8_units(c.channels);
  const long y = index % c.height, u = index / c.height % units, n = index / c.height / units;
  const int channels = static_cast<int>(at_most(4, c.channels - 4 * u));
  const float* from = c.x + n * c.x_stride_n + 4 * u * c.x_stride_c + y * c.x_stride_h;
  uint8_t* to = c.q + index * c.width * 4;
  const quantizer levels(c.inverse_scale, c.zero);
  for (long x = 0; x < c.width; x += width) {
    const long n_x = at_most(width, c.width - x);
    uvec parts = {};
    for (int j = 0; j < channels; j++) {
      const float* p = from + j * c.x_stride_c + x * c.x_stride_w;
      fvec v = {};
      if (c.x_stride_w == 1)
        v = load_floats(p, n_x);
      else
        for (long i = 0; i < n_x; i++) v[i] = p[i * c.x_stride_w];
      parts += levels.part(v, j);
    }
    store(to + 4 * x, parts + levels.zeros, n_x);
  }
}

int quantize(const cp_int8_quantize_call& call) {
  const long rows = call.batch * cp::int8_units(call.channels) * call.height;
  cp::parallel_for(rows, call.threads, quantize_row, const_cast<cp_int8_quantize_call*>(&call));
  return CP_OK;
}

}  // namespace
