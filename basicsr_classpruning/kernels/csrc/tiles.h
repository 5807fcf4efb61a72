// The tile loops: copy a chunk of the input into the tile buffer, run the jobs on it, store the tile.
#pragma once
#include "copy.h"

namespace {

inline long ceil_div(long a, long b) { return (a + b - 1) / b; }
inline long at_most(long a, long b) { return a < b ? a : b; }

struct workspace {
  float* tile;
  vec* sums;
};

// The calling thread's tile buffer and sums; null where memory is short.
inline workspace get_workspace(const cp::header& h) {
  const long tile = ceil_div(h.chunk * cp::channel_floats(h), CP_WIDTH) * CP_WIDTH;  // the sums after it are aligned
  const long sums = static_cast<long>(h.geometry.out_channels) * CP_ROWS * CP_WIDTH;
  float* memory = cp::scratch(tile + sums);
  return {memory, memory ? reinterpret_cast<vec*>(memory + tile) : nullptr};
}

// A convolution whose output is cut into row blocks x column blocks.
struct planes {
  const cp_call& call;
  cp::header head;
  int32_t phase_index[cp::max_stride];
  long row_blocks, column_blocks;
  int failed = 0;  // set where scratch memory is short

  explicit planes(const cp_call& c) : call(c) {
    std::memcpy(&head, c.packed, sizeof head);
    cp::used_phases(head.geometry, phase_index);
    row_blocks = ceil_div(c.out_height, head.rows);
    column_blocks = ceil_div(c.out_width, CP_WIDTH);
  }
  long tiles() const { return call.batch * row_blocks * column_blocks; }

  // As copy_chunk, where there are COPIES shifted copies, rows of one vector and no strides: all copies of a row at a time,
  // while it is in the L1 cache.
  template <int COPIES>
  void copy_shifted(const float* image, int c0, int c1, long y0, long x0, int rows, float* tile) const {
    const cp_geometry& g = head.geometry;
    const long needed = rows + cp::shift_of(g, g.kernel_h - 1), first = y0 - g.pad_h;
    const long begin = at_most(needed, first < 0 ? -first : 0);
    const long inside = call.height - first, end = inside < begin ? begin : at_most(needed, inside);
    const long plane = static_cast<long>(head.plane_rows) * CP_WIDTH, d = g.dilation_w;
    const columns cols[3] = {{x0 - g.pad_w, 1, call.width}, {x0 - g.pad_w + d, 1, call.width}, {x0 - g.pad_w + 2 * d, 1, call.width}};
    const bool all = cols[0].all && cols[COPIES - 1].all;
    const float* from = image + c0 * call.x_stride_c + (first + begin) * call.x_stride_h + cols[0].left;
    for (int c = c0; c < c1; c++, from += call.x_stride_c, tile += COPIES * plane) {
      if (end - begin < needed)
        for (int k = 0; k < COPIES; k++) {
          std::memset(tile + k * plane, 0, begin * CP_WIDTH * sizeof(float));
          std::memset(tile + k * plane + end * CP_WIDTH, 0, (needed - end) * CP_WIDTH * sizeof(float));
        }
      const float* p = from;
      float* to = tile + begin * CP_WIDTH;
      if (all)
        for (long r = begin; r < end; r++, p += call.x_stride_h, to += CP_WIDTH)
#pragma GCC unroll 3
          for (int k = 0; k < COPIES; k++) *reinterpret_cast<vec*>(to + k * plane) = load_all(p + k * d);
      else
        for (long r = begin; r < end; r++, p += call.x_stride_h, to += CP_WIDTH)
#pragma GCC unroll 3
          for (int k = 0; k < COPIES; k++) *reinterpret_cast<vec*>(to + k * plane) = masked_load(p + k * d, cols[k].inside);
    }
  }

  // Copies the input that the output rows from y0 and columns from x0 read, channels [c0, c1).
  void copy_chunk(const float* image, int c0, int c1, long y0, long x0, int rows, float* tile) const {
    const cp_geometry& g = head.geometry;
    const int needed = rows + cp::shift_of(g, g.kernel_h - 1);
    const long plane = static_cast<long>(head.plane_rows) * head.pitch;
    for (int kx = 0; kx < head.copies; kx++) {
      const columns cols(x0 * g.stride_w - g.pad_w + kx * g.dilation_w, g.stride_w, call.width);
      const columns rest(cols.left + CP_WIDTH, 1, call.width);  // where a row is longer than a vector
      for (int p = 0; p < g.stride_h; p++) {
        if (phase_index[p] < 0) continue;
        // buffer row r is input row first + r * stride_h: those in [begin, end) are inside the picture
        const long first = y0 * g.stride_h + p - g.pad_h;
        const long begin = first < 0 ? at_most(needed, ceil_div(-first, g.stride_h)) : 0;
        const long inside = ceil_div(call.height - first, g.stride_h);
        const long end = inside < begin ? begin : at_most(needed, inside);
        float* to = tile + (kx * head.phases + phase_index[p]) * plane;
        const float* from = image + c0 * call.x_stride_c + (first + begin * g.stride_h) * call.x_stride_h + cols.left;
        for (int c = c0; c < c1; c++, from += call.x_stride_c, to += head.copies * head.phases * plane) {
          row_copy copy{from, g.stride_h * call.x_stride_h, to + begin * head.pitch, head.pitch, static_cast<int>(end - begin)};
          std::memset(to, 0, begin * head.pitch * sizeof(float));
          cols.copy<CP_WIDTH>(copy);
          if (head.pitch > CP_WIDTH) {
            copy.from += CP_WIDTH;
            copy.to += CP_WIDTH;
            rest.copy<CP_WIDTH / 2>(copy);
          }
          std::memset(to + end * head.pitch, 0, (needed - end) * head.pitch * sizeof(float));
        }
      }
    }
  }

  // The rows that copy_chunk will read.
  prefetcher prefetch_chunk(const float* image, int c0, int c1, long y0, long x0, int rows) const {
    const cp_geometry& g = head.geometry;
    const long top = y0 * g.stride_h - g.pad_h < 0 ? 0 : y0 * g.stride_h - g.pad_h;
    const long last = (y0 + rows - 1) * g.stride_h - g.pad_h + (g.kernel_h - 1) * g.dilation_h + 1;
    const long left = x0 * g.stride_w - g.pad_w < 0 ? 0 : x0 * g.stride_w - g.pad_w;
    const int needed = static_cast<int>(at_most(last, call.height) - top);
    const long pitch = call.x_stride_h * 4;
    prefetcher p;
    p.row = reinterpret_cast<uintptr_t>(image) + (c0 * call.x_stride_c + top * call.x_stride_h + left) * 4;
    p.pitch = pitch;
    p.channel_pitch = call.x_stride_c * 4 - (needed - 1) * pitch;
    p.rows = needed;
    p.row_index = 0;
    p.left = needed > 0 ? needed * (c1 - c0) : 0;
    p.per_channel_of_output = static_cast<int>(ceil_div(p.left, g.out_channels));
    return p;
  }

  void run_tile(long index) {
    const long column = index % column_blocks, block = index / column_blocks % row_blocks;
    const long image = index / column_blocks / row_blocks;
    const long y0 = block * call.out_height / row_blocks, y1 = (block + 1) * call.out_height / row_blocks;
    const long x0 = column * CP_WIDTH;
    const place at{image, y0, x0, static_cast<int>(y1 - y0), static_cast<int>(at_most(CP_WIDTH, call.out_width - x0))};
    place next = at;
    next.x0 = column + 1 == column_blocks ? 0 : x0 + CP_WIDTH;
    if (column + 1 == column_blocks) next.y0 = y1;
    run_at(at, next);
  }

  // Computes one tile; `next` is what probably follows.
  void run_at(const place& at, const place& next_place) {
    const cp_geometry& g = head.geometry;
    const workspace w = get_workspace(head);
    if (!w.tile) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    const long y0 = at.y0, x0 = at.x0;
    const int rows = at.rows;
    const float* x = call.x + at.image * call.x_stride_n;
    start_with_bias(w.sums, call.bias, g.out_channels, rows);
    const word* stream = call.packed + cp::header_words;
    for (int c0 = 0; c0 < g.in_channels; c0 += head.chunk) {
      const int c1 = static_cast<int>(at_most(c0 + head.chunk, g.in_channels));
      const bool simple = g.stride_h == 1 && g.stride_w == 1 && head.pitch == CP_WIDTH;
      if (simple && head.copies == 3)
        copy_shifted<3>(x, c0, c1, y0, x0, rows, w.tile);
      else if (simple && head.copies == 1)
        copy_shifted<1>(x, c0, c1, y0, x0, rows, w.tile);
      else
        copy_chunk(x, c0, c1, y0, x0, rows, w.tile);
      prefetcher next = c1 < g.in_channels
                            ? prefetch_chunk(x, c1, static_cast<int>(at_most(c1 + head.chunk, g.in_channels)), y0, x0, rows)
                            : prefetch_chunk(x, 0, static_cast<int>(at_most(head.chunk, g.in_channels)), next_place.y0, next_place.x0,
                                             next_place.rows);
      if (c1 < g.in_channels || call.shuffle > 1)
        stream = run_chunk(stream, w.tile, head.pitch, rows, w.sums, next, [](int, int) {});
      else  // stored as soon as they are known, while others are computed
        run_chunk(stream, w.tile, head.pitch, rows, w.sums, next, [&](int o, int channels) {
          CP_WITH_ACTIVATION(call.activation, store_planes, w.sums + o * CP_ROWS, at, o, channels, call);
        });
    }
    if (call.shuffle > 1) CP_WITH_ACTIVATION(call.activation, store_shuffled, w.sums, at, 0, g.out_channels, call);
  }
};

// Neighbouring tiles share cache lines of the output: a thread takes a whole line's worth at once.
template <class Layer>
constexpr long tiles_at_once = 16 / CP_WIDTH;

template <class Layer>
void run_tiles(void* layer, long ticket) {
  Layer* l = static_cast<Layer*>(layer);
  const long end = at_most((ticket + 1) * tiles_at_once<Layer>, l->tiles());
  for (long i = ticket * tiles_at_once<Layer>; i < end; i++) l->run_tile(i);
}

template <class Layer>
int run_layer(const cp_call& call) {
  Layer layer(call);
  if (layer.head.rows > CP_ROWS) return CP_NOT_PACKED_FOR_THIS;
  cp::parallel_for(ceil_div(layer.tiles(), tiles_at_once<Layer>), call.threads, run_tiles<Layer>, &layer);
  return layer.failed ? CP_NO_MEMORY : CP_OK;
}

int run_planes(const cp_call& call) { return run_layer<planes>(call); }

}  // namespace
