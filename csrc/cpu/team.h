// A team of OpenMP threads for one kernel call, with a barrier that gives its core away when it has to wait long.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "../kernels/params.h"

namespace bark_accel {

class Barrier {
 public:
  // Returns once `members` threads have called it. Spins for tens of microseconds, then yields: the thread that is
  // missing, or another generation's, may be waiting for this core.
  void wait(int64_t members);

 private:
  std::atomic<int64_t> arrived_{0};
  std::atomic<int64_t> phase_{0};
};

// Threads a team may have here: torch.get_num_threads(), one inside another parallel region.
inline int64_t team_size() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

// Calls body(team) on `size` threads, or on fewer where OpenMP grants fewer. The body must not throw.
template <typename Body>
void run_team(int64_t size, const Body& body) {
  Barrier barrier;
  const auto wait = [](void* b, int64_t members) { static_cast<Barrier*>(b)->wait(members); };
#ifdef _OPENMP
  if (size > 1) {
#pragma omp parallel num_threads(int(size))
    body(Team{omp_get_thread_num(), omp_get_num_threads(), &barrier, wait});
    return;
  }
#endif
  body(Team{0, 1, &barrier, wait});
}

}  // namespace bark_accel
