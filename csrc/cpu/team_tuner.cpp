#include "team_tuner.h"

#include <algorithm>

namespace bark_accel {
namespace {

// Threads so few that fewer are no better while nothing else runs.
constexpr int64_t kFew = 4;
// A step with a new team makes threads.
constexpr int64_t kSkipped = 1;
// Steps between trials: the first pause, the longest one beside a disturbance, and the longest of all.
constexpr int64_t kShortPause = 64, kLongPause = 512, kLongestPause = 4096;
// Of the level before: slower than usual, better by enough, worse beyond doubt.
constexpr double kDisturbed = 1.4, kBetter = 0.93, kWorse = 1.3;
// A step: what is usual rises where nothing is as fast as it any more.
constexpr double kForgets = 1.001;

template <size_t N>
double median(std::array<double, N> times) {
  std::nth_element(times.begin(), times.begin() + N / 2, times.end());
  return times[N / 2];
}

}  // namespace

TeamTuner::TeamTuner(int64_t start, int64_t most)
    : most_(most),
      settled_(std::clamp<int64_t>(start, 1, most)),
      restless_(most > kFew),
      skip_(kSkipped),
      pause_(kShortPause) {}

void TeamTuner::took(double time) {
  if (most_ == 1) return;
  if (skip_ > 0) {
    --skip_;
  } else if (trying_) {
    judge(time);
  } else {
    watch(time);
  }
}

void TeamTuner::watch(double time) {
  times_[seen_++ % kWindow] = time;
  if (rest_ > 0) --rest_;
  if (seen_ < kWindow) return;
  usual_ = usual_ == 0 ? level() : std::min(kForgets * usual_, level());
  const bool disturbed = level() > kDisturbed * usual_;
  if (disturbed && level() > kDisturbed * refused_) {  // it is not what the last trial was about
    rest_ = 0;
    pause_ = kShortPause;
  }
  // With a few threads, all of them are best in quiet.
  const bool curious = restless_ || settled_ < most_;
  if (rest_ > 0) return;
  if (disturbed || curious) return try_other();
  pause_ = kShortPause;  // false alarms do not count once it is quiet
}

void TeamTuner::try_other() {
  if (settled_ == most_) upwards_ = false;
  if (settled_ == 1) upwards_ = true;
  candidate_ = upwards_ ? std::min(2 * settled_, most_) : settled_ / 2;
  trying_ = true;
  trial_ = 0;
  skip_ = kSkipped;
}

void TeamTuner::judge(double time) {
  tried_[trial_++] = time;
  const double before = level();
  const auto end = tried_.begin() + trial_;
  const auto slow = std::count_if(tried_.begin(), end, [&](double t) { return t > kWorse * before; });
  if (slow >= 2) return settle(false);
  if (trial_ == kTrial) settle(median(tried_) < kBetter * before);
}

void TeamTuner::settle(bool accepted) {
  trying_ = false;
  skip_ = kSkipped;
  if (accepted) {
    settled_ = candidate_;
    std::copy(tried_.begin(), tried_.end(), times_.begin());
    seen_ = kTrial;
    usual_ = refused_ = 0;
    pause_ = kShortPause;
    rest_ = kWindow - kTrial;  // the same way again, soon
    if (settled_ == 1 || settled_ == most_) rest_ = pause_;
    return;
  }
  refused_ = level();
  seen_ = 0;
  rest_ = pause_;
  pause_ = std::min(2 * pause_, restless_ ? kLongestPause : kLongPause);
  upwards_ = !upwards_;
}

double TeamTuner::level() const { return median(times_); }

}  // namespace bark_accel
