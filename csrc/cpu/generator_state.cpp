#include "generator_state.h"

#include "isa.h"

namespace bark_accel {

static_assert(sizeof(GeneratorState::words) / sizeof(uint64_t) == kMt19937Block);

Words::Words(GeneratorState& state, int64_t entries) {
  if (entries == 0) return;
  // A seeded generator (left 1, next 0) has used up its block, like one with next 624.
  used_ = kMt19937Block + 1 - state.left;
  const int64_t appended = (used_ + 2 * entries - 1) / kMt19937Block * kMt19937Block;
  words_.reset(new uint32_t[kMt19937Block + appended]);
  for (int64_t i = 0; i < kMt19937Block; ++i) words_[i] = uint32_t(state.words[i]);
  kernels().mt19937_extend(words_.get(), appended);
  for (int64_t i = 0; i < kMt19937Block; ++i) state.words[i] = words_[appended + i];
  state.next = uint64_t(used_ + 2 * entries - appended);
  state.left = int32_t(kMt19937Block + 1 - int64_t(state.next));
}

}  // namespace bark_accel
