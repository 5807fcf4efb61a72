// 3 x 3 convolutions with stride 1 by Winograd's F(6 x 6, 3 x 3): 64 multiplications for 36 outputs instead of 324. Kernels
// that are zero in all output channels of a block are skipped; other zeros are not.
//
// The output is cut into regions of 12 rows and up to three vectors, each of 6 x 6-pixel tiles. A job takes a few regions
// and, with the channels of a vector side by side,
//   1. transforms their input tiles, B^T d B, into 64 planes v[plane][vector of channels][tile];
//   2. multiplies every plane by the transformed weight, for a few vectors of output channels, into m[plane][tile];
//   3. transforms back, A^T m A, and stores as the other kernels do.
// Planes lie an odd number of cache lines apart: at multiples of 4 KiB all would compete for one set of the L1 cache.
//
// The points are 0, +-1, +-2, +-1/2 and infinity (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks): all
// factors but those of the weight's transform, which is done in double precision, are exact.
#pragma once
#include "tiles.h"

namespace {

constexpr int tile = 6, reach = tile + 2;  // outputs and inputs of a tile, each way
constexpr int region_tile_rows = CP_ROWS / tile;
constexpr int region_vectors = 3, region_columns = region_vectors * CP_WIDTH;
constexpr int input_rows = CP_ROWS + 2;
constexpr int input_pitch = region_columns + CP_WIDTH + 1;  // room for one vector more; odd, as planes are
constexpr int accumulators = CP_WIDTH == 16 ? 24 : 12;
constexpr int most_tiles(int vectors) { return vectors == 1 ? accumulators / 2 : accumulators / vectors; }

// B^T d of eight values, in parts: the first (or, from d[1] on, minus the last), and three pairs.
inline __attribute__((always_inline)) vec input_end(vec d0, vec d2, vec d4, vec d6) { return (d0 - d6) + 5.25f * (d4 - d2); }
template <int PAIR>
inline __attribute__((always_inline)) void input_pair(const vec (&d)[8], vec& plus, vec& minus) {
  vec a, b;
  if constexpr (PAIR == 0) {
    a = (d[2] + d[6]) - 4.25f * d[4];
    b = (d[1] + d[5]) - 4.25f * d[3];
  } else if constexpr (PAIR == 1) {
    a = d[6] + 0.25f * d[2] - 1.25f * d[4];
    b = 0.5f * d[1] - 2.5f * d[3] + 2.f * d[5];
  } else {
    a = d[6] + 4.f * d[2] - 5.f * d[4];
    b = 2.f * d[1] - 2.5f * d[3] + 0.5f * d[5];
  }
  plus = a + b;
  minus = a - b;
}

// A^T m of eight values, in halves: y[0], y[2], y[4] and y[1], y[3], y[5].
inline __attribute__((always_inline)) void output_even(const vec (&m)[8], vec& y0, vec& y2, vec& y4) {
  const vec a = m[1] + m[2], b = m[3] + m[4], c = m[5] + m[6];
  y0 = (m[0] + a) + (b + c);
  y2 = a + 4.f * b + 0.25f * c;
  y4 = a + 16.f * b + 0.0625f * c;
}
inline __attribute__((always_inline)) void output_odd(const vec (&m)[8], vec& y1, vec& y3, vec& y5) {
  const vec a = m[1] - m[2], b = m[3] - m[4], c = m[5] - m[6];
  y1 = a + 2.f * b + 0.5f * c;
  y3 = a + 8.f * b + 0.125f * c;
  y5 = (m[7] + a) + 32.f * b + 0.03125f * c;
}

// Products of one plane: m[tile][vector] = sum over channels of v[channel][tile] * u[channel][vector]. `offsets` says where
// in v the channels are.
typedef void (*product)(const float* v, const int32_t* offsets, const unaligned_vec* u, int channels, vec* m);

template <int VECTORS, int TILES>
void multiply(const float* v, const int32_t* offsets, const unaligned_vec* u, int channels, vec* m) {
  vec s[TILES][VECTORS];
#pragma GCC unroll 32
  for (int t = 0; t < TILES; t++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) s[t][j] = vec{};
  for (int i = 0; i < channels; i++, u += VECTORS) {
    const float* x = v + offsets[i];
    vec w[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) w[j] = u[j];
#pragma GCC unroll 32
    for (int t = 0; t < TILES; t++) {
      const vec b = broadcast(x[t * CP_WIDTH]);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; j++) add_product(s[t][j], w[j], b);
    }
  }
#pragma GCC unroll 32
  for (int t = 0; t < TILES; t++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) m[t * VECTORS + j] = s[t][j];
}

template <int VECTORS>
struct products {
  product table[most_tiles(VECTORS) + 1];
  constexpr products() : table() { fill<most_tiles(VECTORS)>(); }
  template <int TILES>
  constexpr void fill() {
    if constexpr (TILES > 0) {
      table[TILES] = multiply<VECTORS, TILES>;
      fill<TILES - 1>();
    }
  }
};
constexpr products<1> products_of_one;
constexpr products<2> products_of_two;
constexpr products<3> products_of_three;
constexpr const product* products_by_vectors[cp::most_block_vectors + 1] = {nullptr, products_of_one.table, products_of_two.table,
                                                                           products_of_three.table};

struct winograd {
  struct region {
    long image, y0, x0;
    int rows, columns, tile_rows, tile_columns;
    long first_tile;
  };

  const cp_call& call;
  cp::header head;
  long row_blocks, column_blocks, jobs;
  int in_vectors, out_vectors;
  int failed = 0;

  explicit winograd(const cp_call& c) : call(c) {
    std::memcpy(&head, c.packed, sizeof head);
    in_vectors = static_cast<int>(ceil_div(c.in_channels, CP_WIDTH));
    out_vectors = static_cast<int>(ceil_div(c.out_channels, CP_WIDTH));
    row_blocks = ceil_div(ceil_div(c.out_height, tile), region_tile_rows);
    column_blocks = ceil_div(c.out_width, region_columns);
    jobs = ceil_div(regions(), head.chunk);
    // as many jobs for every thread, where there are few
    if (jobs < 8 * c.threads) jobs = at_most(regions(), ceil_div(jobs, c.threads) * c.threads);
  }

  long regions() const { return call.batch * row_blocks * column_blocks; }

  region region_at(long index) const {
    const long column = index % column_blocks, block = index / column_blocks % row_blocks;
    const long tile_rows = ceil_div(call.out_height, tile);
    const long y0 = block * tile_rows / row_blocks * tile, x0 = column * region_columns;
    const long rows = at_most((block + 1) * tile_rows / row_blocks * tile, call.out_height) - y0;
    return make_region(index / column_blocks / row_blocks, y0, x0, rows, at_most(region_columns, call.out_width - x0));
  }

  static region make_region(long image, long y0, long x0, long rows, long columns) {
    const auto tiles = [](long pixels) { return static_cast<int>(ceil_div(pixels, tile)); };
    return {image, y0, x0, static_cast<int>(rows), static_cast<int>(columns), tiles(rows), tiles(columns), 0};
  }

  // Two neighbouring pixels of a vector of channels.
  static void load_two_columns(const float* from, long stride, vec* to) {
    for (int l = 0; l < CP_WIDTH; l += 4, from += 4 * stride) {
      __m128 a = _mm_setzero_ps(), b = a;
      a = _mm_loadh_pi(_mm_loadl_pi(a, reinterpret_cast<const __m64*>(from)), reinterpret_cast<const __m64*>(from + stride));
      b = _mm_loadh_pi(_mm_loadl_pi(b, reinterpret_cast<const __m64*>(from + 2 * stride)),
                       reinterpret_cast<const __m64*>(from + 3 * stride));
      _mm_storeu_ps(reinterpret_cast<float*>(to) + l, _mm_shuffle_ps(a, b, 0x88));
      _mm_storeu_ps(reinterpret_cast<float*>(to + 1) + l, _mm_shuffle_ps(a, b, 0xdd));
    }
  }

  // A vector of pixels of a vector of channels, side by side: to[pixel]. Outside the picture are zeros.
  void load_pixels(const float* from, const columns& at, int channels, vec* to) const {
    vec m[CP_WIDTH];
    if (at.all && channels == CP_WIDTH) {
#pragma GCC unroll 16
      for (int l = 0; l < CP_WIDTH; l++) m[l] = load_all(from + l * call.x_stride_c);
    } else {
      for (int l = 0; l < CP_WIDTH; l++)
        m[l] = l < channels ? masked_load(from + l * call.x_stride_c, at.inside) : vec{};
    }
    transpose(m);
#pragma GCC unroll 16
    for (int l = 0; l < CP_WIDTH; l++) to[l] = m[l];
  }

  // Rows [begin, end) of a region's input, for a vector of channels from c0 on: buffer[row][column]. What only the unused
  // outputs of the last tiles would read is zero.
  __attribute__((noinline)) void load_input(const region& at, int begin, int end, int c0, vec* buffer) const {
    const int channels = static_cast<int>(at_most(CP_WIDTH, call.in_channels - c0));
    const int all = at.tile_columns * tile + 2, needed = at.columns + 2;
    const long left = at.x0 - head.geometry.pad_w;
    const float* plane = call.x + at.image * call.x_stride_n + c0 * call.x_stride_c + left;
    const bool two = needed % CP_WIDTH == 2 && channels == CP_WIDTH && left + needed <= call.width;
    const int vectors = static_cast<int>(two ? needed / CP_WIDTH : ceil_div(needed, CP_WIDTH));
    const columns parts[region_vectors + 1] = {{left, 1, call.width},
                                               {left + CP_WIDTH, 1, call.width},
                                               {left + 2 * CP_WIDTH, 1, call.width},
                                               {left + 3 * CP_WIDTH, 1, call.width}};
    for (int r = begin; r < end; r++) {
      vec* row = buffer + r * input_pitch;
      const long y = at.y0 - head.geometry.pad_h + r;
      if (y < 0 || y >= call.height || r >= at.rows + 2) {
        std::memset(row, 0, all * sizeof(vec));
        continue;
      }
      const float* from = plane + y * call.x_stride_h;
      for (int v = 0; v < vectors; v++) load_pixels(from + v * CP_WIDTH, parts[v], channels, row + v * CP_WIDTH);
      if (two) load_two_columns(from + vectors * CP_WIDTH, call.x_stride_c, row + vectors * CP_WIDTH);
      std::memset(row + needed, 0, (all - needed) * sizeof(vec));
    }
  }

  // Transforms a row of tiles, from[row][column], into the planes. One or two rows of B^T d at a time and then across, so
  // that what lies between stays in registers.
  __attribute__((noinline)) static void transform_tiles(const vec* from, int tiles, long plane, vec* v) {
    for (int t = 0; t < tiles; t++, from += tile, v++) {
      vec d[reach], one[reach], other[reach];
      const auto column = [&](int k) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int r = 0; r < reach; r++) d[r] = from[r * input_pitch + k];
      };
      const auto across = [&](const vec(&row)[reach], int r) __attribute__((always_inline)) {
        vec* to = v + r * reach * plane;
        vec plus, minus;
        to[0] = input_end(row[0], row[2], row[4], row[6]);
        input_pair<0>(row, plus, minus);
        to[plane] = plus;
        to[2 * plane] = minus;
        input_pair<1>(row, plus, minus);
        to[3 * plane] = plus;
        to[4 * plane] = minus;
        input_pair<2>(row, plus, minus);
        to[5 * plane] = plus;
        to[6 * plane] = minus;
        to[7 * plane] = -input_end(row[1], row[3], row[5], row[7]);
      };
#define CP_PAIR_OF_ROWS(PAIR)                       \
  _Pragma("GCC unroll 8") for (int k = 0; k < reach; k++) { \
    column(k);                                      \
    input_pair<PAIR>(d, one[k], other[k]);          \
  }                                                 \
  across(one, 1 + 2 * PAIR);                        \
  across(other, 2 + 2 * PAIR);
#pragma GCC unroll 8
      for (int k = 0; k < reach; k++) {
        column(k);
        one[k] = input_end(d[0], d[2], d[4], d[6]);
      }
      across(one, 0);
      CP_PAIR_OF_ROWS(0)
      CP_PAIR_OF_ROWS(1)
      CP_PAIR_OF_ROWS(2)
#pragma GCC unroll 8
      for (int k = 0; k < reach; k++) {
        column(k);
        one[k] = -input_end(d[1], d[3], d[5], d[7]);
      }
      across(one, 7);
    }
  }

  // Transforms the products of a row of tiles and one vector of channels back: y[row][column].
  __attribute__((noinline)) static void transform_back(const vec* m, int tiles, int vectors, long plane, vec bias, vec* y) {
    for (int t = 0; t < tiles; t++, m += vectors, y += tile) {
      vec d[reach], rows[3][reach];
      const auto column = [&](int k) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int r = 0; r < reach; r++) d[r] = m[(r * reach + k) * plane];
      };
      const auto across = [&](int first) __attribute__((always_inline)) {
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++) {
          vec* to = y + (first + 2 * i) * region_columns;
          vec a, b, c;
          output_even(rows[i], a, b, c);
          to[0] = a + bias;
          to[2] = b + bias;
          to[4] = c + bias;
          output_odd(rows[i], a, b, c);
          to[1] = a + bias;
          to[3] = b + bias;
          to[5] = c + bias;
        }
      };
#pragma GCC unroll 8
      for (int k = 0; k < reach; k++) {
        column(k);
        output_even(d, rows[0][k], rows[1][k], rows[2][k]);
      }
      across(0);
#pragma GCC unroll 8
      for (int k = 0; k < reach; k++) {
        column(k);
        output_odd(d, rows[0][k], rows[1][k], rows[2][k]);
      }
      across(1);
    }
  }

  // Turns a vector of pixels in each of some rows, a vector of channels each, into sums[channel][row].
  __attribute__((noinline)) static void to_planes(const vec* y, int rows, vec* sums) {
    for (int r = 0; r < rows; r++, y += region_columns) {
      vec line[CP_WIDTH];
#pragma GCC unroll 16
      for (int l = 0; l < CP_WIDTH; l++) line[l] = y[l];
      transpose(line);
#pragma GCC unroll 16
      for (int l = 0; l < CP_WIDTH; l++) sums[l * CP_ROWS + r] = line[l];
    }
  }

  // Fetches the cache lines of a row of tiles' outputs, which are written soon.
  void fetch_output(const region& at, int ty, int first, int channels) const {
    const int rows = static_cast<int>(at_most(tile, at.rows - ty * tile));
    for (int o = first; o < first + channels; o++)
      for (int r = 0; r < rows; r++) {
        const float* line = call.y + ((at.image * call.out_channels + o) * call.out_height + at.y0 + ty * tile + r) * call.out_width + at.x0;
        for (int x = 0; x < at.columns; x += 16) __builtin_prefetch(line + x, 1);
      }
  }

  // Transforms a region's products for one vector of output channels from `first` on back and stores them.
  void finish_region(const region& at, const vec* m, int vectors, long plane, int first, vec* y, vec* sums) const {
    const int channels = static_cast<int>(at_most(CP_WIDTH, call.out_channels - first));
    const vec bias = call.bias ? load_some(call.bias + first, channels) : vec{};
    for (int ty = 0; ty < at.tile_rows; ty++, m += at.tile_columns * vectors) {
      if (call.shuffle == 1) fetch_output(at, ty, first, channels);
      transform_back(m, at.tile_columns, vectors, plane, bias, y);
      for (int x = 0; x < at.columns; x += CP_WIDTH) {
        const place to{at.image, at.y0 + ty * tile, at.x0 + x, static_cast<int>(at_most(tile, at.rows - ty * tile)),
                       static_cast<int>(at_most(CP_WIDTH, at.columns - x))};
        to_planes(y + x, to.rows, sums);
        if (call.shuffle > 1)
          CP_WITH_ACTIVATION(call.activation, store_shuffled, sums, to, first, channels, call)
        else
          CP_WITH_ACTIVATION(call.activation, store_planes, sums, to, first, channels, call)
      }
    }
  }

  void run_tile(long index) {
    const long begin = index * regions() / jobs, end = (index + 1) * regions() / jobs;
    region at[cp::most_regions];
    for (long i = begin; i < end; i++) at[i - begin] = region_at(i);
    run_regions(at, static_cast<int>(end - begin));
  }

  // Computes at most most_regions regions together.
  void run_regions(region* at, int count) {
    long tiles = 0;
    for (int i = 0; i < count; i++) {
      at[i].first_tile = tiles;
      tiles += at[i].tile_rows * at[i].tile_columns;
    }
    constexpr int planes = cp::winograd_planes;
    const long v_plane = (in_vectors * tiles) | 1, m_plane = (cp::most_block_vectors * tiles) | 1;
    const long buffer_size = input_rows * input_pitch, sums_size = CP_WIDTH * CP_ROWS;
    float* memory = cp::scratch((buffer_size + sums_size + planes * (v_plane + m_plane) + in_vectors) * CP_WIDTH);
    if (!memory) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    vec* const buffer = reinterpret_cast<vec*>(memory);
    vec *const sums = buffer + buffer_size, *const v = sums + sums_size, *const m = v + planes * v_plane;
    int32_t* const offsets = reinterpret_cast<int32_t*>(m + planes * m_plane);
    for (int cv = 0; cv < in_vectors; cv++)
      for (int i = 0; i < count; i++)
        for (int ty = 0; ty < at[i].tile_rows; ty++) {
          load_input(at[i], ty ? ty * tile + 2 : 0, (ty + 1) * tile + 2, cv * CP_WIDTH, buffer);
          transform_tiles(buffer + ty * tile * input_pitch, at[i].tile_columns, v_plane,
                          v + cv * tiles + at[i].first_tile + ty * at[i].tile_columns);
        }
    const word* block = call.packed + cp::winograd_words;
    for (int ov = 0; ov < out_vectors;) {
      const int vectors = block[0].i, channels = block[1].i;
      for (int i = 0; i < channels; i++) {
        const int32_t c = block[cp::block_words + i].i;
        offsets[i] = static_cast<int32_t>(c / CP_WIDTH * tiles * CP_WIDTH + c % CP_WIDTH);
      }
      const unaligned_vec* u = reinterpret_cast<const unaligned_vec*>(block + cp::list_words(channels));
      const long parts = ceil_div(tiles, most_tiles(vectors));
      for (int p = 0; p < planes; p++, u += channels * vectors)
        for (long part = 0; part < parts; part++) {
          const long t0 = part * tiles / parts, t1 = (part + 1) * tiles / parts;
          products_by_vectors[vectors][t1 - t0](reinterpret_cast<const float*>(v + p * v_plane + t0), offsets, u, channels,
                                                m + p * m_plane + t0 * vectors);
        }
      block = reinterpret_cast<const word*>(u);
      for (int i = 0; i < count; i++)
        for (int j = 0; j < vectors; j++)
          finish_region(at[i], m + at[i].first_tile * vectors + j, vectors, m_plane, (ov + j) * CP_WIDTH, buffer, sums);
      ov += vectors;
    }
  }

  long tiles() const { return jobs; }
};

template <>
constexpr long tiles_at_once<winograd> = 1;

int run_winograd(const cp_call& call) { return run_layer<winograd>(call); }

}  // namespace
