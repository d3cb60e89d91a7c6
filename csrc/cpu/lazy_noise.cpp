#include "lazy_noise.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>

#include <atomic>
#include <cstring>
#include <mutex>

#include "isa.h"

namespace bark_accel {
namespace {

static_assert(kMt19937Block == at::MERSENNE_STATE_N);

// Sizes around a SIMD width, a generator block (312 entries) and torch's grain of parallelism (32768).
constexpr int64_t kTestedSizes[] = {1, 15, 16, 17, 311, 312, 313, 1072, 10048, 32769};

bool equals_torch(const at::Generator& generator, int64_t size) {
  const at::Generator ours = generator.clone();
  at::Tensor expected = at::empty({size}, at::kFloat).exponential_(1, generator);
  const Words words = draw_words(ours, size);
  for (int64_t i = 0; i < size; ++i) {
    const float noise = kernels().exponential(words.first + 2 * i);
    if (std::memcmp(&noise, expected.const_data_ptr<float>() + i, sizeof noise)) return false;
  }
  return at::equal(ours.get_state(), generator.get_state());
}

bool self_test() {
  const at::Generator generator = at::detail::createCPUGenerator(2023);
  for (const int64_t size : kTestedSizes) {
    if (equals_torch(generator, size)) continue;
    TORCH_WARN(
        "bark_accel: this torch draws exponential noise in a way that is not known; drawing it in full, "
        "with the same tokens and less speed");
    return false;
  }
  return true;
}

bool passed() {
  static const bool result = self_test();
  return result;
}

std::atomic<bool>& wanted() {
  static std::atomic<bool> on{true};
  return on;
}

}  // namespace

bool lazy_noise() { return wanted().load(std::memory_order_relaxed) && passed(); }

void set_lazy_noise(bool on) {
  TORCH_CHECK_VALUE(!on || passed(),
                    "set_lazy_noise: expected a torch whose noise is known, got another one");
  wanted().store(on, std::memory_order_relaxed);
}

Words draw_words(const at::Generator& generator, int64_t entries) {
  if (entries == 0) return {};
  auto* impl = at::check_generator<at::CPUGeneratorImpl>(generator);
  const std::lock_guard<std::mutex> lock(impl->mutex_);
  at::mt19937 engine = impl->engine();
  at::mt19937_data_pod data = engine.data();
  // A seeded generator (left 1, next 0) has used up its block, like one with next 624.
  const int64_t used = kMt19937Block + 1 - data.left_;
  const int64_t appended = (used + 2 * entries - 1) / kMt19937Block * kMt19937Block;
  const at::Tensor buffer = at::empty({kMt19937Block + appended}, at::kInt);
  auto* words = static_cast<uint32_t*>(buffer.mutable_data_ptr());
  std::memcpy(words, data.state_.data(), sizeof data.state_);
  kernels().mt19937_extend(words, appended);
  std::memcpy(data.state_.data(), words + appended, sizeof data.state_);
  data.next_ = uint32_t(used + 2 * entries - appended);
  data.left_ = int(kMt19937Block + 1 - data.next_);
  engine.set_data(data);
  impl->set_engine(engine);
  return {buffer, words + used};
}

}  // namespace bark_accel
