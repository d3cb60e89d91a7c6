// What a run of the emulator is told: a scheduler's temper and a synchronisation to leave out; and what it
// has seen.
#pragma once

#include <cstring>
#include <random>
#include <set>

namespace emulator {

// Where in the kernels a synchronisation is called.
struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& other) const { return line == other.line && !std::strcmp(file, other.file); }
  bool operator<(const Site& other) const {
    const int order = std::strcmp(file, other.file);
    return order ? order < 0 : line < other.line;
  }
};

enum class Order { kInOrder, kStarveWarps, kStarveLanes, kShuffled };

// Of a device: how many blocks run at once, and what each may have of shared memory, in bytes. Where it has
// copies for later, weights stream through the longest ring that fits. Without multiprocessors: as it
// happens.
struct Card {
  int32_t multiprocessors = 0;
  int64_t shared_bytes = 0;
  bool copies = true;
};

// What to run and what was seen.
struct Session {
  std::mt19937 random{0};
  Order order = Order::kInOrder;
  Site broken;  // this call site does nothing
  Card card;
  std::set<Site> barriers, shuffles;
  bool released_early = false;  // a thread has released the next kernel before it waited for those ahead
  bool failed = false;

  void seed(unsigned seed) {
    random.seed(seed);
    order = Order(seed % 4);
    failed = false;
  }
};

}  // namespace emulator
