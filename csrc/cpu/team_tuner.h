// Finds out how many threads a step is best shared by, from what steps take. Free of torch.
//
// No rule by the CPU's name would do: memory is full with a few threads, every further one adds to the
// barriers, slow cores hold up fast ones, a quota stops threads, and beside another busy process one thread
// may be twice as fast as two that wait for each other. What a step computes does not depend on its threads.
#pragma once

#include <array>
#include <cstdint>

namespace bark_accel {

class TeamTuner {
 public:
  // Sizes from 1 to `most`, beginning with `start`.
  TeamTuner(int64_t start, int64_t most);

  // Threads for the next step.
  int64_t size() const { return trying_ ? candidate_ : settled_; }

  // What a step on size() threads took, in a unit that makes all steps of this tuner comparable.
  void took(double time);

 private:
  static constexpr int kWindow = 8, kTrial = 5;

  void watch(double time);
  void judge(double time);
  void try_other();
  void settle(bool accepted);
  double level() const;

  int64_t most_, settled_, candidate_ = 0;
  bool trying_ = false, upwards_ = false, restless_;
  std::array<double, kWindow> times_{};  // the last ones on settled_ threads
  std::array<double, kTrial> tried_{};
  int64_t seen_ = 0, trial_ = 0;  // steps in times_ and tried_
  int64_t skip_, rest_ = 0, pause_;
  double usual_ = 0;    // the lowest level on settled_ threads, of late
  double refused_ = 0;  // the level that the last trial could not better
};

}  // namespace bark_accel
