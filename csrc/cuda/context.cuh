// What a kernel body may ask of the machine. A body is a template over its Context and knows neither CUDA nor
// torch: nvcc compiles it with DeviceContext, the emulator of tests/cpp with a context of its own.
//
// clang-format off
//   thread(), threads(), block()  indices; blocks and threads are one-dimensional, threads a multiple of 32
//   barrier()                     waits for all threads of the block; orders shared memory, and global memory in the block
//   shuffle(value, lane)          the value that another lane of the warp passed; all 32 lanes call it; orders no memory
//   atomic_add(address, value)    on shared memory; what was there before
//   shared()                      the block's shared memory, aligned to 16 bytes
//   wait_for_previous()           what earlier kernels wrote is visible; comes before any use of memory that kernels write
//   release_next()                the next kernel may be scheduled; its wait_for_previous() still waits for all of this one
// The last two are no-ops without programmatic dependent launch.
//
// Of a kernel whose blocks all run at once (persistent_step.cuh), and of no other; in any other no block waits for another:
//   part_barrier(part, threads)   as barrier(), for threads [part * threads, (part + 1) * threads) of the block
//   arrive(counter)               adds one, by one thread; what it has seen written is visible to who waits for the counter
//   wait_for(counter, count)      by one thread; returns once the counter is there. An error of the device after seconds.
//   kCopies                       whether there are copies that nobody waits for yet, which the next three are:
//   copy_later(to, from, there)   4 or 16 bytes into shared memory, zeros without `there`; visible to this thread alone
//   end_batch()                   the copies since the last one are a batch
//   wait_for_batches(left)        returns once at most the last `left` of the thread's batches, one less than a
//                                 ring_size or 0, are on their way
// clang-format on
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define BARK_DEVICE __device__ __forceinline__
#define BARK_BOTH __host__ __device__ __forceinline__
#define BARK_CALLED __device__ __noinline__
#define BARK_UNROLL _Pragma("unroll")
#define BARK_ROLLED _Pragma("unroll 1")
#else
#define BARK_DEVICE inline
#define BARK_BOTH inline
#define BARK_CALLED inline
#define BARK_UNROLL
#define BARK_ROLLED
#endif

namespace bark_accel::cuda {

constexpr int kWarp = 32;

// Batches of copies that a thread may have on their way (weight_ring.cuh), largest first; 0 after the last.
constexpr int ring_size(int i) {
  constexpr int kSizes[] = {22, 14, 10, 6, 4, 2, 0};
  return kSizes[i];
}

BARK_BOTH int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
BARK_BOTH int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
BARK_BOTH int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// How a kernel is launched.
struct Grid {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

#ifdef __CUDACC__
constexpr uint32_t kMostTries = 1u << 23;  // a look at the counter takes about half a microsecond

struct DeviceContext {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  static constexpr bool kCopies = false;
#else
  static constexpr bool kCopies = true;
#endif

  BARK_DEVICE int thread() const { return int(threadIdx.x); }
  BARK_DEVICE int threads() const { return int(blockDim.x); }
  BARK_DEVICE int64_t block() const { return blockIdx.x; }
  BARK_DEVICE void barrier() const { __syncthreads(); }
  BARK_DEVICE void part_barrier(int part, int threads) const {
    asm volatile("bar.sync %0, %1;" ::"r"(part + 1), "r"(threads) : "memory");
  }
  BARK_DEVICE void arrive(uint32_t* counter) const {
    asm volatile("fence.acq_rel.gpu;\n\tred.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
  BARK_DEVICE void wait_for(const uint32_t* counter, uint32_t count) const {
    for (uint32_t tries = 0;; ++tries) {
      uint32_t there;
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(counter) : "memory");
      if (there >= count) return;
      if (tries == kMostTries) asm volatile("trap;");
    }
  }
  template <class T>
  BARK_DEVICE T shuffle(T value, int lane) const {
    return __shfl_sync(0xffffffffu, value, lane);
  }
  template <class T>
  BARK_DEVICE T atomic_add(T* address, T value) const {
    return atomicAdd(address, value);
  }
  BARK_DEVICE char* shared() const {
    extern __shared__ __align__(16) char memory[];
    return memory;
  }
  template <class T>
  BARK_DEVICE void copy_later([[maybe_unused]] T* to, [[maybe_unused]] const T* from,
                              [[maybe_unused]] bool there) const {
    static_assert(sizeof(T) == 16 || sizeof(T) == 4);
#if __CUDA_ARCH__ >= 800
    const uint32_t at = uint32_t(__cvta_generic_to_shared(to)), bytes = there ? sizeof(T) : 0;
    if constexpr (sizeof(T) == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes)
                   : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(bytes)
                   : "memory");
    }
#endif
  }
  BARK_DEVICE void end_batch() const {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  template <int kSize = 0>
  BARK_DEVICE void wait_for_batches([[maybe_unused]] int left) const {
#if __CUDA_ARCH__ >= 800
    constexpr int kLeft = ring_size(kSize) > 0 ? ring_size(kSize) - 1 : 0;  // the instruction has it in it
    if constexpr (kLeft == 0) {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    } else if (left == kLeft) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
    } else {
      wait_for_batches<kSize + 1>(left);
    }
#endif
  }
  BARK_DEVICE void wait_for_previous() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  }
  BARK_DEVICE void release_next() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
  }
};
#endif

template <class Context>
BARK_DEVICE int lane_of(const Context& ctx) {
  return ctx.thread() % kWarp;
}

template <class Context>
BARK_DEVICE int warp_of(const Context& ctx) {
  return ctx.thread() / kWarp;
}

// `op` over `width` neighbouring lanes (a power of two), the same result in each of them.
template <class Context, class T, class Op>
BARK_DEVICE T warp_reduce(const Context& ctx, T value, Op op, int width = kWarp) {
  for (int mask = width / 2; mask > 0; mask /= 2) value = op(value, ctx.shuffle(value, lane_of(ctx) ^ mask));
  return value;
}

// `op` over the block, in one order for every thread. `scratch` has one T per warp and is free again
// afterwards.
template <class Context, class T, class Op>
BARK_DEVICE T block_reduce(const Context& ctx, T value, T* scratch, Op op) {
  value = warp_reduce(ctx, value, op);
  if (lane_of(ctx) == 0) scratch[warp_of(ctx)] = value;
  ctx.barrier();
  T total = scratch[0];
  for (int w = 1; w < ctx.threads() / kWarp; ++w) total = op(total, scratch[w]);
  ctx.barrier();
  return total;
}

struct Sum {
  template <class T>
  BARK_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <class T>
  BARK_DEVICE T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

}  // namespace bark_accel::cuda
