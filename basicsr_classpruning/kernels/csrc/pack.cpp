// Packing: the non-zeros of a weight in the order in which the kernels walk through them.
#include <algorithm>
#include <cstring>
#include <vector>

#include "layout.h"

namespace cp {
namespace {

// Writes words, or only counts them.
struct sink {
  word* out;
  int64_t size = 0;
  void put(int32_t i) {
    if (out) out[size].i = i;
    size++;
  }
  void put(float f) {
    if (out) out[size].f = f;
    size++;
  }
};

struct packer {
  const float* weight;
  const cp_geometry& g;
  const machine& cpu;
  header head;
  sink words;
  int32_t phase_index[max_stride];

  float at(int o, int c, int ky, int kx) const {
    return weight[((static_cast<int64_t>(o) * g.in_channels + c) * g.kernel_h + ky) * g.kernel_w + kx];
  }

  void plan() {
    std::memset(&head, 0, sizeof head);
    head.magic = magic;
    head.geometry = g;
    head.phases = used_phases(g, phase_index);
    head.rows = cpu.rows;
    head.plane_rows = cpu.rows + shift_of(g, g.kernel_h - 1);
    const long bytes = channel_floats(head, cpu.width) * static_cast<long>(sizeof(float));
    const long most = std::max(1L, cpu.l1_bytes / bytes);
    const long chunks = std::max(1L, (g.in_channels + most - 1) / most);
    head.chunk = static_cast<int32_t>(std::max(1L, (g.in_channels + chunks - 1) / chunks));
  }

  // Calls f(use, offset, c, ky, kx) for the positions of a chunk that one of `count` channels from o uses.
  template <class F>
  void positions(int o, int count, int c0, int c1, F f) const {
    const int row = cpu.width * static_cast<int>(sizeof(float));
    for (int c = c0; c < c1; c++)
      for (int kx = 0; kx < g.kernel_w; kx++)
        for (int ky = 0; ky < g.kernel_h; ky++) {
          int use = 0;
          for (int j = 0; j < count; j++) use |= (at(o + j, c, ky, kx) != 0.f) << j;
          if (!use) continue;
          const int plane = ((c - c0) * g.kernel_w + kx) * head.phases + phase_index[phase_of(g, ky)];
          f(use, (plane * head.plane_rows + shift_of(g, ky)) * row, c, ky, kx);
        }
  }

  // Whether computing `count` channels together wastes few multiplications.
  bool share(int o, int count) const {
    if (o + count > g.out_channels) return false;
    int64_t used = 0, all = 0;
    positions(o, count, 0, g.in_channels, [&](int use, int, int, int, int) {
      used += __builtin_popcount(use);
      all += count;
    });
    return all * 10 <= used * 11;
  }

  std::vector<kind> jobs() const {
    std::vector<kind> list;
    for (int o = 0; o < g.out_channels; o += channels_of[list.back()]) {
      if (share(o, 4))
        list.push_back(QUAD);
      else if (cpu.sorted && o + 4 <= g.out_channels)
        list.push_back(SORTED_QUAD);
      else
        list.push_back(share(o, 2) ? PAIR : SINGLE);
    }
    return list;
  }

  void block_job(kind k, int o, int c0, int c1) {
    const int count = channels_of[k];
    int entries = 0;
    positions(o, count, c0, c1, [&](int, int, int, int, int) { entries++; });
    words.put(entries);
    positions(o, count, c0, c1, [&](int, int offset, int c, int ky, int kx) {
      words.put(offset);
      for (int j = 0; j < count; j++) words.put(at(o + j, c, ky, kx));
    });
    head.counts[k] += entries * count;
  }

  void sorted_job(int o, int c0, int c1) {
    int entries[classes] = {};
    positions(o, 4, c0, c1, [&](int use, int, int, int, int) { entries[use - 1]++; });
    for (int n : entries) words.put(n);
    for (int cls = 1; cls <= classes; cls++) {
      positions(o, 4, c0, c1, [&](int use, int offset, int c, int ky, int kx) {
        if (use != cls) return;
        words.put(offset);
        for (int j = 0; j < 4; j++)
          if (use >> j & 1) words.put(at(o + j, c, ky, kx));
      });
      head.counts[SORTED_QUAD] += entries[cls - 1] * __builtin_popcount(cls);
    }
  }

  void write() {
    words.size = header_words;
    const std::vector<kind> list = jobs();
    for (int c0 = 0; c0 < g.in_channels; c0 += head.chunk) {
      const int c1 = std::min(c0 + head.chunk, g.in_channels);
      int o = 0;
      for (kind k : list) {
        words.put(static_cast<int32_t>(k));
        if (k == SORTED_QUAD)
          sorted_job(o, c0, c1);
        else
          block_job(k, o, c0, c1);
        o += channels_of[k];
      }
      words.put(end_of_chunk);
    }
    if (words.out) std::memcpy(words.out, &head, sizeof head);
  }
};

}  // namespace
}  // namespace cp

int64_t cp_pack(const float* weight, const cp_geometry* geometry, int32_t isa, word* packed) {
  cp::packer p{weight, *geometry, cp::machine_of(isa), {}, {packed}, {}};
  p.plan();
  p.head.isa = isa;
  p.write();
  return p.words.size;
}

void cp_packed_share(const word* packed, int64_t counts[4]) {
  cp::header head;
  std::memcpy(&head, packed, sizeof head);
  for (int k = 0; k < cp::KINDS; k++) counts[k] = head.counts[k];
}
