// A thread's copies that nobody waits for yet: what is not there at once comes when it is waited for.
#pragma once

#include <cstddef>
#include <cstring>
#include <deque>
#include <vector>

namespace emulator {

struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;

  void arrive() const { from ? std::memcpy(to, from, bytes) : std::memset(to, 0, bytes); }
};

class LateCopies {
 public:
  void add(const Copy& copy) { batches_.back().push_back(copy); }
  void end_batch() { batches_.emplace_back(); }

  // All batches but the last `left` arrive.
  void wait(int left) {
    while (int(batches_.size()) > left + 1) {
      for (const Copy& copy : batches_.front()) copy.arrive();
      batches_.pop_front();
    }
  }

  bool all_waited_for() const { return batches_.size() == 1; }

 private:
  std::deque<std::vector<Copy>> batches_ = {{}};  // the last one is not whole yet
};

}  // namespace emulator
