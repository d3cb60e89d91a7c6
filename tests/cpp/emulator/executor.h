// Runs the kernel bodies of csrc/cuda on the CPU, one fiber a thread. Between two synchronisations a thread
// runs alone, and who goes next is up to a scheduler that likes to starve lanes and warps: what a missing
// barrier allows to happen, happens. Barriers and shuffles are known by their call sites, and one of them can
// be made to do nothing (a mutant). Shared memory starts as NaN in a heap block of exactly the size asked
// for. Reported as failures: threads that wait at different barriers, that leave a barrier or shuffle to the
// others for ever, shuffles with inactive lanes, and threads that end or meet others before they have waited
// for the kernels before theirs. Of a kernel whose blocks wait for each other all run at once, in turns that
// the scheduler deals as unfairly. Copies for later arrive at once or not before they are waited for.
#pragma once

#include <cstdio>

#include "host_context.h"

namespace emulator {

// The Executor of the launch functions in csrc/cuda.
struct Executor {
  Session& session;

  template <class Kernel>
  void launch(const typename Kernel::Params& params) {
    const bark_accel::cuda::Grid grid = checked_grid<Kernel>(params);
    const Block::Body body = [&](Block& block, int thread) {
      Kernel::run(HostContext{&block, thread}, params);
    };
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

  // All blocks at once, as many as the session's card has or as it happens; so is the ring of weights.
  template <class Kernel>
  void launch_persistent(typename Kernel::Params params) {
    const Card& card = session.card;
    int64_t most_bytes = 99 * 1024;
    if (card.multiprocessors > 0) {
      most_bytes = card.shared_bytes;
      params.blocks = card.multiprocessors;
      if (card.copies) params = Kernel::with_longest_ring(params, most_bytes);
    } else {
      params.blocks = 1 + int32_t(session.random() % 5);
      if (const int32_t depth = int32_t(session.random() % 4) * 2) params = Kernel::with_ring(params, depth);
    }
    *params.arrived = 0;
    const bark_accel::cuda::Grid grid = checked_grid<Kernel>(params, most_bytes);
    const Block::Body body = [&](Block& block, int thread) {
      const HostContext ctx{&block, thread};
      if (params.ring_depth > 0) return Kernel::run(ctx, params);
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
