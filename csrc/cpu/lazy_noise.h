// torch.Tensor.exponential_ on the CPU without the logarithms: only the generator's words are drawn, and the
// kernels turn those that matter into noise (kernels/mt19937.h).
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

namespace bark_accel {

// Whether words replace full noise: on, where a test at first use found torch's noise and generator state
// reproduced to the bit. Turning it on needs that test passed.
bool lazy_noise();
void set_lazy_noise(bool on);

struct Words {
  at::Tensor buffer;
  const uint32_t* first = nullptr;
};

// The next 2 * entries words of a CPU generator, which is left as exponential_ on `entries` values leaves it.
Words draw_words(const at::Generator& generator, int64_t entries);

}  // namespace bark_accel
