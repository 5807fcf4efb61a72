// Packs layers without taps as lists.
#include <algorithm>
#include <cstring>
#include <vector>

#include "machine.h"
#include "pointwise_layout.h"

namespace cp {
namespace {

struct lists {
  const float* weight;
  pointwise_header head;
  word* out;
  int64_t size = pointwise_words;

  void put(int32_t i) { out[size++].i = i; }
  void put(float f) { out[size++].f = f; }

  int channels() const { return head.geometry.in_channels; }

  const float* row(int o) const { return weight + static_cast<int64_t>(o) * channels(); }

  // Whether four channels from position i on have few zeros that the others lack.
  bool share(int i) const {
    if (i + 4 > head.geometry.out_channels) return false;
    int64_t used = 0, taken = 0;
    for (int c = 0; c < channels(); c++) {
      int here = 0;
      for (int j = 0; j < 4; j++) here += row(i + j)[c] != 0.f;
      used += here;
      taken += here ? 4 : 0;
    }
    return taken * 10 <= used * 11;
  }

  void quad_job(int i, int c0, int c1, int pitch) {
    put(4);
    const int64_t entries = size;
    put(0);
    int n = 0;
    for (int c = c0; c < c1; c++) {
      if (row(i)[c] == 0.f && row(i + 1)[c] == 0.f && row(i + 2)[c] == 0.f && row(i + 3)[c] == 0.f) continue;
      put((c - c0) * pitch);
      for (int j = 0; j < 4; j++) put(row(i + j)[c]);
      n++;
    }
    out[entries].i = n;
  }

  void single_job(int i, int c0, int c1) {
    const float* const w = row(i);
    std::vector<uint8_t> channels;
    put(1);
    put(static_cast<int32_t>(c1 - c0 - std::count(w + c0, w + c1, 0.f)));
    for (int c = c0; c < c1; c++)
      if (w[c] != 0.f) {
        put(w[c]);
        channels.push_back(static_cast<uint8_t>(c - c0));
      }
    if (!channels.empty()) std::memcpy(out + size, channels.data(), channels.size());
    size += index_words(static_cast<int64_t>(channels.size()));
  }

  void write(int pitch) {
    std::vector<int> counts;
    for (int i = 0; i < head.geometry.out_channels; i += counts.back()) counts.push_back(share(i) ? 4 : 1);
    for (int c0 = 0; c0 < channels(); c0 += head.chunk) {
      int i = 0;
      for (int count : counts) {
        const int c1 = std::min(c0 + head.chunk, channels());
        count == 1 ? single_job(i, c0, c1) : quad_job(i, c0, c1, pitch);
        i += count;
      }
    }
    std::memset(out, 0, pointwise_words * sizeof(word));
    std::memcpy(out, &head, sizeof head);
  }
};

// Vectors of a tile and channels of a chunk: a wide tile uses each weight often, a narrow one needs fewer chunks, after
// each of which sums are stored and loaded again. Chunks of whole groups of most patterns have lists of one length, whose
// ends are foreseen; another end costs as much as 40 multiply-adds.
void choose_sizes(pointwise_header& head, const machine& cpu, double kept) {
  const int channels = head.geometry.in_channels;
  double best = 0;
  for (int rows = pointwise_rows; rows >= 6; rows--) {
    const int most = std::clamp(cpu.l1_bytes / (rows * cpu.width * 4), 1, most_chunk);
    const int groups = most / 16 * 16;
    int chunk = channels <= most || !groups ? std::min(channels, most) : groups;
    const int chunks = (channels + chunk - 1) / chunk;
    if (groups) chunk = std::min(chunk, ((channels + chunks - 1) / chunks + 15) / 16 * 16);
    const double cost = kept * (rows + 2) / rows + chunks * (4 + (chunk < channels && chunk % 16 ? 40. / rows : 0));
    if (rows == pointwise_rows || cost < best) {
      best = cost;
      head.rows = rows;
      head.chunk = chunk;
    }
  }
}

}  // namespace
}  // namespace cp

int64_t cp_pack_pointwise(const float* weight, const cp_geometry* geometry, int32_t isa, word* packed) {
  const cp_geometry& g = *geometry;
  const cp::machine& cpu = cp::machine_of(isa);
  cp::pointwise_header head = {cp::pointwise_magic, isa, g, 0, 0};
  const int64_t weights = static_cast<int64_t>(g.out_channels) * g.in_channels;
  const int64_t used = weights - std::count(weight, weight + weights, 0.f);
  cp::choose_sizes(head, cpu, static_cast<double>(used) / g.out_channels);
  cp::lists lists{weight, head, packed};
  lists.write(head.rows * cpu.width * static_cast<int>(sizeof(float)));
  return lists.size;
}
