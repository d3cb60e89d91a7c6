// What the cases of cpu_kernels.cpp have in common: the linked tables, memory of exactly the size that a
// kernel needs, random numbers, threads.
#pragma once

#include <thread>

#include "../../../csrc/cpu/barrier.h"
#include "../model.h"

namespace cpu_cases {

using namespace bark_accel;
using namespace support;

const KernelTable* const kTables[] = {BARK_KERNELS};
inline bool no_barrier = false;
// What goes to the kernels is copied to blocks of its own; the one of this number lacks its last element.
inline int64_t short_block = -1, blocks = 0;

// Blocks that one call of the kernels sees.
class Blocks {
 public:
  // One that the kernels use to its last element.
  template <class T>
  T* exact(const T* from, int64_t size) {
    return block(from, size, blocks++ == short_block ? size - 1 : size);
  }
  template <class T>
  T* exact(const std::vector<T>& from) {
    return from.empty() ? nullptr : exact(from.data(), int64_t(from.size()));
  }
  // One with room that need not be used.
  template <class T>
  T* roomy(const std::vector<T>& from) {
    return block(from.data(), int64_t(from.size()), int64_t(from.size()));
  }
  template <class T>
  T* empty(int64_t size) {
    return roomy(std::vector<T>(size));
  }
  // Written by the kernels from its first to its last element.
  template <class T>
  T* result(int64_t size) {
    return exact(std::vector<T>(size));
  }

 private:
  template <class T>
  T* block(const T* from, int64_t size, int64_t kept) {
    T* to = static_cast<T*>(std::malloc(kept * sizeof(T)));
    held_.emplace_back(to, std::free);
    std::memcpy(static_cast<void*>(to), from, std::min(size, kept) * sizeof(T));
    return to;
  }

  std::vector<std::unique_ptr<void, void (*)(void*)>> held_;
};

// Storage elements of random numbers, and the numbers.
struct Numbers {
  Matrix matrix;
  Numbers(Run& run, int64_t size, DType dtype) : matrix(Matrix::random(run, size, 1, dtype, false)) {}
  double operator[](int64_t i) const { return matrix.values[i]; }
  void* exact(Blocks& to) const { return to.exact(matrix.storage); }
};

inline std::vector<float> random_floats(Run& run, int64_t size) {
  std::vector<float> x(size);
  for (float& v : x) v = run.normal();
  return x;
}

inline const KernelTable& any_table(Run& run) { return *kTables[run.random() % std::size(kTables)]; }
inline DType any_float(Run& run) { return run.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16}); }

// fn(begin, end) on a few threads.
template <class Function>
void parallel(Run& run, int64_t size, const Function& fn) {
  const int64_t parts = run.integer(1, 3);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < parts; ++i) {
    threads.emplace_back([&, i] { fn(size * i / parts, size * (i + 1) / parts); });
  }
  for (std::thread& thread : threads) thread.join();
}

// body(team) on `size` threads, which wait for each other unless told not to.
template <class Body>
void run_team(int64_t size, const Body& body) {
  Barrier barrier;
  const auto wait = [](void* b, int64_t members) { static_cast<Barrier*>(b)->wait(members); };
  const auto pass = [](void*, int64_t) {};
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      no_barrier ? body(Team{rank, size, &barrier, pass}) : body(Team{rank, size, &barrier, wait});
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Strides of [batch, a, b, depth] numbers in which a comes before b, or after it.
inline void fill_strides(int64_t (&strides)[3], int64_t a, int64_t b, int64_t depth) {
  strides[0] = a * b * depth;
  strides[1] = b * depth;
  strides[2] = depth;
}

}  // namespace cpu_cases
