// Checks calls of int8 layers before they reach the code of their instruction set.
#include <cpuid.h>

#include <cstring>

#include "int8.h"

namespace cp {
namespace {

bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

const int8_engine* int8_engine_of(int isa) {
  if (!cp_int8_supported(isa)) return nullptr;
  return isa == CP_INT8_AVX2 ? &int8_avx2_engine : isa == CP_INT8_AVXVNNI ? &int8_avxvnni_engine : &int8_avx512_engine;
}

int64_t output_size(int64_t size, int kernel, int stride, int pad, int dilation) {
  return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

bool fits(const cp_int8_call& c, const int8_header& h) {
  const cp_geometry& g = h.geometry;
  const int32_t r = c.shuffle;
  return h.magic == int8_magic && g.in_channels == c.in_channels && g.out_channels == c.out_channels &&
         output_size(c.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h) == c.out_height &&
         output_size(c.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w) == c.out_width &&
         c.activation != CP_GELU &&
         (r == 1 || (r > 1 && r <= cp_most_shuffle && c.out_channels % (r * r) == 0 && c.order != CP_BEFORE_ACTIVATION));
}

// A pointwise convolution as one of pictures a vector wide: the tiles are then whole runs of memory.
cp_int8_call flattened(const cp_int8_call& c, const int8_header& h) {
  const cp_geometry& g = h.geometry;
  const int64_t pixels = c.height * c.width;
  const int width = int8_width(h.isa);
  cp_int8_call flat = c;
  const bool pointwise = g.kernel_h * g.kernel_w * g.stride_h * g.stride_w == 1 && g.pad_h + g.pad_w == 0;
  if (!pointwise || c.shuffle > 1 || pixels % width) return flat;
  flat.height = flat.out_height = pixels / width;
  flat.width = flat.out_width = width;
  return flat;
}

void ask_for_output_pages(const cp_int8_call& c) {
  const int64_t outputs = c.batch * c.out_channels * c.out_height * c.out_width;
  if (c.y) ask_for_huge_pages(c.y, outputs * static_cast<int64_t>(sizeof(float)));
  if (c.q) ask_for_huge_pages(c.q, outputs);
}

// A call whose parts take weights of their own.
int run_jobs(const cp_int8_call& c) {
  if (!jobs_fit(*c.jobs, c.out_height, c.out_width)) return CP_NOT_PACKED_FOR_THIS;
  int8_header first, h;
  std::memcpy(&first, c.jobs->weights[0].packed, sizeof first);
  for (int k = 0; k < c.jobs->weight_count; k++) {
    std::memcpy(&h, c.jobs->weights[k].packed, sizeof h);
    const bool alike = h.isa == first.isa && !std::memcmp(&h.geometry, &first.geometry, sizeof h.geometry);
    if (!alike || !fits(c, h)) return CP_NOT_PACKED_FOR_THIS;
  }
  const int8_engine* engine = int8_engine_of(first.isa);
  if (!engine) return CP_NOT_SUPPORTED;
  ask_for_output_pages(c);
  const plan made = make_plan(*c.jobs, c.batch, int8_tile_rows, int8_width(first.isa), int8_halves(c, first.geometry));
  return engine->jobs(c, made.parts.data(), made.tickets.data(), static_cast<long>(made.tickets.size()));
}

}  // namespace
}  // namespace cp

int32_t cp_int8_supported(int32_t isa) {
  if (!cp_supported(CP_AVX2)) return 0;
  if (isa == CP_INT8_AVXVNNI) return cp::int8_avxvnni_compiled && cp::has_avxvnni();
  if (isa == CP_INT8_AVX512VNNI)
    return cp_supported(CP_AVX512) && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
  return isa == CP_INT8_AVX2;
}

int32_t cp_int8_run(const cp_int8_call* call) {
  if (call->jobs) return cp::run_jobs(*call);
  cp::int8_header head;
  std::memcpy(&head, call->packed, sizeof head);
  if (!cp::fits(*call, head)) return CP_NOT_PACKED_FOR_THIS;
  const cp::int8_engine* engine = cp::int8_engine_of(head.isa);
  cp::ask_for_output_pages(*call);
  return engine ? engine->run(cp::flattened(*call, head)) : CP_NOT_SUPPORTED;
}

int32_t cp_int8_quantize(const cp_int8_quantize_call* call) {
  const cp::int8_engine* engine = cp::int8_engine_of(call->isa);
  return engine ? engine->quantize(*call) : CP_NOT_SUPPORTED;
}
