// A call in patches: each job of the list by its own weight, on the loops that this weight was packed for.
#pragma once
#include "winograd.h"

namespace {

struct patches {
  const cp_call& call;
  const cp::part* parts;
  const cp::ticket* tickets;
  long ticket_count;
  int failed = 0;  // set where scratch memory is short

  static place place_of(const cp::part& p) { return {p.image, p.y, p.x, p.rows, p.columns}; }

  void run_tile(long index) {
    const cp::ticket& ticket = tickets[index];
    if (ticket.weight == CP_NOTHING) return store_zeros(parts[ticket.first]);
    cp_call mine = call;
    mine.packed = call.jobs->weights[ticket.weight].packed;
    mine.bias = call.jobs->weights[ticket.weight].bias;
    cp::header head;
    std::memcpy(&head, mine.packed, sizeof head);
    if (head.magic == cp::winograd_magic)
      run_winograd_regions(mine, ticket);
    else
      run_direct(mine, index);
  }

  void run_direct(const cp_call& mine, long index) {
    planes layer(mine);
    const cp::ticket& next = tickets[index + 1 < ticket_count ? index + 1 : index];
    layer.run_at(place_of(parts[tickets[index].first]), place_of(parts[next.weight == CP_NOTHING ? tickets[index].first : next.first]));
    note(layer.failed);
  }

  void run_winograd_regions(const cp_call& mine, const cp::ticket& ticket) {
    winograd layer(mine);
    winograd::region at[cp::most_regions];
    for (int i = 0; i < ticket.count; i++) {
      const cp::part& p = parts[ticket.first + i];
      at[i] = winograd::make_region(p.image, p.y, p.x, p.rows, p.columns);
    }
    layer.run_regions(at, ticket.count);
    note(layer.failed);
  }

  void note(int failure) {
    if (failure) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  }

  // What the epilogue makes of sums that are zero: of these pixels neighbours may read some.
  void store_zeros(const cp::part& p) const {
    if (call.order == CP_NO_RESIDUAL) return clear(p);
    static const vec zeros[cp_most_shuffle * cp_most_shuffle * CP_ROWS] = {};
    const int together = call.shuffle * call.shuffle;
    for (int y = 0; y < p.rows; y += CP_ROWS)
      for (int x = 0; x < p.columns; x += CP_WIDTH) {
        const place at{p.image, p.y + y, p.x + x, static_cast<int>(at_most(CP_ROWS, p.rows - y)),
                       static_cast<int>(at_most(CP_WIDTH, p.columns - x))};
        for (int o = 0; o < call.out_channels; o += together)
          if (call.shuffle > 1)
            CP_WITH_ACTIVATION(call.activation, store_shuffled, zeros, at, o, together, call)
          else
            CP_WITH_ACTIVATION(call.activation, store_planes, zeros, at, o, 1, call)
      }
  }

  // Every activation makes zero of zero.
  void clear(const cp::part& p) const {
    const long r = call.shuffle, pitch = call.out_width * r, planes = call.out_channels / (r * r);
    float* const first = call.y + (p.image * planes * call.out_height + p.y) * r * pitch + p.x * r;
    for (long c = 0; c < planes; c++)
      for (long y = 0; y < p.rows * r; y++)
        std::memset(first + (c * call.out_height * r + y) * pitch, 0, p.columns * r * sizeof(float));
  }
};

void run_ticket(void* jobs, long index) { static_cast<patches*>(jobs)->run_tile(index); }

int run_jobs(const cp_call& call, const cp::part* parts, const cp::ticket* tickets, long count) {
  patches jobs{call, parts, tickets, count};
  cp::parallel_for(count, call.threads, run_ticket, &jobs);
  return jobs.failed ? CP_NO_MEMORY : CP_OK;
}

}  // namespace
