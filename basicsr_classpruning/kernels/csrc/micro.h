// The innermost loops: the sums of a few output channels over a few rows of a tile, held in registers.
//
// Included by one source file for each instruction set, which defines CP_WIDTH (floats of a vector) and CP_ROWS (rows
// of a tile). Everything is in an unnamed namespace: the same templates compiled for two instruction sets must not be
// merged by the linker.
#pragma once
#include "layout.h"

namespace {

typedef float vec __attribute__((vector_size(CP_WIDTH * 4), may_alias));
typedef float unaligned_vec __attribute__((vector_size(CP_WIDTH * 4), aligned(4), may_alias));

inline __attribute__((always_inline)) vec broadcast(float f) { return f - vec{}; }

// `sum` is [channel][CP_ROWS] vectors; the kernel adds to the first R rows. Returns the end of the job's words.
typedef const word* (*kernel)(const char* tile, const word* job, vec* sum);

template <int N, int R>
const word* block_kernel(const char* tile, const word* job, vec* sum) {
  vec s[N][R];
#pragma GCC unroll 4
  for (int o = 0; o < N; o++)
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) s[o][r] = sum[o * CP_ROWS + r];
  const word* const end = job + 1 + job->i * (N + 1);
#pragma GCC unroll 4
  for (const word* e = job + 1; e != end; e += N + 1) {
    const vec* p = reinterpret_cast<const vec*>(tile + e->i);
    if constexpr (N == 1) {
      const vec w = broadcast(e[1].f);
#pragma GCC unroll 32
      for (int r = 0; r < R; r++) s[0][r] += w * p[r];
    } else {
      vec x[R];
#pragma GCC unroll 32
      for (int r = 0; r < R; r++) x[r] = p[r];
#pragma GCC unroll 4
      for (int o = 0; o < N; o++) {
        const vec w = broadcast(e[1 + o].f);
#pragma GCC unroll 32
        for (int r = 0; r < R; r++) s[o][r] += w * x[r];
      }
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < N; o++)
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) sum[o * CP_ROWS + r] = s[o][r];
  return end;
}

// The positions that exactly the channels in USE (a bit mask) read.
template <int USE, int R>
inline __attribute__((always_inline)) const word* class_loop(const char* tile, const word* e, int count,
                                                             vec (&s)[4][R]) {
  constexpr int users = __builtin_popcount(USE);
  for (; count > 0; count--, e += 1 + users) {
    const vec* p = reinterpret_cast<const vec*>(tile + e->i);
    vec x[R];
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) x[r] = p[r];
    const word* weight = e + 1;
#pragma GCC unroll 4
    for (int o = 0; o < 4; o++)
      if (USE >> o & 1) {
        const vec w = broadcast((weight++)->f);
#pragma GCC unroll 32
        for (int r = 0; r < R; r++) s[o][r] += w * x[r];
      }
  }
  return e;
}

template <int USE, int R>
inline __attribute__((always_inline)) const word* class_loops(const char* tile, const word* counts, const word* e,
                                                              vec (&s)[4][R]) {
  e = class_loop<USE, R>(tile, e, counts[USE - 1].i, s);
  if constexpr (USE < cp::classes)
    return class_loops<USE + 1, R>(tile, counts, e, s);
  else
    return e;
}

template <int R>
const word* sorted_kernel(const char* tile, const word* job, vec* sum) {
  vec s[4][R];
#pragma GCC unroll 4
  for (int o = 0; o < 4; o++)
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) s[o][r] = sum[o * CP_ROWS + r];
  const word* end = class_loops<1, R>(tile, job, job + cp::classes, s);
#pragma GCC unroll 4
  for (int o = 0; o < 4; o++)
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) sum[o * CP_ROWS + r] = s[o][r];
  return end;
}

// Kernels by kind and number of rows.
template <template <int> class Make, int MOST>
struct by_rows {
  kernel table[MOST + 1];
  constexpr by_rows() : table() { fill<MOST>(); }
  template <int R>
  constexpr void fill() {
    if constexpr (R > 0) {
      table[R] = Make<R>::run;
      fill<R - 1>();
    }
  }
};
template <int R>
struct single {
  static constexpr kernel run = block_kernel<1, R>;
};
template <int R>
struct pair {
  static constexpr kernel run = block_kernel<2, R>;
};
template <int R>
struct quad {
  static constexpr kernel run = block_kernel<4, R>;
};
template <int R>
struct sorted_quad {
  static constexpr kernel run = sorted_kernel<R>;
};
constexpr by_rows<single, CP_SINGLE_ROWS> singles;
constexpr by_rows<pair, CP_PAIR_ROWS> pairs;
constexpr by_rows<quad, CP_QUAD_ROWS> quads;
constexpr by_rows<sorted_quad, CP_QUAD_ROWS> sorted_quads;
constexpr const kernel* kernels[cp::KINDS] = {singles.table, pairs.table, quads.table, sorted_quads.table};
constexpr int kernel_rows[cp::KINDS] = {CP_SINGLE_ROWS, CP_PAIR_ROWS, CP_QUAD_ROWS, CP_QUAD_ROWS};

// Fetches the rows that are copied next into the L2 cache, a few at a time, while the kernels compute.
struct prefetcher {
  uintptr_t row;                // address of the next row
  long pitch, channel_pitch;    // in bytes; channel_pitch from the last row of a channel to the first of the next
  int rows, row_index, left;    // rows of a channel, rows left to fetch
  int per_channel_of_output;    // how many to fetch while one output channel is computed

  void fetch(int channels) {
    for (int n = left < channels * per_channel_of_output ? left : channels * per_channel_of_output; n > 0; n--, left--) {
      __builtin_prefetch(reinterpret_cast<const void*>(row), 0, 2);
      __builtin_prefetch(reinterpret_cast<const void*>(row + CP_WIDTH * 4 + 4), 0, 2);
      row += ++row_index == rows ? channel_pitch : pitch;
      if (row_index == rows) row_index = 0;
    }
  }
};

// One chunk of a tile: every job over all `rows`. Returns the end of the chunk's words.
inline const word* run_chunk(const word* stream, const float* tile, int rows, vec* sums, prefetcher& next) {
  int parts[cp::KINDS];
  for (int k = 0; k < cp::KINDS; k++) parts[k] = (rows + kernel_rows[k] - 1) / kernel_rows[k];
  while (stream->i != cp::end_of_chunk) {
    const int k = stream->i;
    const word* end = nullptr;
    for (int part = 0, r = 0; part < parts[k]; part++) {
      const int n = (rows - r) / (parts[k] - part);  // rows shared out evenly among the parts
      end = kernels[k][n](reinterpret_cast<const char*>(tile + r * CP_WIDTH), stream + 1, sums + r);
      r += n;
    }
    stream = end;
    next.fetch(cp::channels_of[k]);
    sums += cp::channels_of[k] * CP_ROWS;
  }
  return stream + 1;
}

}  // namespace
