// Dense 3 x 3 convolutions with stride 1 by Winograd's F(4 x 4, 3 x 3): 36 multiplications for 16 outputs instead of 144.
//
// The output is cut into the regions of tiles.h (CP_ROWS rows, one vector wide), each of 4 x 4-pixel tiles. A job takes a
// few regions and, with the channels of a vector side by side,
//   1. transforms their input tiles, B^T d B, into 36 planes v[plane][vector of channels][tile];
//   2. multiplies every plane by the transformed weight, for a few vectors of output channels, into m[plane][tile];
//   3. transforms back, A^T m A, and stores as the other kernels do.
// Planes lie an odd number of cache lines apart: at multiples of 4 KiB all would compete for one set of the L1 cache.
#pragma once
#include "tiles.h"

namespace {

constexpr int tile = 4, reach = tile + 2;  // outputs and inputs of a tile, each way
constexpr int region_tile_rows = CP_ROWS / tile, region_tile_columns = CP_WIDTH / tile;
constexpr int region_tiles = region_tile_rows * region_tile_columns;
constexpr int input_rows = CP_ROWS + 2, input_columns = CP_WIDTH + 2;
constexpr int accumulators = CP_WIDTH == 16 ? 24 : 12;
constexpr int most_tiles(int vectors) { return vectors == 1 ? accumulators / 2 : accumulators / vectors; }

// B^T d of six values: row 0, rows 1 and 2, rows 3 and 4, row 5.
inline __attribute__((always_inline)) vec input_first(vec d0, vec d2, vec d4) { return 4.f * d0 + (d4 - 5.f * d2); }
inline __attribute__((always_inline)) void input_ones(const vec (&d)[6], vec& plus, vec& minus) {
  const vec a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1];
  plus = a + b;
  minus = a - b;
}
inline __attribute__((always_inline)) void input_twos(const vec (&d)[6], vec& plus, vec& minus) {
  const vec a = d[4] - d[2], b = d[3] - d[1];
  plus = a + 2.f * b;
  minus = a - 2.f * b;
}

inline __attribute__((always_inline)) void transform_input(const vec (&d)[6], vec (&t)[6]) {
  t[0] = input_first(d[0], d[2], d[4]);
  input_ones(d, t[1], t[2]);
  input_twos(d, t[3], t[4]);
  t[5] = input_first(d[1], d[3], d[5]);
}

// A^T m of six values.
inline __attribute__((always_inline)) void transform_output(const vec (&m)[6], vec (&y)[4]) {
  const vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  y[0] = m[0] + a + c;
  y[1] = b + 2.f * e;
  y[2] = a + 4.f * c;
  y[3] = b + 8.f * e + m[5];
}

// Products of one plane: m[tile][vector] = sum over channels of v[channel][tile] * u[channel][vector].
typedef void (*product)(const vec* v, long v_pitch, const unaligned_vec* u, int channels, vec* m);

template <int VECTORS, int TILES>
void multiply(const vec* v, long v_pitch, const unaligned_vec* u, int channels, vec* m) {
  vec s[TILES][VECTORS];
#pragma GCC unroll 32
  for (int t = 0; t < TILES; t++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) s[t][j] = vec{};
  for (; channels > 0; channels -= CP_WIDTH, v += v_pitch) {
    const float* x = reinterpret_cast<const float*>(v);
    const float* const end = x + (channels < CP_WIDTH ? channels : CP_WIDTH);
    for (; x != end; x++, u += VECTORS) {
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
    bool continues;  // the region after it lies to its right, in the same rows
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
    column_blocks = ceil_div(c.out_width, CP_WIDTH);
    jobs = ceil_div(regions(), head.chunk);
    // as many jobs for every thread, where there are few
    if (jobs < 8 * c.threads) jobs = at_most(regions(), ceil_div(jobs, c.threads) * c.threads);
  }

  long regions() const { return call.batch * row_blocks * column_blocks; }

  region region_at(long index) const {
    region r;
    const long column = index % column_blocks, block = index / column_blocks % row_blocks;
    const long tile_rows = ceil_div(call.out_height, tile);
    r.image = index / column_blocks / row_blocks;
    r.y0 = block * tile_rows / row_blocks * tile;
    r.x0 = column * CP_WIDTH;
    r.rows = static_cast<int>(at_most((block + 1) * tile_rows / row_blocks * tile, call.out_height) - r.y0);
    r.columns = static_cast<int>(at_most(CP_WIDTH, call.out_width - r.x0));
    r.tile_rows = static_cast<int>(ceil_div(r.rows, tile));
    r.tile_columns = static_cast<int>(ceil_div(r.columns, tile));
    r.first_tile = 0;
    r.continues = column + 1 < column_blocks;
    return r;
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

  // One vector of channels of a region's input, side by side: buffer[row][column]. Where the region to its right was
  // there before, its first two columns are this one's last.
  __attribute__((noinline)) void load_input(const region& at, bool right_is_there, int c0, vec* buffer) const {
    const cp_geometry& g = head.geometry;
    const int channels = static_cast<int>(at_most(CP_WIDTH, call.in_channels - c0));
    const long left = at.x0 - g.pad_w, stride = call.x_stride_c;
    const columns all(left, 1, call.width);
    const int rows = at.tile_rows * tile + 2;
    for (int r = 0; r < rows; r++) {
      vec* row = buffer + r * input_columns;
      const long y = at.y0 - g.pad_h + r;
      if (y < 0 || y >= call.height) {
        std::memset(row, 0, input_columns * sizeof(vec));
        continue;
      }
      const float* from = call.x + at.image * call.x_stride_n + c0 * stride + y * call.x_stride_h + left;
      if (right_is_there) {
        row[CP_WIDTH] = row[0];
        row[CP_WIDTH + 1] = row[1];
      } else if (channels == CP_WIDTH && left + input_columns <= call.width) {
        load_two_columns(from + CP_WIDTH, stride, row + CP_WIDTH);
      } else {
        for (int k = CP_WIDTH; k < input_columns; k++) {
          row[k] = vec{};
          if (left + k < call.width)
            for (int l = 0; l < channels; l++) row[k][l] = from[l * stride + k];
        }
      }
      vec m[CP_WIDTH];
      if (all.all && channels == CP_WIDTH) {
#pragma GCC unroll 16
        for (int l = 0; l < CP_WIDTH; l++) m[l] = load_all(from + l * stride);
      } else {
        for (int l = 0; l < CP_WIDTH; l++) m[l] = l < channels ? masked_load(from + l * stride, all.inside) : vec{};
      }
      transpose(m);
#pragma GCC unroll 16
      for (int l = 0; l < CP_WIDTH; l++) row[l] = m[l];
    }
  }

  // Transforms the tiles of a region's buffer into the planes.
  __attribute__((noinline)) static void transform_tiles(const region& at, const vec* buffer, long plane, vec* v) {
    for (int ty = 0; ty < at.tile_rows; ty++)
      for (int tx = 0; tx < at.tile_columns; tx++, v++) {
        const vec* from = buffer + ty * tile * input_columns + tx * tile;
        // One or two rows of B^T d at a time and then across, so that what lies between stays in registers.
        const auto across = [&](const vec(&d)[reach], int r) {
          vec o[reach];
          transform_input(d, o);
#pragma GCC unroll 6
          for (int k = 0; k < reach; k++) v[(r * reach + k) * plane] = o[k];
        };
        const auto column = [&](int k, vec(&d)[reach]) {
#pragma GCC unroll 6
          for (int r = 0; r < reach; r++) d[r] = from[r * input_columns + k];
        };
        vec d[reach], one[reach], other[reach];
#pragma GCC unroll 6
        for (int k = 0; k < reach; k++) {
          column(k, d);
          one[k] = input_first(d[0], d[2], d[4]);
        }
        across(one, 0);
#pragma GCC unroll 6
        for (int k = 0; k < reach; k++) {
          column(k, d);
          input_ones(d, one[k], other[k]);
        }
        across(one, 1);
        across(other, 2);
#pragma GCC unroll 6
        for (int k = 0; k < reach; k++) {
          column(k, d);
          input_twos(d, one[k], other[k]);
        }
        across(one, 3);
        across(other, 4);
#pragma GCC unroll 6
        for (int k = 0; k < reach; k++) {
          column(k, d);
          one[k] = input_first(d[1], d[3], d[5]);
        }
        across(one, 5);
      }
  }

  // Transforms the products of one vector of channels back: y[row][column] of the region.
  __attribute__((noinline)) static void transform_back(const region& at, const vec* m, int vectors, long plane, vec bias, vec* y) {
    for (int ty = 0; ty < at.tile_rows; ty++)
      for (int tx = 0; tx < at.tile_columns; tx++, m += vectors) {
        vec t[reach][tile];
#pragma GCC unroll 6
        for (int r = 0; r < reach; r++) {
          vec d[reach];
#pragma GCC unroll 6
          for (int k = 0; k < reach; k++) d[k] = m[(r * reach + k) * plane];
          transform_output(d, t[r]);
        }
#pragma GCC unroll 4
        for (int k = 0; k < tile; k++) {
          const vec d[reach] = {t[0][k], t[1][k], t[2][k], t[3][k], t[4][k], t[5][k]};
          vec o[tile];
          transform_output(d, o);
#pragma GCC unroll 4
          for (int r = 0; r < tile; r++) y[(ty * tile + r) * CP_WIDTH + tx * tile + k] = o[r] + bias;
        }
      }
  }

  // Turns rows of pixels, a vector of channels each, into sums[channel][row].
  __attribute__((noinline)) static void to_planes(const vec* y, int rows, vec* sums) {
    for (int r = 0; r < rows; r++, y += CP_WIDTH) {
      vec line[CP_WIDTH];
#pragma GCC unroll 16
      for (int l = 0; l < CP_WIDTH; l++) line[l] = y[l];
      transpose(line);
#pragma GCC unroll 16
      for (int l = 0; l < CP_WIDTH; l++) sums[l * CP_ROWS + r] = line[l];
    }
  }

  // Stores `count` output channels of a region from `first` on.
  void store(const region& at, const vec* sums, int first, int count) const {
    const place to{at.image, at.y0, at.x0, at.rows, at.columns};
    if (call.shuffle > 1)
      CP_WITH_ACTIVATION(call.activation, store_shuffled, sums, to, first, count, call)
    else
      CP_WITH_ACTIVATION(call.activation, store_planes, sums, to, first, count, call)
  }

  void run_tile(long index) {
    const long begin = index * regions() / jobs, end = (index + 1) * regions() / jobs;
    region at[cp::most_regions];
    long tiles = 0;
    for (long i = begin; i < end; i++) {
      at[i - begin] = region_at(i);
      at[i - begin].first_tile = tiles;
      tiles += at[i - begin].tile_rows * at[i - begin].tile_columns;
    }
    const int count = static_cast<int>(end - begin);
    const long v_plane = (in_vectors * tiles) | 1, m_plane = (cp::most_block_vectors * tiles) | 1;
    const long buffer_size = input_rows * input_columns, sums_size = cp::most_block_vectors * CP_WIDTH * CP_ROWS;
    float* memory = cp::scratch((buffer_size + sums_size + 36 * (v_plane + m_plane)) * CP_WIDTH);
    if (!memory) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    vec* const buffer = reinterpret_cast<vec*>(memory);
    vec *const sums = buffer + buffer_size, *const v = sums + sums_size, *const m = v + 36 * v_plane;
    for (int cv = 0; cv < in_vectors; cv++)
      for (int i = count - 1; i >= 0; i--) {
        load_input(at[i], i + 1 < count && at[i].continues, cv * CP_WIDTH, buffer);
        transform_tiles(at[i], buffer, v_plane, v + cv * tiles + at[i].first_tile);
      }
    const unaligned_vec* u = reinterpret_cast<const unaligned_vec*>(call.packed + cp::winograd_words);
    for (int ov = 0; ov < out_vectors;) {
      const int vectors = cp::block_vectors(out_vectors, ov);
      const long parts = ceil_div(tiles, most_tiles(vectors));
      for (int p = 0; p < 36; p++, u += call.in_channels * vectors)
        for (long part = 0; part < parts; part++) {
          const long t0 = part * tiles / parts, t1 = (part + 1) * tiles / parts;
          products_by_vectors[vectors][t1 - t0](v + p * v_plane + t0, tiles, u, static_cast<int>(call.in_channels),
                                                m + p * m_plane + t0 * vectors);
        }
      const int first = ov * CP_WIDTH, channels = static_cast<int>(at_most(vectors * CP_WIDTH, call.out_channels - first));
      for (int i = 0; i < count; i++) {
        for (int j = 0; j < vectors; j++) {
          const int o = first + j * CP_WIDTH;
          const vec bias = call.bias ? load_some(call.bias + o, static_cast<int>(at_most(CP_WIDTH, call.out_channels - o))) : vec{};
          transform_back(at[i], m + at[i].first_tile * vectors + j, vectors, m_plane, bias, buffer);
          to_planes(buffer, at[i].rows, sums + j * CP_WIDTH * CP_ROWS);
        }
        store(at[i], sums, first, channels);
      }
      ov += vectors;
    }
  }

  long tiles() const { return jobs; }
};

template <>
constexpr long tiles_at_once<winograd> = 1;

int run_winograd(const cp_call& call) { return run_layer<winograd>(call); }

}  // namespace
