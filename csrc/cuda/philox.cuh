// The exponential noise of torch's CUDA generators, entry by entry: Philox4x32-10 as curand numbers it, in
// the order of torch's distribution kernels (ATen/native/cuda/DistributionTemplates.h).
#pragma once

#include "numbers.cuh"

namespace bark_accel::cuda {

struct PhiloxNoise {
  const int64_t* state;  // [2] on the device: seed and offset before the first draw; null: no such noise
  const int64_t* draws;  // [rows] on the device: draws of the row since then
  int64_t vocabulary;    // entries of a row
  uint32_t entries;      // of a draw: all rows' together
  uint32_t lanes;        // threads that torch would launch for them
};

struct PhiloxWords {
  uint32_t word[4];
};

BARK_DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

BARK_DEVICE PhiloxWords philox(PhiloxWords c, uint64_t seed) {
  uint32_t key_0 = uint32_t(seed), key_1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t high_0 = high_product(0xd2511f53u, c.word[0]), low_0 = 0xd2511f53u * c.word[0];
    const uint32_t high_1 = high_product(0xcd9e8d57u, c.word[2]), low_1 = 0xcd9e8d57u * c.word[2];
    c = {{high_1 ^ c.word[1] ^ key_0, low_1, high_0 ^ c.word[3] ^ key_1, low_0}};
    key_0 += 0x9e3779b9u;
    key_1 += 0xbb67ae85u;
  }
  return c;
}

// What a draw moves the offset on by: torch counts four numbers for each call of each thread.
BARK_BOTH int64_t philox_advance(const PhiloxNoise& noise) {
  return ((int64_t(noise.entries) - 1) / (int64_t(noise.lanes) * 4) + 1) * 4;
}

// From a uniform 32-bit number, as torch and curand_uniform make it.
BARK_DEVICE float exponential_of(uint32_t word) {
  const float uniform = float(word) * 0x1p-32f + 0x1p-33f;
#ifdef __CUDA_ARCH__
  const float log = uniform >= 1.0f - 0x1p-24f ? -0x1p-24f : __logf(uniform);
#else
  const float log = uniform >= 1.0f - 0x1p-24f ? -0x1p-24f : logf(uniform);
#endif
  return -log;
}

BARK_DEVICE float exponential_at(const PhiloxNoise& noise, int64_t row, int64_t id) {
  const uint32_t entry = uint32_t(row * noise.vocabulary + id);
  const uint32_t lane = entry % noise.lanes, turn = entry / noise.lanes;
  const uint64_t call = uint64_t(noise.state[1] + noise.draws[row] * philox_advance(noise)) / 4 + turn / 4;
  const PhiloxWords words =
      philox({{uint32_t(call), uint32_t(call >> 32), lane, 0}}, uint64_t(noise.state[0]));
  return exponential_of(words.word[turn % 4]);
}

}  // namespace bark_accel::cuda
