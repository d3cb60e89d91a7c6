// torch.Tensor.exponential_ on the CPU without the logarithms: only the generator's words are drawn, and the
// kernels turn those that matter into noise (kernels/mt19937.h). The generator comes as its state.
#pragma once

#include <cstdint>
#include <memory>

namespace bark_accel {

// The first part of what torch.Generator.get_state() of a CPU generator holds; the caches of randn follow.
struct GeneratorState {
  uint64_t seed;
  int32_t left, seeded;
  uint64_t next, words[624];
};

constexpr int64_t kStateBytes = 5056;  // with the caches

class Words {
 public:
  Words() = default;
  // The next 2 * entries words; the state is left as exponential_ on `entries` values leaves it.
  Words(GeneratorState& state, int64_t entries);
  const uint32_t* first() const { return words_.get() + used_; }

 private:
  std::unique_ptr<uint32_t[]> words_;
  int64_t used_ = 0;
};

}  // namespace bark_accel
