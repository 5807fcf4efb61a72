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
  std::vector<kind> jobs;  // in the order of the output channels
  int32_t phase_index[max_stride];

  float at(int o, int c, int ky, int kx) const {
    return weight[((static_cast<int64_t>(o) * g.in_channels + c) * g.kernel_h + ky) * g.kernel_w + kx];
  }

  void plan() {
    std::memset(&head, 0, sizeof head);
    head.magic = magic;
    head.geometry = g;
    head.phases = used_phases(g, phase_index);
    head.rows = g.kernel_h == 1 && g.kernel_w == 1 ? cpu.flat_rows : cpu.rows;
    head.plane_rows = head.rows + shift_of(g, g.kernel_h - 1);
    const int wider = (g.kernel_w - 1) * g.dilation_w;
    const bool once = g.stride_w == 1 && wider > 0 && wider <= cpu.width / 2 &&
                      std::all_of(jobs.begin(), jobs.end(), [](kind k) { return k == QUAD; });
    head.copies = once ? 1 : g.kernel_w;
    head.pitch = once ? cpu.width + cpu.width / 2 : cpu.width;
    const long bytes = channel_floats(head) * static_cast<long>(sizeof(float));
    const long most = std::max(1L, cpu.l1_bytes / bytes);
    const long chunks = std::max(1L, (g.in_channels + most - 1) / most);
    head.chunk = static_cast<int32_t>(std::max(1L, (g.in_channels + chunks - 1) / chunks));
    // whole vectors of channels, where they are transposed
    const int whole = (head.chunk + cpu.width - 1) / cpu.width * cpu.width;
    if (g.kernel_h == 1 && g.kernel_w == 1 && whole <= most) head.chunk = whole;
  }

  // Byte offset of a tap's first row in the tile buffer, c counted from the chunk's first channel.
  int32_t offset(int c, int ky, int kx) const {
    const bool shifted = head.copies == g.kernel_w;
    const int plane = (c * head.copies + (shifted ? kx : 0)) * head.phases + phase_index[phase_of(g, ky)];
    const int row = plane * head.plane_rows + shift_of(g, ky);
    return (row * head.pitch + (shifted ? 0 : kx * g.dilation_w)) * static_cast<int>(sizeof(float));
  }

  // Kernel rows that lie one below the other in the tile buffer, at most column_taps.
  int column_rows() const { return g.stride_h == 1 && g.dilation_h == 1 ? std::min(g.kernel_h, column_taps) : 1; }

  // Calls f(use, c, ky, kx) for groups of `channels` output channels from o and `rows` kernel rows from ky at one column
  // of input channels [c0, c1), of which some weights, those in the mask `use`, are not zero.
  template <class F>
  void groups(int o, int channels, int rows, int c0, int c1, F f) const {
    for (int c = c0; c < c1; c++)
      for (int kx = 0; kx < g.kernel_w; kx++)
        for (int ky = 0; ky < g.kernel_h; ky += rows) {
          int use = 0;
          for (int j = 0; j < channels; j++)
            for (int t = 0; t < rows && ky + t < g.kernel_h; t++)
              use |= (at(o + j, c, ky + t, kx) != 0.f) << (j * rows + t);
          if (use) f(use, c, ky, kx);
        }
  }

  // Whether computing `count` channels together wastes few multiplications.
  bool share(int o, int count) const {
    if (o + count > g.out_channels) return false;
    int64_t used = 0, all = 0;
    groups(o, count, 1, 0, g.in_channels, [&](int use, int, int, int) {
      used += __builtin_popcount(use);
      all += count;
    });
    return all * 10 <= used * 11;
  }

  void choose_jobs() {
    for (int o = 0; o < g.out_channels; o += channels_of[jobs.back()])
      if (share(o, 4))
        jobs.push_back(QUAD);
      else if (column_rows() == 1 && o + channels_of[cpu.sorted] <= g.out_channels)
        jobs.push_back(static_cast<kind>(cpu.sorted));
      else
        jobs.push_back(share(o, 2) ? PAIR : COLUMN);
  }

  void block_job(int count, int o, int c0, int c1) {
    int entries = 0;
    groups(o, count, 1, c0, c1, [&](int, int, int, int) { entries++; });
    words.put(entries);
    groups(o, count, 1, c0, c1, [&](int, int c, int ky, int kx) {
      words.put(offset(c - c0, ky, kx));
      for (int j = 0; j < count; j++) words.put(at(o + j, c, ky, kx));
    });
  }

  // Calls f(class, c, ky, kx, use) for the entries of a COLUMN: a column's mask of kernel rows, taken apart into shapes.
  template <class F>
  void column_entries(int o, int c0, int c1, F f) const {
    groups(o, 1, column_rows(), c0, c1, [&](int use, int c, int ky, int kx) {
      while (use) {
        const int first = __builtin_ctz(use);
        int best = 0;  // the shape with most taps; the first one is a single tap
        for (int i = 0; i < shape_count; i++)
          if ((use >> first & shapes[i]) == shapes[i]) best = i;
        f(best, c, ky + first, kx, shapes[best]);
        use &= ~(shapes[best] << first);
      }
    });
  }

  void column_job(int o, int c0, int c1) {
    int counts[shape_count] = {};
    column_entries(o, c0, c1, [&](int cls, int, int, int, int) { counts[cls]++; });
    for (int n : counts) words.put(n);
    for (int cls = 0; cls < shape_count; cls++)
      column_entries(o, c0, c1, [&](int found, int c, int ky, int kx, int use) {
        if (found != cls) return;
        words.put(offset(c - c0, ky, kx));
        for (int t = 0; t < column_taps; t++)
          if (use >> t & 1) words.put(at(o, c, ky + t, kx));
      });
  }

  void sorted_job(int channels, int o, int c0, int c1) {
    std::vector<int> entries((1 << channels) - 1);
    groups(o, channels, 1, c0, c1, [&](int use, int, int, int) { entries[use - 1]++; });
    for (int n : entries) words.put(n);
    for (int cls = 1; cls < 1 << channels; cls++)
      groups(o, channels, 1, c0, c1, [&](int use, int c, int ky, int kx) {
        if (use != cls) return;
        words.put(offset(c - c0, ky, kx));
        for (int j = 0; j < channels; j++)
          if (use >> j & 1) words.put(at(o + j, c, ky, kx));
      });
  }

  void write() {
    words.size = header_words;
    for (int c0 = 0; c0 < g.in_channels; c0 += head.chunk) {
      const int c1 = std::min(c0 + head.chunk, g.in_channels);
      int o = 0;
      for (kind k : jobs) {
        words.put(static_cast<int32_t>(k));
        words.put(o);
        if (k == COLUMN)
          column_job(o, c0, c1);
        else if (k == SORTED_PAIR || k == SORTED_QUAD)
          sorted_job(channels_of[k], o, c0, c1);
        else
          block_job(channels_of[k], o, c0, c1);
        o += channels_of[k];
      }
      words.put(end_of_chunk);
    }
    if (words.out) std::memcpy(words.out, &head, sizeof head);
  }
};

// G w G^T of one 3 x 3 kernel.
void transform_weight(const float* w, double (&u)[8][8]) {
  constexpr double points[8][3] = {{1, 0, 0},
                                   {-2. / 9, -2. / 9, -2. / 9},
                                   {-2. / 9, 2. / 9, -2. / 9},
                                   {1. / 90, 1. / 45, 2. / 45},
                                   {1. / 90, -1. / 45, 2. / 45},
                                   {32. / 45, 16. / 45, 8. / 45},
                                   {32. / 45, -16. / 45, 8. / 45},
                                   {0, 0, 1}};
  double rows[8][3];
  for (int r = 0; r < 8; r++)
    for (int x = 0; x < 3; x++) rows[r][x] = points[r][0] * w[x] + points[r][1] * w[3 + x] + points[r][2] * w[6 + x];
  for (int r = 0; r < 8; r++)
    for (int k = 0; k < 8; k++) u[r][k] = rows[r][0] * points[k][0] + rows[r][1] * points[k][1] + rows[r][2] * points[k][2];
}

bool is_winograd(const cp_geometry& g) {
  return g.kernel_h == 3 && g.kernel_w == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
}

// A weight (out, in, 3, 3), in blocks of output channels for Winograd's algorithm.
struct winograd_packer {
  const float* weight;
  const cp_geometry& g;
  int width;

  const float* kernel(int o, int c) const { return weight + (static_cast<int64_t>(o) * g.in_channels + c) * 9; }

  // The input channels that any of the output channels of some vectors uses.
  std::vector<int> used(int first, int vectors) const {
    std::vector<int> channels;
    for (int c = 0; c < g.in_channels; c++)
      for (int o = first * width; o < std::min((first + vectors) * width, g.out_channels); o++)
        if (std::any_of(kernel(o, c), kernel(o, c) + 9, [](float w) { return w != 0; })) {
          channels.push_back(c);
          break;
        }
    return channels;
  }

  // Vectors of the block that starts with vector `first` of `vectors`: several share what they load, but compute what any
  // of them uses.
  int block_vectors(int vectors, int first) const {
    const int together = std::min(vectors % 2 && vectors % 3 == 0 ? 3 : 2, vectors - first);
    size_t alone = 0;
    for (int v = first; v < first + together; v++) alone += used(v, 1).size();
    return alone * 5 < used(first, together).size() * together * 4 ? 1 : together;
  }

  void write(word* block, int first, int vectors, const std::vector<int>& channels) const {
    const int64_t outputs = static_cast<int64_t>(vectors) * width, count = static_cast<int64_t>(channels.size());
    std::memset(block, 0, (list_words(count) + winograd_planes * count * outputs) * sizeof(word));
    block[0].i = vectors;
    block[1].i = static_cast<int32_t>(count);
    for (int64_t i = 0; i < count; i++) block[block_words + i].i = channels[i];
    block += list_words(count);
    for (int64_t j = 0; j < outputs && first * width + j < g.out_channels; j++)
      for (int64_t i = 0; i < count; i++) {
        double u[8][8];
        transform_weight(kernel(first * width + j, channels[i]), u);
        for (int p = 0; p < winograd_planes; p++) block[(p * count + i) * outputs + j].f = static_cast<float>(u[p / 8][p % 8]);
      }
  }
};

}  // namespace
}  // namespace cp

int64_t cp_pack_winograd(const float* weight, const cp_geometry* geometry, int32_t isa, word* packed) {
  const cp_geometry& g = *geometry;
  const cp::machine& cpu = cp::machine_of(isa);
  if (!cp::is_winograd(g)) return 0;
  const cp::winograd_packer packer{weight, g, cpu.width};
  const int vectors = (g.out_channels + cpu.width - 1) / cpu.width;
  int64_t size = cp::winograd_words;
  for (int first = 0; first < vectors;) {
    const int together = packer.block_vectors(vectors, first);
    const std::vector<int> channels = packer.used(first, together);
    if (packed) packer.write(packed + size, first, together, channels);
    const int64_t count = static_cast<int64_t>(channels.size());
    size += cp::list_words(count) + cp::winograd_planes * count * together * cpu.width;
    first += together;
  }
  if (!packed) return size;
  cp::header head = {};
  head.magic = cp::winograd_magic;
  head.isa = isa;
  head.geometry = g;
  head.rows = cpu.rows;
  const int64_t tiles = cpu.rows / 6 * (3 * cpu.width / 6);  // of a region
  const int64_t region_bytes = tiles * cp::winograd_planes * (g.in_channels + 2 * cpu.width) * sizeof(float);
  head.chunk = static_cast<int32_t>(std::clamp<int64_t>(cpu.l2_bytes / region_bytes, 1, cp::most_regions));
  std::memset(packed, 0, cp::winograd_words * sizeof(word));
  std::memcpy(packed, &head, sizeof head);
  return size;
}

int64_t cp_pack(const float* weight, const cp_geometry* geometry, int32_t isa, word* packed) {
  cp::packer p{weight, *geometry, cp::machine_of(isa), {}, {packed}, {}, {}};
  p.choose_jobs();
  p.plan();
  p.head.isa = isa;
  p.write();
  return p.words.size;
}
