// Layers without taps (1 x 1 convolutions, linear layers), and what stands before and after them in a block: the
// normalisation of each pixel's channels, a factor of each input channel, a gate, activation, residual.
//
// A tile is up to head.rows vectors of pixels that follow each other. Input channels are copied in chunks that fit the L1
// cache; then run the loops of all other layers (micro.h), or, where there are few pixels, each output channel walks
// through its list of weights and channels: one broadcast, then a multiply-add with an aligned operand in memory for each
// vector.
#pragma once
#include "pointwise_layout.h"
#include "tiles.h"

namespace {

// sum += weight * *x.
inline __attribute__((always_inline)) void add_product_at(vec& sum, vec weight, const vec* x) {
#if CP_WIDTH == 8 || defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(weight), "m"(*x));
#else
  sum += weight * *x;
#endif
}

// sum[r] += the list's weights times their channels, over R vectors.
template <int R>
void list_kernel(const char* tile, long pitch, const word* weight, long count, vec* sum) {
  vec s[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) s[r] = sum[r];
  const uint8_t* const channel = reinterpret_cast<const uint8_t*>(weight + count);
#pragma GCC unroll 2
  for (long e = 0; e < count; e++) {
    const vec* x = reinterpret_cast<const vec*>(tile + channel[e] * pitch);
    const vec w = broadcast(weight[e].f);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) add_product_at(s[r], w, x + r);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) sum[r] = s[r];
}

inline vec square_root(vec x) {
#if CP_WIDTH == 16 && defined(__AVX512F__)
  return reinterpret_cast<vec>(_mm512_sqrt_ps(reinterpret_cast<__m512>(x)));
#else
  for (int l = 0; l < CP_WIDTH; l += 8) {
    float* const part = reinterpret_cast<float*>(&x) + l;
    _mm256_storeu_ps(part, _mm256_sqrt_ps(_mm256_loadu_ps(part)));
  }
  return x;
#endif
}

typedef void (*list_function)(const char*, long, const word*, long, vec*);
constexpr list_function list_kernels[cp::pointwise_rows + 1] = {
    nullptr,        list_kernel<1>, list_kernel<2>, list_kernel<3>, list_kernel<4>,  list_kernel<5>,  list_kernel<6>,
    list_kernel<7>, list_kernel<8>, list_kernel<9>, list_kernel<10>, list_kernel<11>, list_kernel<12>};

// The geometry, rows and chunk of both packings lie at different places.
inline cp::pointwise_header pointwise_head(const word* packed) {
  cp::pointwise_header lists;
  std::memcpy(&lists, packed, sizeof lists);
  if (lists.magic == cp::pointwise_magic) return lists;
  cp::header head;
  std::memcpy(&head, packed, sizeof head);
  return {head.magic, head.isa, head.geometry, head.rows, head.chunk};
}

struct pointwise {
  const cp_pointwise_call& call;
  cp::pointwise_header head;
  long blocks;  // tiles of a picture
  int failed = 0;

  explicit pointwise(const cp_pointwise_call& c) : call(c), head(pointwise_head(c.packed)) {
    const long vectors = ceil_div(c.pixels, CP_WIDTH);
    blocks = ceil_div(vectors, head.rows);
    // Few tiles are made as many for each thread, of three vectors at least: a small picture is a single tile.
    while (tiles() < 4 * c.threads && tiles() % c.threads && vectors >= 3 * (blocks + 1)) blocks++;
  }
  long tiles() const { return call.batch * blocks; }

  // Where a tile lies: vectors of pixels from `first` on, of which `count` are pixels of the picture.
  struct span {
    long image, first, count;
    int vectors;
  };

  span span_of(long index) const {
    const long block = index % blocks, vectors = ceil_div(call.pixels, CP_WIDTH);
    const long begin = block * vectors / blocks, end = (block + 1) * vectors / blocks;
    return {index / blocks, begin * CP_WIDTH, at_most(end * CP_WIDTH, call.pixels) - begin * CP_WIDTH,
            static_cast<int>(end - begin)};
  }

  void copy_planes(const float* x, int channels, const span& at, vec* tile) const {
    const int whole = static_cast<int>(at.count / CP_WIDTH), rest = static_cast<int>(at.count % CP_WIDTH);
    for (int c = 0; c < channels; c++, x += call.x_stride, tile += head.rows) {
      for (int r = 0; r < whole; r++) tile[r] = load_all(x + r * CP_WIDTH);
      if (rest) tile[whole] = load_some(x + whole * CP_WIDTH, rest);
    }
  }

  void copy_tokens(const float* x, int channels, const span& at, vec* tile) const {
    for (long t0 = 0; t0 < at.count; t0 += CP_WIDTH, tile++)
      for (int c = 0; c < channels; c += CP_WIDTH) {
        const int n = static_cast<int>(at_most(CP_WIDTH, channels - c));
        const float* from = x + t0 * call.x_stride + c;
        vec* to = tile + static_cast<long>(c) * head.rows;
        vec m[CP_WIDTH];
        if (n == CP_WIDTH && t0 + CP_WIDTH <= at.count) {  // in registers
#pragma GCC unroll 16
          for (int t = 0; t < CP_WIDTH; t++) m[t] = load_all(from + t * call.x_stride);
          transpose(m);
#pragma GCC unroll 16
          for (int j = 0; j < CP_WIDTH; j++) to[j * head.rows] = m[j];
          continue;
        }
        for (int t = 0; t < CP_WIDTH; t++) m[t] = t0 + t < at.count ? load_some(from + t * call.x_stride, n) : vec{};
        transpose(m);
        for (int j = 0; j < n; j++) to[j * head.rows] = m[j];
      }
  }

  // What is copied after channels up to c1 of a tile; of tokens nothing, which lie together.
  prefetcher next_rows(long index, int c1) const {
    prefetcher p = {};
    const int channels = static_cast<int>(call.in_channels);
    const bool here = c1 < channels;
    if (call.layout != CP_PLANES || (!here && index + 1 == tiles())) return p;
    const span at = span_of(here ? index : index + 1);
    const long c0 = here ? c1 : 0, count = at_most(head.chunk, channels - c0), pitch = CP_WIDTH * sizeof(float);
    p.row = reinterpret_cast<uintptr_t>(call.x + at.image * call.x_stride_n + c0 * call.x_stride + at.first);
    p.pitch = pitch;
    p.channel_pitch = call.x_stride * static_cast<long>(sizeof(float)) - (at.vectors - 1) * pitch;
    p.rows = at.vectors;
    p.left = static_cast<int>(at.vectors * count);
    p.per_channel_of_output = static_cast<int>(ceil_div(p.left, head.geometry.out_channels));
    return p;
  }

  // Copies channels [c0, c1) of a tile, each times its factor.
  void copy(int c0, int c1, const span& at, vec* tile) const {
    const float* x = call.x + at.image * call.x_stride_n;
    if (call.layout == CP_PLANES)
      copy_planes(x + c0 * call.x_stride + at.first, c1 - c0, at, tile);
    else
      copy_tokens(x + at.first * call.x_stride + c0, c1 - c0, at, tile);
    if (!call.scale) return;
    for (int c = c0; c < c1; c++, tile += head.rows) {
      const vec factor = broadcast(call.scale[at.image * call.in_channels + c]);
      for (int r = 0; r < at.vectors; r++) tile[r] *= factor;
    }
  }

  // Gives each pixel's channels a mean of 0 and a variance of 1.
  void normalise(vec* tile, int vectors) const {
    const int channels = static_cast<int>(call.in_channels);
    const vec part = broadcast(1.f / static_cast<float>(channels));
    for (int r = 0; r < vectors; r++) {
      vec* x = tile + r;
      vec sums[4] = {};
      for (int c = 0; c < channels; c++) sums[c & 3] += x[c * head.rows];
      const vec mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * part;
      vec squares[4] = {};
      for (int c = 0; c < channels; c++) {
        const vec d = x[c * head.rows] - mean;
        squares[c & 3] += d * d;
      }
      const vec variance = ((squares[0] + squares[1]) + (squares[2] + squares[3])) * part + broadcast(call.eps);
      const vec factor = 1.f / square_root(variance);
      for (int c = 0; c < channels; c++) x[c * head.rows] = (x[c * head.rows] - mean) * factor;
    }
  }

  // Output channel that the lists have at position i: with a gate, the two halves take turns.
  long channel_at(long i) const { return call.gate ? i / 2 + (i & 1) * (head.geometry.out_channels / 2) : i; }

  template <int ACTIVATION>
  void store_one(const vec* sums, long o, const span& at) const {
    const vec slope = call.slope ? broadcast(call.slope[ACTIVATION == CP_PRELU ? o : 0]) : vec{};
    const long start = (at.image * call.out_channels + o) * call.pixels + at.first;
    for (int r = 0; r < at.vectors; r++) {
      const long i = start + r * CP_WIDTH;
      const int n = static_cast<int>(at_most(CP_WIDTH, at.count - r * CP_WIDTH));
      const vec x = call.gate ? sums[r] * sums[CP_ROWS + r] : sums[r];
      const vec residual = call.order ? load_some(call.residual + i, n) : vec{};
      store_some(call.y + i, finish<ACTIVATION>(x, residual, slope, call.order), n);
    }
  }

  // Stores `n` channels of y, from `o` on, whose sums are `step` vectors apart.
  template <int ACTIVATION>
  void store_block(const vec* sums, long step, long o, int n, const span& at) const {
    const vec slope = !call.slope ? vec{} : ACTIVATION == CP_PRELU ? load_some(call.slope + o, n) : broadcast(*call.slope);
    for (int r = 0; r < at.vectors; r++) {
      vec m[CP_WIDTH];
      for (int j = 0; j < CP_WIDTH; j++) {
        const vec* s = sums + j * step + r;
        m[j] = j >= n ? vec{} : call.gate ? *s * s[CP_ROWS] : *s;
      }
      transpose(m);
      vec all[CP_WIDTH];
#pragma GCC unroll 16
      for (int t = 0; t < CP_WIDTH; t++) all[t] = m[t];
      const long first = at.image * call.pixels + at.first + r * CP_WIDTH;
      const int tokens = static_cast<int>(at_most(CP_WIDTH, at.count - r * CP_WIDTH));
      for (int t = 0; t < tokens; t++) {
        const long i = (first + t) * call.out_channels + o;
        const vec residual = call.order ? load_some(call.residual + i, n) : vec{};
        store_some(call.y + i, finish<ACTIVATION>(all[t], residual, slope, call.order), n);
      }
    }
  }

  // Stores what is complete once the lists up to position i are done, from position `stored` on. Returns where it ended.
  long store(const vec* sums, long stored, long i, const span& at) const {
    const int turn = call.gate ? 2 : 1;
    if (call.layout == CP_PLANES) {
      for (; stored + turn <= i; stored += turn)
        CP_WITH_ACTIVATION(call.activation, store_one, sums + stored * CP_ROWS, stored / turn, at);
      return stored;
    }
    const bool last = i == head.geometry.out_channels;
    while (stored < i && (last || i - stored >= CP_WIDTH * turn)) {
      const int n = static_cast<int>(at_most(CP_WIDTH, (i - stored) / turn));
      CP_WITH_ACTIVATION(call.activation, store_block, sums + stored * CP_ROWS, turn * CP_ROWS, stored / turn, n, at);
      stored += n * turn;
    }
    return stored;
  }

  // The lists of one chunk. Returns where they end.
  template <class After>
  const word* run_lists(const word* job, const char* from, int vectors, vec* sums, After after) const {
    const int parts = (vectors + CP_QUAD_ROWS - 1) / CP_QUAD_ROWS;
    const long pitch = head.rows * static_cast<long>(sizeof(vec));
    const int outputs = head.geometry.out_channels;
    for (int i = 0; i < outputs;) {
      const int together = job[0].i;
      const long count = job[1].i;
      const word* end = job + 2 + count + cp::index_words(count);
      if (together == 1)
        list_kernels[vectors](from, pitch, job + 2, count, sums + static_cast<long>(i) * CP_ROWS);
      else
        for (int part = 0, r = 0; part < parts; part++) {
          const int n = (vectors - r) / (parts - part);
          end = quad_kernels.table[n](from + r * sizeof(vec), sizeof(vec), job + 1, sums + static_cast<long>(i) * CP_ROWS + r);
          r += n;
        }
      job = end;
      after(i, together);
      i += together;
    }
    return job;
  }

  void run_tile(long index) {
    const int channels = static_cast<int>(call.in_channels);
    const long outputs = head.geometry.out_channels;
    const bool norm = call.eps >= 0;
    const long tile_vectors = static_cast<long>(norm ? channels : head.chunk) * head.rows;
    vec* const tile = reinterpret_cast<vec*>(cp::scratch((tile_vectors + outputs * CP_ROWS) * CP_WIDTH));
    if (!tile) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    vec* const sums = tile + tile_vectors;
    const span at = span_of(index);
    for (long i = 0; i < outputs; i++) {
      const vec bias = broadcast(call.bias ? call.bias[channel_at(i)] : 0.f);
      for (int r = 0; r < at.vectors; r++) sums[i * CP_ROWS + r] = bias;
    }
    if (norm) {
      copy(0, channels, at, tile);
      normalise(tile, at.vectors);
    }
    const bool lists = head.magic == cp::pointwise_magic;
    const word* stream = call.packed + (lists ? cp::pointwise_words : cp::header_words);
    for (int c0 = 0; c0 < channels; c0 += head.chunk) {
      const int c1 = static_cast<int>(at_most(c0 + head.chunk, channels));
      if (!norm) copy(c0, c1, at, tile);
      const float* const from = reinterpret_cast<const float*>(norm ? tile + static_cast<long>(c0) * head.rows : tile);
      prefetcher next = next_rows(index, c1);
      long stored = 0;
      const auto after = [&](int o, int count) {
        if (c1 == channels) stored = store(sums, stored, o + count, at);
      };
      stream = lists ? run_lists(stream, reinterpret_cast<const char*>(from), at.vectors, sums, after)
                     : run_chunk(stream, from, CP_WIDTH, at.vectors, sums, next, after);
    }
  }
};

void run_pointwise_tile(void* layer, long index) { static_cast<pointwise*>(layer)->run_tile(index); }

int run_pointwise(const cp_pointwise_call& call) {
  pointwise layer(call);
  cp::parallel_for(layer.tiles(), call.threads, run_pointwise_tile, &layer);
  return layer.failed ? CP_NO_MEMORY : CP_OK;
}

}  // namespace
