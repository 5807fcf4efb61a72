// Packing int8 weights: the units that are not zero, in the order in which the kernels walk through them.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "int8.h"

namespace cp {
namespace {

struct unit {
  int8_t w[4];
  int32_t bits() const {
    int32_t i;
    std::memcpy(&i, w, sizeof i);
    return i;
  }
  int pair(int i) const { return std::abs(w[2 * i]) + std::abs(w[2 * i + 1]); }
  int most() const { return std::max(pair(0), pair(1)); }
};

struct entry {
  int32_t offset;
  unit u;
};

// Entries of which all can be multiplied in 16 bits, those that two may be added in as neighbours.
struct sorted_entries {
  std::vector<entry> single, twins;
};

sorted_entries sorted_by_size(const std::vector<entry>& all) {
  std::vector<entry> fit;
  for (const entry& e : all) {
    if (e.u.most() <= int8_most_pair) {
      fit.push_back(e);
      continue;
    }
    entry half = e, rest = e;  // magnitudes of at most 64
    for (int i = 0; i < 4; i++) {
      half.u.w[i] = static_cast<int8_t>(e.u.w[i] / 2);
      rest.u.w[i] = static_cast<int8_t>(e.u.w[i] - half.u.w[i]);
    }
    fit.push_back(half);
    fit.push_back(rest);
  }
  std::stable_sort(fit.begin(), fit.end(), [](const entry& a, const entry& b) { return a.u.most() > b.u.most(); });
  sorted_entries result;
  size_t first = 0, last = fit.size();
  while (first < last) {
    const entry& large = fit[first++];
    const bool two = first < last && large.u.pair(0) + fit[last - 1].u.pair(0) <= int8_most_pair &&
                     large.u.pair(1) + fit[last - 1].u.pair(1) <= int8_most_pair;
    if (two) {
      result.twins.push_back(large);
      result.twins.push_back(fit[--last]);
    } else {
      result.single.push_back(large);
    }
  }
  return result;
}

struct int8_packer {
  const int8_t* weight;
  const cp_geometry& g;
  int isa;
  word* out;
  int64_t size = 0;
  int8_header head = {};
  int32_t phase_index[max_stride] = {};

  void put(int32_t i) {
    if (out) out[size].i = i;
    size++;
  }

  int8_t at(int o, int c, int ky, int kx) const {
    if (o >= g.out_channels || c >= g.in_channels) return 0;
    return weight[((static_cast<int64_t>(o) * g.in_channels + c) * g.kernel_h + ky) * g.kernel_w + kx];
  }

  unit unit_at(int o, int u, int ky, int kx) const {
    unit found;
    for (int i = 0; i < 4; i++) found.w[i] = at(o, 4 * u + i, ky, kx);
    return found;
  }

  // Calls f(mask, u, ky, kx) for the taps of `group` output channels from o at units [u0, u1), where not all are zero.
  template <class F>
  void taps(int o, int group, int u0, int u1, F f) const {
    for (int u = u0; u < u1; u++)
      for (int kx = 0; kx < g.kernel_w; kx++)
        for (int ky = 0; ky < g.kernel_h; ky++) {
          int mask = 0;
          for (int j = 0; j < group; j++) mask |= (unit_at(o + j, u, ky, kx).bits() != 0) << j;
          if (mask) f(mask, u, ky, kx);
        }
  }

  int32_t offset(int u, int ky, int kx) const {
    const int plane = (u * g.kernel_w + kx) * head.phases + phase_index[phase_of(g, ky)];
    return (plane * head.plane_rows + shift_of(g, ky)) * int8_width(isa) * 4;
  }

  // As many channels as there are registers for. With vpdpbusd loads would bound a channel alone; vpmaddubsw needs two
  // more instructions for each load.
  int group() const { return isa == CP_INT8_AVX512VNNI ? 4 : isa == CP_INT8_AVXVNNI ? 2 : 1; }

  void plan() {
    head.magic = int8_magic;
    head.isa = isa;
    head.geometry = g;
    head.group = group();
    head.phases = used_phases(g, phase_index);
    head.plane_rows = int8_tile_rows + shift_of(g, g.kernel_h - 1);
    const long bytes = static_cast<long>(g.kernel_w) * head.phases * head.plane_rows * int8_width(isa) * 4;
    // Somewhat more than the L1 cache holds: the sums are then fetched and stored less often.
    const long bytes_at_once = machine_of(CP_AVX512).l1_bytes * 8 / 5;
    const long units = int8_units(g.in_channels), most = std::max(1L, bytes_at_once / bytes);
    const long chunks = (units + most - 1) / most;
    head.chunk = static_cast<int32_t>((units + chunks - 1) / chunks);
  }

  void job(int o, int u0, int u1) {
    for (int cls = 1; cls < 1 << head.group; cls++) {
      int entries = 0;
      taps(o, head.group, u0, u1, [&](int mask, int, int, int) { entries += mask == cls; });
      put(entries);
    }
    for (int cls = 1; cls < 1 << head.group; cls++)
      taps(o, head.group, u0, u1, [&](int mask, int u, int ky, int kx) {
        if (mask != cls) return;
        put(offset(u - u0, ky, kx));
        for (int j = 0; j < head.group; j++)
          if (mask >> j & 1) put(unit_at(o + j, u, ky, kx).bits());
      });
  }

  void job_of_pairs(int o, int u0, int u1) {
    std::vector<entry> all;
    taps(o, 1, u0, u1, [&](int, int u, int ky, int kx) { all.push_back({offset(u - u0, ky, kx), unit_at(o, u, ky, kx)}); });
    const sorted_entries sorted = sorted_by_size(all);
    put(static_cast<int32_t>(sorted.single.size()));
    put(static_cast<int32_t>(sorted.twins.size() / 2));
    for (const std::vector<entry>* list : {&sorted.single, &sorted.twins})
      for (const entry& e : *list) {
        put(e.offset);
        put(e.u.bits());
      }
  }

  void write() {
    plan();
    size = int8_header_words;
    for (int o = 0; o < g.out_channels; o++) {
      int32_t sum = 0;
      for (int c = 0; c < g.in_channels; c++)
        for (int t = 0; t < g.kernel_h * g.kernel_w; t++) sum += at(o, c, t / g.kernel_w, t % g.kernel_w);
      put(sum);
    }
    const int units = static_cast<int>(int8_units(g.in_channels));
    for (int u0 = 0; u0 < units; u0 += head.chunk)
      for (int o = 0; o < g.out_channels; o += head.group)
        if (isa == CP_INT8_AVX2)
          job_of_pairs(o, u0, std::min(u0 + head.chunk, units));
        else
          job(o, u0, std::min(u0 + head.chunk, units));
    if (out) std::memcpy(out, &head, sizeof head);
  }
};

}  // namespace
}  // namespace cp

int64_t cp_int8_pack(const int8_t* weight, const cp_geometry* geometry, int32_t isa, word* packed) {
  cp::int8_packer packer{weight, *geometry, isa, packed};
  packer.write();
  return packer.size;
}
