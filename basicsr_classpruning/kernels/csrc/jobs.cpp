// Job lists: joining cells to rectangles, and cutting rectangles into what a thread takes at once.
#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "layout.h"

namespace cp {
namespace {

// The largest rectangle of cells that are not taken and equal their first one, y and x being its upper left corner.
cp_job largest_at(const int32_t* cells, const std::vector<char>& taken, int rows, int columns, int y, int x) {
  const int32_t wanted = cells[y * columns + x];
  cp_job best{y, x, 0, 0, wanted};
  for (int height = 1, width = columns - x; y + height <= rows; height++) {
    const int row = (y + height - 1) * columns + x;
    int run = 0;
    while (run < width && cells[row + run] == wanted && !taken[row + run]) run++;
    if (!run) break;
    width = run;
    if (width * height > best.rows * best.columns) best.rows = height, best.columns = width;
  }
  return best;
}

struct planner {
  const cp_jobs& jobs;
  int64_t batch;
  plan& made;

  // Cuts a rectangle, as evenly as its rows allow, into parts of at most rows x columns pixels.
  template <class Each>
  void cut(const part& whole, int unit, int rows, int columns, Each each) const {
    const int units = (whole.rows + unit - 1) / unit, blocks = (units * unit + rows - 1) / rows;
    for (int b = 0; b < blocks; b++)
      for (int x = 0; x < whole.columns; x += columns) {
        const int y0 = b * units / blocks * unit, y1 = std::min((b + 1) * units / blocks * unit, whole.rows);
        each({whole.image, whole.y + y0, whole.x + x, y1 - y0, std::min(columns, whole.columns - x)});
      }
  }

  void end_ticket(int32_t weight, size_t first) {
    if (made.parts.size() > first)
      made.tickets.push_back({weight, static_cast<int32_t>(first), static_cast<int32_t>(made.parts.size() - first)});
  }

  template <class Each>
  void for_rectangles(int32_t weight, Each each) const {
    for (int32_t image = 0; image < batch; image++)
      for (int64_t i = 0; i < jobs.count; i++) {
        const cp_job& j = jobs.list[i];
        if (j.weight == weight) each({image, j.y * jobs.cell, j.x * jobs.cell, j.rows * jobs.cell, j.columns * jobs.cell});
      }
  }

  void direct(int32_t weight, int rows, int width, bool halves = false) {
    const auto add = [&](const part& p) {
      made.parts.push_back(p);
      end_ticket(weight, made.parts.size() - 1);
    };
    for_rectangles(weight, [&](const part& whole) {
      const int rest = whole.columns % width, narrow = halves && rest <= width / 2 ? rest : 0;
      part left = whole, right = whole;
      left.columns -= narrow;
      right.x += left.columns;
      right.columns = narrow;
      cut(left, 1, rows, width, add);
      cut(right, 1, 2 * rows, width, add);
    });
  }

  // Small regions share a ticket, so that each weight that is fetched serves many tiles; what does not fit is cut off.
  void winograd(int32_t weight, const header& h, const machine& cpu) {
    constexpr int tile = 6;
    const int rows = cpu.rows / tile * tile, columns = 3 * cpu.width;
    const int most = h.chunk * (rows / tile) * (columns / tile);
    size_t first = made.parts.size();
    int room = most;
    for_rectangles(weight, [&](const part& whole) {
      cut(whole, tile, rows, columns, [&](part rest) {
        const int tile_rows = (rest.rows + tile - 1) / tile;
        while (rest.columns > 0) {
          part p = rest;
          p.columns = std::min(room / tile_rows * tile, rest.columns);
          if (p.columns > 0) {
            made.parts.push_back(p);
            room -= tile_rows * ((p.columns + tile - 1) / tile);
            rest.x += p.columns;
            rest.columns -= p.columns;
          }
          if (rest.columns == 0 && room > 0 && made.parts.size() - first < most_regions) continue;
          end_ticket(weight, first);
          first = made.parts.size();
          room = most;
        }
      });
    });
    end_ticket(weight, first);
  }
};

}  // namespace

plan make_plan(const cp_jobs& jobs, int64_t batch, const machine& cpu) {
  plan made;
  planner p{jobs, batch, made};
  for (int32_t k = 0; k < jobs.weight_count; k++) {
    header h;
    std::memcpy(&h, jobs.weights[k].packed, sizeof h);
    if (h.magic == winograd_magic)
      p.winograd(k, h, cpu);
    else
      p.direct(k, h.rows, cpu.width);
  }
  p.for_rectangles(CP_NOTHING, [&](const part& whole) {
    made.parts.push_back(whole);
    p.end_ticket(CP_NOTHING, made.parts.size() - 1);
  });
  return made;
}

plan make_plan(const cp_jobs& jobs, int64_t batch, int rows, int width, bool halves) {
  plan made;
  planner p{jobs, batch, made};
  for (int32_t k = 0; k < jobs.weight_count; k++) p.direct(k, rows, width, halves);
  p.direct(CP_NOTHING, rows, width);
  // Neighbours one after the other, whatever their weights: the lines of the cache at their borders are shared.
  std::sort(made.tickets.begin(), made.tickets.end(), [&](const ticket& a, const ticket& b) {
    const part &one = made.parts[a.first], &other = made.parts[b.first];
    return std::tie(one.image, one.y, one.x) < std::tie(other.image, other.y, other.x);
  });
  return made;
}

bool jobs_fit(const cp_jobs& jobs, int64_t out_height, int64_t out_width) {
  if (jobs.cell < 1 || jobs.weight_count < 1 || jobs.weight_count > cp_most_weights) return false;
  const int64_t rows = out_height / jobs.cell, columns = out_width / jobs.cell;
  return std::all_of(jobs.list, jobs.list + jobs.count, [&](const cp_job& j) {
    return j.weight >= CP_NOTHING && j.weight < jobs.weight_count && j.y >= 0 && j.x >= 0 && j.rows > 0 && j.columns > 0 &&
           j.rows <= rows - j.y && j.columns <= columns - j.x;
  });
}

}  // namespace cp

int64_t cp_join_cells(const int32_t* cells, int32_t rows, int32_t columns, cp_job* jobs) {
  std::vector<char> taken(static_cast<size_t>(rows) * columns);
  int64_t count = 0;
  for (int y = 0; y < rows; y++)
    for (int x = 0; x < columns; x++) {
      if (taken[y * columns + x] || cells[y * columns + x] < CP_NOTHING) continue;
      const cp_job job = cp::largest_at(cells, taken, rows, columns, y, x);
      for (int r = y; r < y + job.rows; r++) std::fill_n(taken.begin() + r * columns + x, job.columns, 1);
      jobs[count++] = job;
    }
  return count;
}
