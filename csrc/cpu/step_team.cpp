#include "step_team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <tuple>

#include "team.h"
#include "team_tuner.h"

namespace bark_accel {
namespace {

std::atomic<int64_t> fixed_threads{0}, first_threads{0}, most_threads{0}, last_threads{0};

// Steps of one shape, dtype and number of rows.
using Kind = std::tuple<int64_t, int64_t, int64_t, DType, DType, int64_t>;

std::mutex mutex;
std::map<Kind, TeamTuner>& tuners() {
  static auto& kept = *new std::map<Kind, TeamTuner>;  // never destroyed: a thread may outlive main()
  return kept;
}

// What the settings leave of torch's threads.
int64_t most_of(int64_t torch_threads) {
  const int64_t most = most_threads;
  return most > 0 ? std::min(most, torch_threads) : torch_threads;
}

TeamTuner& tuner_of(const Kind& kind) {
  const int64_t most = std::get<5>(kind), first = first_threads;
  return tuners().try_emplace(kind, first > 0 ? first : most, most).first->second;
}

Kind kind_of(const DecodeParams& p, int64_t most) {
  return {p.layers_count, p.width, p.batch * p.tokens, p.head.dtype, p.cache_dtype, most};
}

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2; }

// Bytes that a step reads: weights, and the caches of its rows.
double bytes_read(const DecodeParams& p) {
  const int64_t weights = p.layers_count * p.width * (4 * p.width + 2 * p.inner) + p.width * p.head_rows;
  int64_t cached = 0;
  for (int64_t row = 0; row < p.batch; ++row) cached += p.lengths[p.slots[row]] + p.tokens;
  return double(weights * bytes_of(p.head.dtype)) +
         double(2 * cached * p.layers_count * p.width * bytes_of(p.cache_dtype));
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void set_step_threads(int64_t fixed, int64_t start, int64_t most) {
  const std::lock_guard<std::mutex> lock(mutex);
  fixed_threads = fixed;
  first_threads = start;
  most_threads = most;
  tuners().clear();
}

int64_t last_step_threads() { return last_threads; }

StepTeam::StepTeam(const DecodeParams& p) : p_(p), most_(team_size()) {
  if (const int64_t fixed = fixed_threads; fixed > 0 || most_ == 1) {
    threads_ = fixed > 0 ? std::min(fixed, most_) : 1;
    most_ = 1;  // nothing to find out
  } else {
    most_ = most_of(most_);
    const std::lock_guard<std::mutex> lock(mutex);
    threads_ = tuner_of(kind_of(p, most_)).size();
  }
  last_threads = threads_;
  begin_ = seconds();
}

StepTeam::~StepTeam() {
  if (most_ == 1) return;
  const double took = seconds() - begin_;
  const std::lock_guard<std::mutex> lock(mutex);
  TeamTuner& tuner = tuner_of(kind_of(p_, most_));
  // Another thread's step may have changed the size meanwhile.
  if (tuner.size() == threads_) tuner.took(took / bytes_read(p_));
}

}  // namespace bark_accel
