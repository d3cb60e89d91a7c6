// Cases of a test program, random inputs, comparisons, and a main that runs them. Arguments: none, all cases
// with all their seeds; --until-failure, the same up to the first failure; --brief, an eighth of the seeds of
// the small cases;
// --sites, the small cases once for every synchronisation of the kernels with that one taken out, where at
// least one case has to fail.
#pragma once

#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <string>

#include "emulator/executor.h"
#include "numbers.cuh"

namespace support {

using bark_accel::BFloat16;
using bark_accel::DType;
using bark_accel::Half;
using bark_accel::cuda::from_float;
using bark_accel::cuda::to_float;
using emulator::Executor;

class Run {
 public:
  Run(emulator::Session& session, unsigned seed, bool quiet)
      : executor{session}, random(seed), quiet_(quiet) {}

  Executor executor;
  std::mt19937 random;
  int64_t checks = 0, failures = 0;

  int64_t integer(int64_t low, int64_t high) { return low + int64_t(random() % uint64_t(high - low + 1)); }
  // Small numbers as likely as large ones.
  int64_t size(int64_t most) {
    return std::max<int64_t>(1, int64_t(std::exp2(uniform() * std::log2(double(most) + 0.99))));
  }
  bool coin() { return random() % 2; }
  double uniform() { return (random() >> 8) * 0x1p-24; }
  float normal() { return std::normal_distribution<float>()(random); }
  template <class T>
  T pick(std::initializer_list<T> from) {
    return from.begin()[random() % from.size()];
  }

  void expect(bool condition, const std::string& what) {
    ++checks;
    if (condition) return;
    if (++failures <= 3 && !quiet_) std::fprintf(stderr, "  failed: %s\n", what.c_str());
  }

  // NaN is expected where the reference is NaN, and nowhere else.
  void expect_close(double got, double expected, double scale, double tolerance, const std::string& what) {
    const bool same = std::isnan(expected) ? std::isnan(got) : std::fabs(got - expected) <= tolerance * scale;
    expect(same, what + ": expected " + std::to_string(expected) + ", got " + std::to_string(got));
  }

 private:
  bool quiet_;
};

struct Case {
  const char* name;
  int repeats;
  bool small;
  void (*run)(Run&);
};

// Elements of a storage type, `offset` elements into their allocation (16-byte aligned without one).
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size, int64_t offset = 0) : size_(size), offset_(offset) {
    memory_.reset(
        static_cast<T*>(std::aligned_alloc(16, (((size + offset) * sizeof(T) + 15) / 16 + 1) * 16)));
    std::memset(static_cast<void*>(memory_.get()), 0xff,
                (size + offset) * sizeof(T));  // NaN where nothing is written
  }

  static Buffer normal(Run& run, int64_t size, float deviation = 1.0f, int64_t offset = 0) {
    Buffer b(size, offset);
    for (int64_t i = 0; i < size; ++i) b.data()[i] = from_float<T>(run.normal() * deviation);
    return b;
  }

  T* data() { return memory_.get() + offset_; }
  int64_t size() const { return size_; }
  double operator[](int64_t i) const { return to_float(memory_.get()[offset_ + i]); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  int64_t size_, offset_;
  std::unique_ptr<T[], Free> memory_;
};

// Runs one case with one seed; returns what failed.
inline int64_t run_case(const Case& test, emulator::Session& session, unsigned seed, bool quiet,
                        int64_t* checks) {
  session.seed(seed);
  Run run(session, seed, quiet);
  test.run(run);
  if (session.failed) run.expect(false, "threads left waiting, or at different barriers");
  if (run.failures && !quiet) {
    std::fprintf(stderr, "%s, seed %u: %lld failures\n", test.name, seed, (long long)run.failures);
  }
  *checks += run.checks;
  return run.failures;
}

// A crash or a loop without end in the child counts as noticed.
inline bool is_noticed(const Case* cases, int count, emulator::Site broken) {
  const pid_t child = fork();
  if (child == 0) {
    const itimerval limit{{0, 0}, {20, 0}};  // of CPU time, whatever else the machine does
    setitimer(ITIMER_PROF, &limit, nullptr);
    if (!std::freopen("/dev/null", "w", stderr)) _exit(3);
    emulator::Session session;
    session.broken = broken;
    int64_t checks = 0;
    for (unsigned seed = 0; seed < 12; ++seed) {
      for (int i = 0; i < count; ++i) {
        if (cases[i].small && run_case(cases[i], session, seed, true, &checks)) _exit(1);
      }
    }
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

inline int break_every_site(const Case* cases, int count) {
  emulator::Session session;
  int64_t checks = 0;
  for (unsigned seed = 0; seed < 12; ++seed) {
    for (int i = 0; i < count; ++i) {
      if (cases[i].small && run_case(cases[i], session, seed, false, &checks)) return 1;
    }
  }
  int survivors = 0;
  for (const auto* sites : {&session.barriers, &session.shuffles}) {
    for (const emulator::Site& site : *sites) {
      if (is_noticed(cases, count, site)) continue;
      std::fprintf(stderr, "nobody noticed that %s:%d does nothing\n", site.file, site.line);
      ++survivors;
    }
  }
  std::printf("%zu barriers and %zu shuffles taken out, %d not noticed\n", session.barriers.size(),
              session.shuffles.size(), survivors);
  return survivors || session.barriers.size() + session.shuffles.size() == 0;
}

inline int run_all(const Case* cases, int count, const std::string& mode) {
  const bool brief = mode == "--brief";
  int64_t failures = 0, checks = 0;
  // Every case with one seed, then with the next: what one of them notices is noticed soon.
  bool more = true;
  for (int seed = 0; more; ++seed) {
    more = false;
    for (int i = 0; i < count; ++i) {
      const int seeds = brief ? (cases[i].repeats + 7) / 8 : cases[i].repeats;
      if (seed >= seeds || (brief && !cases[i].small)) continue;
      more = true;
      emulator::Session session;
      failures += run_case(cases[i], session, unsigned(seed), false, &checks);
      if (failures && mode == "--until-failure") return 1;
    }
  }
  std::printf("%lld checks, %lld failures\n", (long long)checks, (long long)failures);
  return failures || !checks;
}

template <int kCount>
int main_of(const Case (&cases)[kCount], int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  return mode == "--sites" ? break_every_site(cases, kCount) : run_all(cases, kCount, mode);
}

}  // namespace support
