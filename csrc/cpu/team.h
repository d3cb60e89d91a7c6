// A team of OpenMP threads for one kernel call.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../kernels/params.h"
#include "../tensor.h"
#include "barrier.h"

namespace bark_accel {

// Threads a team may have here: torch.get_num_threads(), one inside another parallel region.
inline int64_t team_size() {
#ifdef _OPENMP
  if (omp_in_parallel()) return 1;
#endif
  return get_num_threads();
}

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
