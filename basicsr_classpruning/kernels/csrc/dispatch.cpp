// Chooses the code by the processor, and checks calls before they reach it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

#include "between_layout.h"
#include "machine.h"
#include "pointwise_layout.h"

namespace cp {
namespace {

// A 32nd of a core's first data cache, in bytes; that of 32 KiB where the system does not say.
int l1_part() {
  const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  return bytes > 0 ? static_cast<int>(bytes / 32) : 1 << 10;
}

int l2_bytes() {
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? static_cast<int>(bytes) : 512 << 10;
}

}  // namespace

const machine& machine_of(int isa) {
  // Shares of the cache that were the fastest with 32 and with 48 KiB.
  static const machine avx2 = {CP_AVX2_WIDTH, CP_AVX2_ROWS, 26 * l1_part(), l2_bytes() / 2, 12, SORTED_PAIR};
  static const machine avx512 = {CP_AVX512_WIDTH, CP_AVX512_ROWS, 26 * l1_part(), l2_bytes() / 2, 6, SORTED_QUAD};
  return isa == CP_AVX2 ? avx2 : avx512;
}

void ask_for_huge_pages(const void* memory, int64_t bytes) {
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (first + page - 1) / page * page, end = (first + bytes) / page * page;
  if (bytes >= static_cast<int64_t>(page) && begin < end)
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

const engine* engine_of(int isa) {
  if (!cp_supported(isa)) return nullptr;
  return isa == CP_AVX2 ? &avx2_engine : isa == CP_AVX512 ? &avx512_engine : &wide_engine;
}

namespace {

int64_t output_size(int64_t size, int kernel, int stride, int pad, int dilation) {
  return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

// Whether the call's sizes are those that its weight was packed for, so that nothing outside x and y is touched.
bool fits(const cp_call& c, const header& h) {
  const cp_geometry& g = h.geometry;
  return g.in_channels == c.in_channels && g.out_channels == c.out_channels &&
         output_size(c.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h) == c.out_height &&
         output_size(c.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w) == c.out_width;
}

bool can_shuffle(const cp_call& c, const header& h) {
  const int32_t r = c.shuffle;
  // Winograd's blocks of output channels end within a row of three pixels
  if (h.magic == winograd_magic && r == 3) return false;
  return r == 1 || (r > 1 && r <= cp_most_shuffle && c.out_channels % (r * r) == 0 &&
                    c.order != CP_BEFORE_ACTIVATION);
}

int64_t output_bytes(const cp_call& c) {
  return c.batch * c.out_channels * c.out_height * c.out_width * static_cast<int64_t>(sizeof(float));
}

bool is_pointwise(const cp_geometry& g) {
  return g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_h == 0 && g.pad_w == 0;
}

// A pointwise convolution of contiguous planes as one of pictures a vector wide: the tiles are then whole runs of memory.
cp_call flattened(const cp_call& c, int width) {
  const int64_t pixels = c.height * c.width;
  cp_call flat = c;
  if (c.x_stride_h != c.width || c.shuffle > 1 || pixels % width) return flat;
  flat.height = flat.out_height = pixels / width;
  flat.width = flat.out_width = flat.x_stride_h = width;
  return flat;
}

// Whether an activation has what it needs.
bool has_slope(int32_t activation, const float* slope) {
  if (activation < CP_NONE || activation > CP_GELU) return false;
  return slope || (activation != CP_LEAKY && activation != CP_PRELU);
}

// Whether the sizes of calls without a packed weight fit each other.
bool fits(const cp_depthwise_call& c) {
  return c.batch >= 0 && c.channels > 0 && c.height > 0 && c.width > 0 && has_slope(c.activation, c.slope);
}

bool fits(const cp_attention_call& c) {
  return c.batch >= 0 && c.heads > 0 && c.channels > 0 && c.channels % c.heads == 0 && c.window > 0 &&
         c.window * c.window % 16 == 0 && c.height > 0 && c.height % c.window == 0 && c.width > 0 &&
         c.width % c.window == 0 && c.shift >= 0 && c.shift < c.window;
}

// A call whose parts take weights of their own.
int run_jobs(const cp_call& c) {
  if (!jobs_fit(*c.jobs, c.out_height, c.out_width)) return CP_NOT_PACKED_FOR_THIS;
  header first = {};
  for (int k = c.jobs->weight_count - 1; k >= 0; k--) {
    header h;
    std::memcpy(&h, c.jobs->weights[k].packed, sizeof h);
    if (k < c.jobs->weight_count - 1 && h.isa != first.isa) return CP_NOT_PACKED_FOR_THIS;
    if ((h.magic != magic && h.magic != winograd_magic) || !fits(c, h) || !can_shuffle(c, h)) return CP_NOT_PACKED_FOR_THIS;
    first = h;
  }
  const engine* engine = engine_of(first.isa);
  if (!engine) return CP_NOT_SUPPORTED;
  ask_for_huge_pages(c.y, output_bytes(c));
  const plan made = make_plan(*c.jobs, c.batch, machine_of(first.isa));
  return engine->jobs(c, made.parts.data(), made.tickets.data(), static_cast<long>(made.tickets.size()));
}

}  // namespace
}  // namespace cp

int32_t cp_abi_version() { return 10; }

int32_t cp_supported(int32_t isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == CP_AVX512) return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return (isa == CP_AVX2 || isa == CP_WIDE) && avx2;
#else
  return 0;
#endif
}

int32_t cp_run(const cp_call* call) {
  if (call->jobs) return cp::run_jobs(*call);
  cp::header head;
  std::memcpy(&head, call->packed, sizeof head);
  const bool winograd = head.magic == cp::winograd_magic;
  if (!winograd && head.magic != cp::magic) return CP_NOT_PACKED_FOR_THIS;
  if (!cp::fits(*call, head) || !cp::can_shuffle(*call, head)) return CP_NOT_PACKED_FOR_THIS;
  const cp::engine* engine = cp::engine_of(head.isa);
  if (!engine) return CP_NOT_SUPPORTED;
  cp::ask_for_huge_pages(call->y, cp::output_bytes(*call));
  const bool pointwise = cp::is_pointwise(head.geometry);
  if (winograd) return engine->winograd(*call);
  return engine->planes(pointwise ? cp::flattened(*call, cp::machine_of(head.isa).width) : *call);
}

int32_t cp_run_pointwise(const cp_pointwise_call* call) {
  cp::header head;  // the first fields are those of both packings
  std::memcpy(&head, call->packed, offsetof(cp::header, copies));
  const cp_geometry& g = head.geometry;
  const int64_t outputs = call->out_channels * (call->gate ? 2 : 1);
  if ((head.magic != cp::magic && head.magic != cp::pointwise_magic) || !cp::is_pointwise(g) || g.in_channels != call->in_channels || g.out_channels != outputs)
    return CP_NOT_PACKED_FOR_THIS;
  if (!cp::has_slope(call->activation, call->slope)) return CP_WRONG_SIZES;
  const cp::engine* engine = cp::engine_of(head.isa);
  return engine ? engine->pointwise(*call) : static_cast<int32_t>(CP_NOT_SUPPORTED);
}

int32_t cp_run_depthwise(const cp_depthwise_call* call) {
  if (!cp::fits(*call)) return CP_WRONG_SIZES;
  const cp::engine* engine = cp::engine_of(call->isa);
  return engine ? engine->depthwise(*call) : static_cast<int32_t>(CP_NOT_SUPPORTED);
}

int32_t cp_run_attention(const cp_attention_call* call) {
  if (!cp::fits(*call)) return CP_WRONG_SIZES;
  const cp::engine* engine = cp::engine_of(call->isa);
  return engine ? engine->attention(*call) : static_cast<int32_t>(CP_NOT_SUPPORTED);
}
