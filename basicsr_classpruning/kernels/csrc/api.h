// The C interface of the compiled kernels: plain C types only, so that one binary serves every version of Python and
// torch (it is loaded with ctypes). All sizes are in elements, strides too, unless said otherwise.
#pragma once
#include "jobs.h"

// A 32-bit word of a packed weight: offsets and counts are integers, weights are floats.
union word {
  int32_t i;
  float f;
};

enum cp_isa { CP_AVX2 = 0, CP_AVX512 = 1, CP_WIDE = 2 };  // CP_WIDE: the 16-wide code in AVX2 instructions, for tests

enum cp_status { CP_OK = 0, CP_NOT_SUPPORTED = 1, CP_NOT_PACKED_FOR_THIS = 2, CP_NO_MEMORY = 3, CP_WRONG_SIZES = 4 };

enum cp_activation { CP_NONE = 0, CP_RELU = 1, CP_LEAKY = 2, CP_PRELU = 3, CP_GELU = 4 };

constexpr int cp_most_shuffle = 4;

enum cp_residual { CP_NO_RESIDUAL = 0, CP_BEFORE_ACTIVATION = 1, CP_AFTER_ACTIVATION = 2 };

// What a weight was packed for. A linear layer is a 1 x 1 convolution.
struct cp_geometry {
  int32_t out_channels, in_channels;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// y = activation(conv(x) + bias [+ residual]) [+ residual]
//
// The pixels of a row of x lie side by side; y is (batch, out_channels, out_height, out_width), contiguous. With a pixel
// shuffle by r, y = shuffle(activation(conv(x) + bias)) [+ residual], (batch, out_channels / r^2, out_height r, out_width r).
struct cp_call {
  const word* packed;
  const float* x;
  float* y;
  const float* bias;      // (out_channels) or null
  const float* residual;  // laid out as y, or null
  const float* slope;     // CP_PRELU: (out_channels); CP_LEAKY: one value; otherwise null
  int64_t batch, in_channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t x_stride_n, x_stride_c, x_stride_h;
  int32_t activation;  // cp_activation
  int32_t order;       // cp_residual
  int32_t shuffle;     // 1: none
  int32_t threads;
  const cp_jobs* jobs;  // null: the whole output. Otherwise what is computed; `packed` and `bias` are not read
};

#define CP_EXPORT __attribute__((visibility("default")))

extern "C" {
CP_EXPORT int32_t cp_abi_version();
// 1 where this processor can run the code of that cp_isa.
CP_EXPORT int32_t cp_supported(int32_t isa);
// Lends the kernels the thread pool of an OpenMP runtime that is already in the process (its GOMP_parallel), so that
// two pools do not fight for the cores. With null, or never called, threads are started for each call.
CP_EXPORT void cp_use_parallel(void (*gomp_parallel)(void (*)(void*), void*, unsigned, unsigned));
// Packs a weight (out, in, kernel_h, kernel_w), contiguous. Returns the number of words; writes them where `packed`
// is not null (at most 64 + 2 * weights + (9 * out + 1) * in of them). Zeros are dropped.
CP_EXPORT int64_t cp_pack(const float* weight, const cp_geometry* geometry, int32_t isa, word* packed);
// Packs a weight for Winograd's algorithm: a 3 x 3 kernel with strides and dilations of 1. Otherwise as cp_pack; 0 for
// another geometry. Kernels that are zero in all output channels of a block are dropped.
CP_EXPORT int64_t cp_pack_winograd(const float* weight, const cp_geometry* geometry, int32_t isa, word* packed);
// Joins equal cells (rows, columns) to rectangles; those below CP_NOTHING are left out. Writes at most as many jobs as there
// are cells, returns how many.
CP_EXPORT int64_t cp_join_cells(const int32_t* cells, int32_t rows, int32_t columns, cp_job* jobs);
// Returns a cp_status.
CP_EXPORT int32_t cp_run(const cp_call* call);
}
