// The threads of a block, one of which runs at a time, up to where it waits; who goes next is up to a
// scheduler that likes to starve lanes and warps.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "context.cuh"
#include "fiber.h"
#include "late_copies.h"
#include "session.h"

namespace emulator {

using bark_accel::cuda::kWarp;

struct Thread : Fiber {
  enum State { kReady, kBarrier, kShuffle, kCounter, kDone };
  State state = kReady;
  const char* file = nullptr;  // of the synchronisation it waits at
  int line = 0;
  int group = 0;  // of the barrier: the block, or one more than the number of its part
  const uint32_t* counter = nullptr;
  uint32_t count = 0;
  uint64_t sent = 0, received = 0;
  int source = 0;
  bool waited = false;  // for the kernels before
  LateCopies copies;
};

class Block {
 public:
  using Body = std::function<void(Block&, int thread)>;

  // `place` among the blocks that run at the same time: stacks are used again.
  Block(Session& session, int threads, const Body& body, int place = 0)
      : session_(session), body_(body), threads_(threads) {
    if (threads % kWarp) std::abort();
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (int(stacks.size()) < (place + 1) * threads) stacks.emplace_back(new char[kStackBytes]);
    for (int i = 0; i < threads; ++i) threads_[i].stack = stacks[place * threads + i].get();
  }

  int threads() const { return int(threads_.size()); }
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
    if (stuck_ && !can_run(*stuck_)) return kNobody;
    stuck_ = nullptr;
    const int next = pick();
    if (next < 0) {
      if (session_.order != Order::kShuffled) stuck_ = waits_for_others();
      return kNobody;
    }
    switch_.resume(threads_[next]);
    return broken_ ? kBroken : kRan;
  }

  void begin(int64_t index, int64_t shared_bytes) {
    index_ = index;
    shared_.reset(static_cast<char*>(std::aligned_alloc(16, (shared_bytes + 15) / 16 * 16)));
    std::memset(shared_.get(), 0xff, shared_bytes);
    for (int i = 0; i < threads(); ++i) start(i);
    draw_order();
    done_ = 0;
    stuck_ = nullptr;
    waiting_.assign(threads(), 0);
    arrived_.assign(threads() / kWarp, 0);
  }

  // Of `count` threads, group 0 all of them.
  void barrier(int thread, int group, int count, const char* file, int line) {
    const Site site{file, line};
    session_.barriers.insert(site);
    if (site == session_.broken) return;
    threads_[thread].group = group;
    wait(thread, Thread::kBarrier, file, line, count);
  }

  void wait_for(int thread, const uint32_t* counter, uint32_t count, const char* file, int line) {
    const Site site{file, line};
    session_.barriers.insert(site);
    if (site == session_.broken || *counter >= count) return;
    Thread& waiting = threads_[thread];
    waiting.counter = counter;
    waiting.count = count;
    waiting.state = Thread::kCounter;
    switch_.leave(waiting, false);
    waiting.state = Thread::kReady;
  }

  void wait_for_previous(int thread) { threads_[thread].waited = true; }

  void release_next(int thread) { session_.released_early |= !threads_[thread].waited; }

  void copy_later(int thread, const Copy& copy) {
    if (!threads_[thread].waited) broken_ = true;
    session_.random() % 2 ? copy.arrive() : threads_[thread].copies.add(copy);
  }

  void end_batch(int thread) { threads_[thread].copies.end_batch(); }

  void wait_for_batches(int thread, int left, const char* file, int line) {
    const Site site{file, line};
    session_.barriers.insert(site);
    if (site == session_.broken) return;
    threads_[thread].copies.wait(left);
  }

  uint64_t shuffle(int thread, uint64_t value, int source, const char* file, int line) {
    const Site site{file, line};
    if (thread == 0) session_.shuffles.insert(site);
    if (site == session_.broken) return value;
    threads_[thread].sent = value;
    threads_[thread].source = source;
    wait(thread, Thread::kShuffle, file, line);
    return threads_[thread].received;
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };

  static void enter(unsigned high, unsigned low, int thread) {
    Block& block = Switch::owner_of<Block>(high, low);
    block.switch_.entered();
    block.body_(block, thread);
    block.finish(thread);
  }

  void start(int thread) {
    Thread& starting = threads_[thread];
    starting.state = Thread::kReady;
    starting.waited = false;
    starting.copies = {};
    Switch::start(starting, &Block::enter, this, thread);
  }

  void draw_order() {
    std::vector<std::pair<unsigned, int>> keys(threads());
    std::vector<unsigned> of_warp(threads() / kWarp);
    for (unsigned& w : of_warp) w = session_.random() % 1024;
    for (int i = 0; i < threads(); ++i) {
      const unsigned key = session_.order == Order::kInOrder       ? i
                           : session_.order == Order::kStarveWarps ? of_warp[i / kWarp]
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
      if (can_run(threads_[thread])) return thread;
    }
    return -1;
  }

  // The one thread that waits for other blocks, or null.
  const Thread* waits_for_others() const {
    const Thread* found = nullptr;
    for (const Thread& thread : threads_) {
      if (thread.state != Thread::kCounter) continue;
      if (found) return nullptr;
      found = &thread;
    }
    return found;
  }

  static bool can_run(const Thread& fiber) {
    return fiber.state == Thread::kReady ||
           (fiber.state == Thread::kCounter && *fiber.counter >= fiber.count);
  }

  void wait(int thread, Thread::State state, const char* file, int line, int count = 0) {
    Thread& fiber = threads_[thread];
    if (!fiber.waited) broken_ = true;
    fiber.state = state;
    fiber.file = file;
    fiber.line = line;
    state == Thread::kBarrier ? arrive_at_barrier(fiber, count) : arrive_at_shuffle(thread);
    if (fiber.state != Thread::kReady || session_.order == Order::kShuffled || broken_)
      switch_.leave(fiber, false);
  }

  void arrive_at_barrier(const Thread& fiber, int count) {
    if (++waiting_[fiber.group] < count) return;
    const int first = fiber.group ? (fiber.group - 1) * count : 0;
    for (int i = first; i < first + count; ++i) {
      Thread& other = threads_[i];
      const bool here = other.state == Thread::kBarrier && other.group == fiber.group;
      if (!here || other.line != fiber.line || std::strcmp(other.file, fiber.file)) broken_ = true;
      other.state = Thread::kReady;
    }
    waiting_[fiber.group] = 0;
  }

  void arrive_at_shuffle(int thread) {
    const int first = thread / kWarp * kWarp;
    if (++arrived_[thread / kWarp] < kWarp) return;
    arrived_[thread / kWarp] = 0;
    for (int i = first; i < first + kWarp; ++i) {
      Thread& fiber = threads_[i];
      if (fiber.source < 0 || fiber.source >= kWarp || fiber.line != threads_[first].line) {
        broken_ = true;
        fiber.source = 0;
      }
      fiber.received = threads_[first + fiber.source].sent;
      fiber.state = Thread::kReady;
    }
  }

  void finish(int thread) {
    if (!threads_[thread].waited || !threads_[thread].copies.all_waited_for()) broken_ = true;
    threads_[thread].state = Thread::kDone;
    ++done_;
    switch_.leave(threads_[thread], true);
  }

  Session& session_;
  const Body& body_;
  std::vector<Thread> threads_;
  std::vector<int> order_, arrived_, waiting_;
  std::unique_ptr<char[], Free> shared_;
  Switch switch_;
  const Thread* stuck_ = nullptr;  // nobody can run before it can
  int64_t index_ = 0;
  int done_ = 0;
  bool broken_ = false;
};

}  // namespace emulator
