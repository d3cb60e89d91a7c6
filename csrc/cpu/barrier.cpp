#include "barrier.h"

#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bark_accel {
namespace {

constexpr int kSpins = 2000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // `yield` takes no time at all on most of them
#endif
}

}  // namespace

void Barrier::wait(int64_t members) {
  if (members == 1) return;
  const int64_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
    spins < kSpins ? pause() : std::this_thread::yield();
  }
}

}  // namespace bark_accel
