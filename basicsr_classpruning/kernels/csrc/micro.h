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

// sum += weight * x. Written as an instruction, as compilers would load x from memory again at each use, and loads are
// what a kernel for a single channel is bound by.
inline __attribute__((always_inline)) void add_product(vec& sum, vec weight, vec x) {
#if CP_WIDTH == 8 || defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(x));
#else
  sum += weight * x;
#endif
}

// `sum` is [channel][CP_ROWS] vectors; the kernel adds to the first R rows. Rows of the tile are `pitch` bytes apart.
// Returns the end of the job's words.
typedef const word* (*kernel)(const char* tile, long pitch, const word* job, vec* sum);

// N channels that use the same taps.
template <int N, int R>
const word* block_kernel(const char* tile, long pitch, const word* job, vec* sum) {
  if constexpr (N < 4) pitch = CP_WIDTH * sizeof(float);
  vec s[N][R];
#pragma GCC unroll 4
  for (int o = 0; o < N; o++)
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) s[o][r] = sum[o * CP_ROWS + r];
  const word* const end = job + 1 + job->i * (N + 1);
#pragma GCC unroll 4
  for (const word* e = job + 1; e != end; e += N + 1) {
    const char* p = tile + e->i;
    vec x[R];
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) x[r] = *reinterpret_cast<const unaligned_vec*>(p + r * pitch);
#pragma GCC unroll 4
    for (int o = 0; o < N; o++) {
      const vec w = broadcast(e[1 + o].f);
#pragma GCC unroll 32
      for (int r = 0; r < R; r++) s[o][r] += w * x[r];
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < N; o++)
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) sum[o * CP_ROWS + r] = s[o][r];
  return end;
}

// The groups of N channels x T kernel rows of which exactly the weights in USE (a bit mask) are not zero.
template <int N, int T, int USE, int R>
inline __attribute__((always_inline)) const word* class_loop(const char* tile, const word* e, int count,
                                                             vec (&s)[N][R]) {
  for (; count > 0; count--, e += 1 + __builtin_popcount(USE)) {
    const vec* p = reinterpret_cast<const vec*>(tile + e->i);
    const word* weight = e + 1;
    vec w[N * T];
#pragma GCC unroll 4
    for (int j = 0; j < N * T; j++)
      if (USE >> j & 1) w[j] = broadcast((weight++)->f);
#pragma GCC unroll 32
    for (int i = 0; i < R + T - 1; i++) {
      if (T > 1 && (i < __builtin_ctz(USE) || i > R - 1 + 31 - __builtin_clz(USE))) continue;
      const vec x = p[i];
#pragma GCC unroll 4
      for (int j = 0; j < N * T; j++)
        if ((USE >> j & 1) && i >= j % T && i - j % T < R) add_product(s[j / T][i - j % T], w[j], x);
    }
  }
  return e;
}

// The classes USE... one after the other.
template <int N, int T, int R, int... USE>
const word* classed_kernel(const char* tile, long, const word* job, vec* sum) {
  vec s[N][R];
#pragma GCC unroll 4
  for (int o = 0; o < N; o++)
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) s[o][r] = sum[o * CP_ROWS + r];
  const word* count = job;
  const word* e = job + sizeof...(USE);
  ((e = class_loop<N, T, USE, R>(tile, e, (count++)->i, s)), ...);
#pragma GCC unroll 4
  for (int o = 0; o < N; o++)
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) sum[o * CP_ROWS + r] = s[o][r];
  return e;
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
struct column {
  static constexpr kernel run = classed_kernel<1, cp::column_taps, R, CP_SHAPES>;
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
struct sorted_pair {
  static constexpr kernel run = classed_kernel<2, 1, R, 1, 2, 3>;
};
template <int R>
struct sorted_quad {
  static constexpr kernel run = classed_kernel<4, 1, R, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
};
constexpr by_rows<column, CP_ROWS> column_kernels;
constexpr by_rows<pair, CP_PAIR_ROWS> pair_kernels;
constexpr by_rows<quad, CP_QUAD_ROWS> quad_kernels;
constexpr by_rows<sorted_pair, CP_PAIR_ROWS> sorted_pair_kernels;
constexpr by_rows<sorted_quad, CP_QUAD_ROWS> sorted_quad_kernels;
constexpr const kernel* kernels[cp::KINDS] = {column_kernels.table, pair_kernels.table, quad_kernels.table,
                                              sorted_pair_kernels.table, sorted_quad_kernels.table};
constexpr int kernel_rows[cp::KINDS] = {CP_ROWS, CP_PAIR_ROWS, CP_QUAD_ROWS, CP_PAIR_ROWS, CP_QUAD_ROWS};

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

// One chunk of a tile, its rows `pitch` floats apart: every job over all `rows`, and after(first channel, channels) it.
// Returns the end of the chunk's words.
template <class After>
const word* run_chunk(const word* stream, const float* tile, long pitch, int rows, vec* sums, prefetcher& next, After after) {
  int parts[cp::KINDS];
  for (int k = 0; k < cp::KINDS; k++) parts[k] = (rows + kernel_rows[k] - 1) / kernel_rows[k];
  while (stream->i != cp::end_of_chunk) {
    const int k = stream->i;
    const word* end = nullptr;
    for (int part = 0, r = 0; part < parts[k]; part++) {
      const int n = (rows - r) / (parts[k] - part);  // rows shared out evenly among the parts
      const char* from = reinterpret_cast<const char*>(tile + r * pitch);
      end = kernels[k][n](from, pitch * static_cast<long>(sizeof(float)), stream + 2, sums + stream[1].i * CP_ROWS + r);
      r += n;
    }
    after(stream[1].i, cp::channels_of[k]);
    stream = end;
    next.fetch(cp::channels_of[k]);
  }
  return stream + 1;
}

}  // namespace
