// How a packed weight and the tile buffers are laid out: what packing writes and the tile loops read.
//
// The output is cut into tiles of up to `rows` x `width` (one vector wide). For each tile the input channels are taken
// in chunks that fit the L1 cache: the chunk's input is copied into a tile buffer
//     [channel of the chunk][copy][row phase][row][pitch]
// Rows are split by their phase (input row modulo the stride), so that consecutive output rows are consecutive rows of
// the buffer for any stride. An output channel then walks through its non-zeros: (byte offset into the buffer, weight).
//
// There is one copy for each kernel column, shifted, so that every vector load is aligned, and a row is one vector. Where
// all output channels are computed four together, a vector serves four multiply-adds and loads do not count: then there
// is one copy of half a vector more a row, which takes half the time and half the cache.
#pragma once
#include <vector>

#include "api.h"

struct cp_pointwise_call;
struct cp_depthwise_call;
struct cp_attention_call;

namespace cp {

// Kernels: how many output channels one job computes together.
//
// PAIR and QUAD are channels that use the same taps. Other channels share what they load in groups, which are classed by
// which of the group's weights are not zero, each class with its own loop:
// COLUMN: a single channel; up to three kernel rows at one input channel and kernel column read the same input rows, one
// further each. SORTED_PAIR, SORTED_QUAD: two or four channels at one tap, where there are no such kernel rows.
enum kind { COLUMN = 0, PAIR = 1, QUAD = 2, SORTED_PAIR = 3, SORTED_QUAD = 4, KINDS = 5 };
constexpr int channels_of[KINDS] = {1, 2, 4, 2, 4};
constexpr int column_taps = 3;
// The classes of a COLUMN: bit masks of kernel rows that are not zero, counted from the first that is not. Few classes,
// as the end of every loop may be mispredicted; other masks are taken apart.
#define CP_SHAPES 1, 3, 5, 7
constexpr int shapes[] = {CP_SHAPES};
constexpr int shape_count = sizeof shapes / sizeof *shapes;

struct header {
  int32_t magic, isa;
  cp_geometry geometry;
  int32_t copies;       // of an input channel in the buffer: kernel_w, or 1
  int32_t pitch;        // floats of a row in the buffer
  int32_t chunk;        // input channels copied at a time
  int32_t rows;         // output rows of a tile
  int32_t plane_rows;   // rows of one phase in the buffer
  int32_t phases;       // row phases that some kernel row reads
};
constexpr int32_t magic = 0x4e4d3032;
constexpr int header_words = sizeof(header) / sizeof(word);
// After the header: for each chunk, for each job:
//   word 0: kind, word 1: first output channel. PAIR, QUAD: a count, then count x (offset, one weight per channel).
//   COLUMN, SORTED_*: a count for each class, then for each class its entries (offset of the group's first tap that is not
//   zero, the weights that are not zero).
// The stream of a chunk ends with kind = -1.
constexpr int32_t end_of_chunk = -1;

// A weight packed for Winograd's algorithm (winograd.h) has the same header with another magic; `chunk` is how many
// regions of the output make a job. After it, from winograd_words on, for each block of output channels:
//   word 0: vectors of output channels, word 1: how many input channels any of them uses, then which; filled up to whole
//   cache lines. Then [plane][input channel that is used][output channel of the block], of transformed weights.
constexpr int32_t winograd_magic = 0x4e4d5744;
constexpr int winograd_words = 32;
constexpr int winograd_planes = 64;
constexpr int most_block_vectors = 3;
constexpr int most_regions = 16;
constexpr int block_words = 2;

// Words before the transformed weights of a block.
inline int64_t list_words(int64_t channels) { return (block_words + channels + 15) / 16 * 16; }

struct machine {
  int width;     // floats of a vector
  int rows;      // most output rows of a tile
  int l1_bytes;  // what a tile buffer may take of the L1 cache
  int l2_bytes;  // what Winograd's planes may take of the L2 cache
  int flat_rows;  // the same of a layer without kernel rows, whose channels need less of the cache each
  int sorted;    // the kind of jobs where there is one kernel row
};
const machine& machine_of(int isa);

// Floats of one input channel in the tile buffer.
inline long channel_floats(const header& h) {
  return static_cast<long>(h.copies) * h.phases * h.plane_rows * h.pitch;
}

// Index of a row phase among those used, and the rows a kernel row is shifted by within its phase.
inline int phase_of(const cp_geometry& g, int ky) { return (ky * g.dilation_h) % g.stride_h; }
inline int shift_of(const cp_geometry& g, int ky) { return (ky * g.dilation_h) / g.stride_h; }

// Fills `index` (stride_h entries): position among the used phases, or -1. Returns how many are used.
inline int used_phases(const cp_geometry& g, int32_t* index) {
  for (int p = 0; p < g.stride_h; p++) index[p] = -1;
  int used = 0;
  for (int ky = 0; ky < g.kernel_h; ky++)
    if (index[phase_of(g, ky)] < 0) index[phase_of(g, ky)] = used++;
  return used;
}
constexpr int max_stride = 4;

// Scratch memory of the calling thread, aligned to 64 bytes; null if there is none.
float* scratch(long floats);

// A large output is new memory at every call; huge pages, where the system allows them, take far fewer page faults.
void ask_for_huge_pages(const void* memory, int64_t bytes);

// Calls body(context, index) for index in [0, count), on up to `threads` threads.
void parallel_for(long count, int threads, void (*body)(void*, long), void* context);

// Part of an output, in pixels before a shuffle.
struct part {
  int32_t image, y, x, rows, columns;
};

// What a thread takes at once: parts with one weight, or CP_NOTHING.
struct ticket {
  int32_t weight, first, count;
};

struct plan {
  std::vector<part> parts;
  std::vector<ticket> tickets;
};
// The jobs of a call of float32, cut for the kernels that its weights were packed for.
plan make_plan(const cp_jobs& jobs, int64_t batch, const machine& cpu);
// Jobs cut into tiles of at most rows x width pixels; with `halves` what is left at most half as wide into tiles of at
// most 2 rows x width / 2.
plan make_plan(const cp_jobs& jobs, int64_t batch, int rows, int width, bool halves);
// Whether jobs lie in an output, before a pixel shuffle, and name weights that are there.
bool jobs_fit(const cp_jobs& jobs, int64_t out_height, int64_t out_width);

// The tile loops of one instruction set. A call returns cp_status.
struct engine {
  int (*planes)(const cp_call&);
  int (*winograd)(const cp_call&);
  int (*jobs)(const cp_call&, const part*, const ticket*, long tickets);
  int (*pointwise)(const cp_pointwise_call&);
  int (*depthwise)(const cp_depthwise_call&);
  int (*attention)(const cp_attention_call&);
};
const engine* engine_of(int isa);  // null where this processor cannot run it
extern const engine avx2_engine, avx512_engine, wide_engine;

}  // namespace cp
