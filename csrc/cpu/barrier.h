// A barrier that gives its core away when it has to wait long. Free of torch.
#pragma once

#include <atomic>
#include <cstdint>

namespace bark_accel {

class Barrier {
 public:
  // Returns once `members` threads have called it. Spins for tens of microseconds, then yields: the thread
  // that is missing, or another generation's, may be waiting for this core.
  void wait(int64_t members);

 private:
  std::atomic<int64_t> arrived_{0};
  std::atomic<int64_t> phase_{0};
};

}  // namespace bark_accel
