// The teams of decode steps: a TeamTuner for each kind of step.
#pragma once

#include <cstdint>

#include "../kernels/params.h"

namespace bark_accel {

// Threads for steps from now on: exactly `fixed`, or, where that is 0, as many as are found to be best, up to
// `most`, beginning with `start`. Never more than torch has. 0 for `start` and `most`: as many as torch has.
void set_step_threads(int64_t fixed, int64_t start, int64_t most);

// Threads of the last step; 0 before the first.
int64_t last_step_threads();

// The threads of one step, whose time is taken while this lives.
class StepTeam {
 public:
  explicit StepTeam(const DecodeParams& p);
  ~StepTeam();
  StepTeam(const StepTeam&) = delete;
  StepTeam& operator=(const StepTeam&) = delete;

  int64_t threads() const { return threads_; }

 private:
  const DecodeParams& p_;
  int64_t most_, threads_;
  double begin_;
};

}  // namespace bark_accel
