// Threads and their scratch memory.
#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "layout.h"

namespace cp {
namespace {

std::atomic<void (*)(void (*)(void*), void*, unsigned, unsigned)> lent_pool{nullptr};

struct loop {
  long count;
  void (*body)(void*, long);
  void* context;
  std::atomic<long> next{0};

  // Iterations are drawn one at a time, so a thread that is held up does not hold up the others.
  void work() {
    for (long i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(context, i);
  }
};

void run_loop(void* l) { static_cast<loop*>(l)->work(); }

struct aligned_memory {
  float* data = nullptr;
  long floats = 0;
  ~aligned_memory() { std::free(data); }
};

}  // namespace

float* scratch(long floats) {
  static thread_local aligned_memory memory;
  if (memory.floats < floats) {
    std::free(memory.data);
    const size_t page = 4096, bytes = (floats * sizeof(float) + page - 1) / page * page;
    memory.data = static_cast<float*>(std::aligned_alloc(page, bytes));
    memory.floats = memory.data ? floats : 0;
  }
  return memory.data;
}

void parallel_for(long count, int threads, void (*body)(void*, long), void* context) {
  loop l{count, body, context};
  if (threads > count) threads = static_cast<int>(count);
  if (threads <= 1) return l.work();
  if (auto parallel = lent_pool.load()) return parallel(run_loop, &l, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> helpers;
  try {
    for (int i = 1; i < threads; i++) helpers.emplace_back(run_loop, &l);
  } catch (...) {
    // fewer threads than asked for: those that started, and this one, do the work
  }
  l.work();
  for (std::thread& t : helpers) t.join();
}

}  // namespace cp

void cp_use_parallel(void (*gomp_parallel)(void (*)(void*), void*, unsigned, unsigned)) {
  cp::lent_pool = gomp_parallel;
}
