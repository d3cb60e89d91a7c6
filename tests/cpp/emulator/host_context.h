// The context of csrc/cuda/context.cuh on the CPU. Synchronisations are known by where they are called.
#pragma once

#include "block.h"

namespace emulator {

struct HostContext {
  static constexpr bool kCopies = true;
  Block* owner;
  int index;

  int thread() const { return index; }
  int threads() const;
  int64_t block() const;
  char* shared() const;
  void barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const;
  template <class T>
  T shuffle(T value, int lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) const;
  template <class T>
  T atomic_add(T* address, T value) const {
    const T before = *address;
    *address += value;
    return before;
  }
  void wait_for_previous() const;
  void release_next() const;
  void part_barrier(int part, int threads, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) const;
  void arrive(uint32_t* counter) const { ++*counter; }
  void wait_for(const uint32_t* counter, uint32_t count, const char* file = __builtin_FILE(),
                int line = __builtin_LINE()) const;
  template <class T>
  void copy_later(T* to, const T* from, bool there) const;
  void end_batch() const;
  void wait_for_batches(int left, const char* file = __builtin_FILE(), int line = __builtin_LINE()) const;
};

// Of a device without copies for later.
struct PlainHostContext : HostContext {
  static constexpr bool kCopies = false;
};

inline int HostContext::threads() const { return owner->threads(); }
inline int64_t HostContext::block() const { return owner->index(); }
inline char* HostContext::shared() const { return owner->shared(); }
inline void HostContext::barrier(const char* file, int line) const {
  owner->barrier(index, 0, threads(), file, line);
}
inline void HostContext::wait_for_previous() const { owner->wait_for_previous(index); }
inline void HostContext::release_next() const { owner->release_next(index); }
inline void HostContext::part_barrier(int part, int threads, const char* file, int line) const {
  owner->barrier(index, part + 1, threads, file, line);
}
inline void HostContext::wait_for(const uint32_t* counter, uint32_t count, const char* file, int line) const {
  owner->wait_for(index, counter, count, file, line);
}

template <class T>
void HostContext::copy_later(T* to, const T* from, bool there) const {
  if (uintptr_t(to) % sizeof(T) || (there && uintptr_t(from) % sizeof(T))) std::abort();
  owner->copy_later(index, Copy{to, there ? from : nullptr, sizeof(T)});
}
inline void HostContext::end_batch() const { owner->end_batch(index); }
inline void HostContext::wait_for_batches(int left, const char* file, int line) const {
  owner->wait_for_batches(index, left, file, line);
}

template <class T>
T HostContext::shuffle(T value, int lane, const char* file, int line) const {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = owner->shuffle(index, bits, lane, file, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator
