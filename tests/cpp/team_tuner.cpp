// Machines that are not here, as times of a step by the number of its threads: what a TeamTuner makes of
// them. Prints a line for each: name, seed, what the steps took in all over what they would have taken on the
// best number of threads, the same for `most` threads, and the last size.
#include "../../csrc/cpu/team_tuner.h"

#include <cmath>
#include <cstdio>
#include <functional>
#include <random>

namespace {

using bark_accel::TeamTuner;
// Milliseconds of step number `step` on `threads` threads, without noise.
using Machine = std::function<double(int64_t threads, int64_t step)>;

// Memory is full with `full` threads; a step has 62 barriers of `barrier` ms for every doubling of the team.
double step_ms(double one, double full, double barrier, int64_t threads) {
  return one / std::min(double(threads), full) + 62 * barrier * std::log2(double(threads));
}

struct Case {
  const char* name;
  int64_t start, most, steps;
  Machine machine;
  double noise;  // standard deviation of the logarithm
};

const Case kCases[] = {
    {"two quiet cores", 2, 2, 3000, [](int64_t n, int64_t) { return step_ms(4, 1.7, 1e-3, n); }, 0.08},
    // Two threads share one core with a neighbour, and wait for each other.
    {"a busy neighbour", 2, 2, 3000,
     [](int64_t n, int64_t step) {
       const bool busy = step >= 1000 && step < 2000;
       return busy ? (n == 1 ? 4.2 : 14.0) : step_ms(4, 1.7, 1e-3, n);
     },
     0.3},
    {"two busy neighbours", 2, 2, 3000, [](int64_t n, int64_t) { return n == 1 ? 8.0 : 20.0; }, 0.3},
    {"64 cores, memory full with 8", 16, 64, 3000, [](int64_t n, int64_t) { return step_ms(6, 8, 2e-3, n); },
     0.05},
    {"64 cores, cheap barriers", 16, 64, 3000, [](int64_t n, int64_t) { return step_ms(40, 60, 2e-4, n); },
     0.05},
    // A team that has slow cores waits for them.
    {"6 fast and 8 slow cores", 6, 14, 3000,
     [](int64_t n, int64_t) { return step_ms(6, 5, 1e-3, n) * (n > 6 ? 2.0 : 1.0); }, 0.05},
    // As many threads as the machine has, stopped most of the time.
    {"a quota of two, not seen", 16, 16, 3000,
     [](int64_t n, int64_t) { return step_ms(6, 6, 1e-3, n) * (n > 2 ? double(n) : 1.0); }, 0.1},
    {"one core", 1, 1, 100, [](int64_t, int64_t) { return 5.0; }, 0.1},
};

void run(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> noise(0, c.noise);
  TeamTuner tuner(c.start, c.most);
  double took = 0, best = 0, all = 0;
  int64_t largest = 0;
  for (int64_t step = 0; step < c.steps; ++step) {
    const int64_t size = tuner.size();
    largest = std::max(largest, size);
    if (size < 1 || size > c.most) std::printf("%s: size %ld\n", c.name, long(size));
    const double time = c.machine(size, step) * std::exp(noise(random));
    double least = c.machine(c.most, step);
    for (int64_t n = 1; n <= c.most; ++n) least = std::min(least, c.machine(n, step));
    took += time;
    best += least * std::exp(c.noise * c.noise / 2);
    all += c.machine(c.most, step) * std::exp(c.noise * c.noise / 2);
    tuner.took(time);
  }
  std::printf("%s;%u;%.3f;%.3f;%ld\n", c.name, seed, took / best, all / best, long(tuner.size()));
}

}  // namespace

int main() {
  for (const Case& c : kCases) {
    for (unsigned seed = 0; seed < 8; ++seed) run(c, seed);
  }
}
