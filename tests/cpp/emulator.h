// Runs the kernel bodies of csrc/cuda on the CPU, one fiber a thread. Between two synchronisations a thread
// runs alone, and who goes next is up to a scheduler that likes to starve lanes and warps: what a missing
// barrier allows to happen, happens. Barriers and shuffles are known by their call sites, and one of them can
// be made to do nothing (a mutant). Shared memory starts as NaN in a heap block of exactly the size asked
// for. Reported as failures: threads that wait at different barriers, that leave a barrier or shuffle to the
// others for ever, shuffles with inactive lanes, and threads that end or meet others before they have waited
// for the kernels before theirs. Of a kernel whose blocks wait for each other all run at once, in turns that
// the scheduler deals as unfairly. Copies for later arrive at once or not before they are waited for.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "context.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATOR_ASAN 1
#endif

namespace emulator {

constexpr size_t kStackBytes = 32 * 1024;

// Where in the kernels a synchronisation is called.
struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& other) const { return line == other.line && !std::strcmp(file, other.file); }
  bool operator<(const Site& other) const {
    const int order = std::strcmp(file, other.file);
    return order ? order < 0 : line < other.line;
  }
};

enum class Order { kInOrder, kStarveWarps, kStarveLanes, kShuffled };

// What to run and what was seen.
struct Session {
  std::mt19937 random{0};
  Order order = Order::kInOrder;
  Site broken;  // this call site does nothing
  std::set<Site> barriers, shuffles;
  bool released_early = false;  // a thread has released the next kernel before it waited for those ahead
  bool failed = false;

  void seed(unsigned seed) {
    random.seed(seed);
    order = Order(seed % 4);
    failed = false;
  }
};

class Block;

struct Fiber {
  enum State { kReady, kBarrier, kShuffle, kCounter, kDone };
  ucontext_t context;
  char* stack = nullptr;
  State state = kReady;
  const char* file = nullptr;  // of the synchronisation it waits at
  int line = 0;
  int group = 0;  // of the barrier: the block, or one more than the number of its part
  const uint32_t* counter = nullptr;
  uint32_t count = 0;
  uint64_t sent = 0, received = 0;
  int source = 0;
  bool waited = false;  // for the kernels before
  struct Copy {
    void* to;
    const void* from;  // null: zeros
    size_t bytes;
  };
  std::deque<std::vector<Copy>> batches;  // that have not arrived; the last one is not whole yet
#ifdef EMULATOR_ASAN
  void* fake_stack = nullptr;
#endif
};

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

class Block {
 public:
  using Body = std::function<void(const HostContext&)>;

  // `place` among the blocks that run at the same time: stacks are used again.
  Block(Session& session, int threads, const Body& body, int place = 0)
      : session_(session), body_(body), fibers_(threads) {
    if (threads % bark_accel::cuda::kWarp) std::abort();
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (int(stacks.size()) < (place + 1) * threads) stacks.emplace_back(new char[kStackBytes]);
    for (int i = 0; i < threads; ++i) fibers_[i].stack = stacks[place * threads + i].get();
  }

  int threads() const { return int(fibers_.size()); }
  int64_t index() const { return index_; }
  char* shared() const { return shared_.get(); }

  enum Turn { kRan, kNobody, kBroken };

  // False where the threads could not all finish.
  bool run(int64_t index, int64_t shared_bytes) {
    begin(index, shared_bytes);
    while (!done()) {
      if (turn() != kRan) return false;
    }
    return true;
  }

  bool done() const { return done_ == threads(); }

  // A thread that can runs, up to where it waits.
  Turn turn() {
    const int next = pick();
    if (next < 0) return kNobody;
    resume(next);
    return broken_ ? kBroken : kRan;
  }

  void begin(int64_t index, int64_t shared_bytes) {
    index_ = index;
    shared_.reset(static_cast<char*>(std::aligned_alloc(16, (shared_bytes + 15) / 16 * 16)));
    std::memset(shared_.get(), 0xff, shared_bytes);
    for (int i = 0; i < threads(); ++i) start(i);
    draw_order();
    done_ = 0;
    waiting_.assign(threads(), 0);
    arrived_.assign(threads() / bark_accel::cuda::kWarp, 0);
  }

  // Of `count` threads, group 0 all of them.
  void barrier(int thread, int group, int count, const char* file, int line) {
    const Site site{file, line};
    session_.barriers.insert(site);
    if (site == session_.broken) return;
    fibers_[thread].group = group;
    wait(thread, Fiber::kBarrier, file, line, count);
  }

  void wait_for(int thread, const uint32_t* counter, uint32_t count, const char* file, int line) {
    const Site site{file, line};
    session_.barriers.insert(site);
    if (site == session_.broken || *counter >= count) return;
    Fiber& fiber = fibers_[thread];
    fiber.counter = counter;
    fiber.count = count;
    fiber.state = Fiber::kCounter;
    leave(fiber, false);
    fiber.state = Fiber::kReady;
  }

  void wait_for_previous(int thread) { fibers_[thread].waited = true; }

  void release_next(int thread) { session_.released_early |= !fibers_[thread].waited; }

  void copy_later(int thread, const Fiber::Copy& copy) {
    if (!fibers_[thread].waited) broken_ = true;
    session_.random() % 2 ? arrive(copy) : fibers_[thread].batches.back().push_back(copy);
  }

  void end_batch(int thread) { fibers_[thread].batches.emplace_back(); }

  void wait_for_batches(int thread, int left, const char* file, int line) {
    const Site site{file, line};
    session_.barriers.insert(site);
    if (site == session_.broken) return;
    std::deque<std::vector<Fiber::Copy>>& batches = fibers_[thread].batches;
    while (int(batches.size()) > left + 1) {
      for (const Fiber::Copy& copy : batches.front()) arrive(copy);
      batches.pop_front();
    }
  }

  uint64_t shuffle(int thread, uint64_t value, int source, const char* file, int line) {
    const Site site{file, line};
    if (thread == 0) session_.shuffles.insert(site);
    if (site == session_.broken) return value;
    fibers_[thread].sent = value;
    fibers_[thread].source = source;
    wait(thread, Fiber::kShuffle, file, line);
    return fibers_[thread].received;
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };

  static void arrive(const Fiber::Copy& copy) {
    copy.from ? std::memcpy(copy.to, copy.from, copy.bytes) : std::memset(copy.to, 0, copy.bytes);
  }

  static void enter(unsigned high, unsigned low, int thread) {
    auto* block = reinterpret_cast<Block*>(uint64_t(high) << 32 | low);
    block->entered(thread);
    block->body_(HostContext{block, thread});
    block->finish(thread);
  }

  void start(int thread) {
    Fiber& fiber = fibers_[thread];
    fiber.state = Fiber::kReady;
    fiber.waited = false;
    fiber.batches.assign(1, {});
#ifdef EMULATOR_ASAN
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // fibers of a block that could not finish
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    const uint64_t self = reinterpret_cast<uint64_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 3, unsigned(self >> 32),
                unsigned(self), thread);
  }

  void draw_order() {
    const int warp = bark_accel::cuda::kWarp;
    std::vector<std::pair<unsigned, int>> keys(threads());
    std::vector<unsigned> of_warp(threads() / warp);
    for (unsigned& w : of_warp) w = session_.random() % 1024;
    for (int i = 0; i < threads(); ++i) {
      const unsigned key = session_.order == Order::kInOrder       ? i
                           : session_.order == Order::kStarveWarps ? of_warp[i / warp]
                                                                   : session_.random() % (1 << 20);
      keys[i] = {key, i};
    }
    std::sort(keys.begin(), keys.end());
    order_.clear();
    for (const auto& key : keys) order_.push_back(key.second);
  }

  // The first that can run, or -1.
  int pick() {
    const int n = threads(), from = session_.order == Order::kShuffled ? int(session_.random() % n) : 0;
    for (int i = 0; i < n; ++i) {
      const int thread = order_[(from + i) % n];
      if (can_run(fibers_[thread])) return thread;
    }
    return -1;
  }

  static bool can_run(const Fiber& fiber) {
    return fiber.state == Fiber::kReady || (fiber.state == Fiber::kCounter && *fiber.counter >= fiber.count);
  }

  void wait(int thread, Fiber::State state, const char* file, int line, int count = 0) {
    Fiber& fiber = fibers_[thread];
    if (!fiber.waited) broken_ = true;
    fiber.state = state;
    fiber.file = file;
    fiber.line = line;
    state == Fiber::kBarrier ? arrive_at_barrier(fiber, count) : arrive_at_shuffle(thread);
    if (fiber.state != Fiber::kReady || session_.order == Order::kShuffled || broken_) leave(fiber, false);
  }

  void arrive_at_barrier(const Fiber& fiber, int count) {
    if (++waiting_[fiber.group] < count) return;
    const int first = fiber.group ? (fiber.group - 1) * count : 0;
    for (int i = first; i < first + count; ++i) {
      Fiber& other = fibers_[i];
      const bool here = other.state == Fiber::kBarrier && other.group == fiber.group;
      if (!here || other.line != fiber.line || std::strcmp(other.file, fiber.file)) broken_ = true;
      other.state = Fiber::kReady;
    }
    waiting_[fiber.group] = 0;
  }

  void arrive_at_shuffle(int thread) {
    const int first = thread / bark_accel::cuda::kWarp * bark_accel::cuda::kWarp;
    if (++arrived_[thread / bark_accel::cuda::kWarp] < bark_accel::cuda::kWarp) return;
    arrived_[thread / bark_accel::cuda::kWarp] = 0;
    for (int i = first; i < first + bark_accel::cuda::kWarp; ++i) {
      Fiber& fiber = fibers_[i];
      if (fiber.source < 0 || fiber.source >= bark_accel::cuda::kWarp || fiber.line != fibers_[first].line) {
        broken_ = true;
        fiber.source = 0;
      }
      fiber.received = fibers_[first + fiber.source].sent;
      fiber.state = Fiber::kReady;
    }
  }

  void finish(int thread) {
    if (!fibers_[thread].waited || fibers_[thread].batches.size() > 1) broken_ = true;
    fibers_[thread].state = Fiber::kDone;
    ++done_;
    leave(fibers_[thread], true);
  }

  void resume(int thread) {
#ifdef EMULATOR_ASAN
    void* fake;
    __sanitizer_start_switch_fiber(&fake, fibers_[thread].stack, kStackBytes);
#endif
    swapcontext(&scheduler_, &fibers_[thread].context);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void entered(int) {
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_size_);
#endif
  }

  void leave(Fiber& fiber, [[maybe_unused]] bool for_good) {
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack_, scheduler_size_);
#endif
    swapcontext(&fiber.context, &scheduler_);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack_, &scheduler_size_);
#endif
  }

  Session& session_;
  const Body& body_;
  std::vector<Fiber> fibers_;
  std::vector<int> order_, arrived_, waiting_;
  std::unique_ptr<char[], Free> shared_;
  ucontext_t scheduler_;
  int64_t index_ = 0;
  int done_ = 0;
  bool broken_ = false;
#ifdef EMULATOR_ASAN
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_size_ = 0;
#endif
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
  owner->copy_later(index, {to, there ? from : nullptr, sizeof(T)});
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

// The Executor of the launch functions in csrc/cuda.
struct Executor {
  Session& session;

  template <class Kernel>
  void launch(const typename Kernel::Params& params) {
    const bark_accel::cuda::Grid grid = checked_grid<Kernel>(params);
    const Block::Body body = [&](const HostContext& ctx) { Kernel::run(ctx, params); };
    Block block(session, grid.threads, body);
    std::vector<int64_t> order(grid.blocks);
    for (int64_t i = 0; i < grid.blocks; ++i) order[i] = i;
    if (session.order != Order::kInOrder) std::shuffle(order.begin(), order.end(), session.random);
    for (const int64_t index : order) {
      if (!block.run(index, grid.shared_bytes)) {
        session.failed = true;
        return;
      }
    }
  }

  // All blocks at once, as many as the session says, with a ring of weights as long as it says, or without.
  template <class Kernel>
  void launch_persistent(typename Kernel::Params params) {
    params.blocks = 1 + int32_t(session.random() % 5);
    *params.arrived = 0;
    const int32_t depth = int32_t(session.random() % 4) * 2;
    if (depth > 0) params = Kernel::with_ring(params, depth);
    const bark_accel::cuda::Grid grid = checked_grid<Kernel>(params, 99 * 1024);
    const Block::Body body = [&](const HostContext& ctx) {
      if (depth > 0) return Kernel::run(ctx, params);
      Kernel::run(PlainHostContext{ctx}, params);
    };
    std::vector<std::unique_ptr<Block>> waiting;
    for (int i = 0; i < grid.blocks; ++i) {
      waiting.push_back(std::make_unique<Block>(session, grid.threads, body, i));
      waiting.back()->begin(i, grid.shared_bytes);
    }
    if (session.order != Order::kInOrder) std::shuffle(waiting.begin(), waiting.end(), session.random);
    while (!waiting.empty() && !session.failed) session.failed = !one_turn(waiting);
  }

 private:
  // Of the first block that can, or of the first from any of them on.
  bool one_turn(std::vector<std::unique_ptr<Block>>& blocks) {
    const size_t n = blocks.size(), from = session.order == Order::kShuffled ? session.random() % n : 0;
    for (size_t i = 0; i < n; ++i) {
      Block& block = *blocks[(from + i) % n];
      const Block::Turn turn = block.turn();
      if (turn == Block::kNobody) continue;
      if (block.done()) blocks.erase(blocks.begin() + (from + i) % n);
      return turn == Block::kRan;
    }
    return false;
  }

  template <class Kernel>
  static bark_accel::cuda::Grid checked_grid(const typename Kernel::Params& params,
                                             int64_t most_bytes = 48 * 1024) {
    const bark_accel::cuda::Grid grid = Kernel::grid(params);
    if (grid.shared_bytes > most_bytes) {
      std::fprintf(stderr, "expected at most %lld bytes of shared memory, got %lld\n", (long long)most_bytes,
                   (long long)grid.shared_bytes);
      std::abort();
    }
    return grid;
  }
};

}  // namespace emulator
