// A thread that runs until it leaves, on a stack of its own, and goes on there; sanitizers are told.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATOR_ASAN 1
#endif

namespace emulator {

constexpr size_t kStackBytes = 32 * 1024;

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
#ifdef EMULATOR_ASAN
  void* fake_stack = nullptr;
#endif
};

// Between the fibers of an owner and who resumes them.
class Switch {
 public:
  // `enter` gets the owner's address in two halves, and `index`.
  static void start(Fiber& fiber, void (*enter)(unsigned, unsigned, int), const void* owner, int index) {
#ifdef EMULATOR_ASAN
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // of one that could not finish
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    const uint64_t address = reinterpret_cast<uint64_t>(owner);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 3, unsigned(address >> 32),
                unsigned(address), index);
  }

  template <class Owner>
  static Owner& owner_of(unsigned high, unsigned low) {
    return *reinterpret_cast<Owner*>(uint64_t(high) << 32 | low);
  }

  void resume(Fiber& fiber) {
#ifdef EMULATOR_ASAN
    void* fake;
    __sanitizer_start_switch_fiber(&fake, fiber.stack, kStackBytes);
#endif
    swapcontext(&resumer_, &fiber.context);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // The first thing that a fiber does.
  void entered() {
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &resumer_stack_, &resumer_size_);
#endif
  }

  void leave(Fiber& fiber, [[maybe_unused]] bool for_good) {
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, resumer_stack_, resumer_size_);
#endif
    swapcontext(&fiber.context, &resumer_);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &resumer_stack_, &resumer_size_);
#endif
  }

 private:
  ucontext_t resumer_;
#ifdef EMULATOR_ASAN
  const void* resumer_stack_ = nullptr;
  size_t resumer_size_ = 0;
#endif
};

}  // namespace emulator
