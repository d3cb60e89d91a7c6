#include "isa.h"

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>
#ifdef __linux__
#include <malloc.h>
#endif

#include <atomic>
#include <cstdlib>
#include <memory>

#include "team.h"

namespace bark_accel {
namespace {

std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables{&generic_kernels()};
#ifdef BARK_ACCEL_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    tables.push_back(&avx2_kernels());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      tables.push_back(&avx512_kernels());
      if (__builtin_cpu_supports("avx512vnni")) tables.push_back(&avx512_vnni_kernels());
    }
  }
#endif
  return tables;
}

std::atomic<const KernelTable*>& active() {
  static std::atomic<const KernelTable*> table{supported_tables().back()};
  return table;
}

struct Scratch {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory;
  int64_t floats = 0;
};

thread_local Scratch scratch;

}  // namespace

const KernelTable& kernels() { return *active().load(std::memory_order_relaxed); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : supported_tables()) names.emplace_back(table->name);
  return names;
}

void set_isa(const std::string& name) {
  for (const KernelTable* table : supported_tables()) {
    if (name == table->name) {
      active().store(table, std::memory_order_relaxed);
      return;
    }
  }
  TORCH_CHECK_VALUE(false, "set_isa: expected one of ", c10::Join(", ", available_isas()), ", got ", name);
}

float* thread_scratch(int64_t floats) {
  if (floats > scratch.floats) {
    const int64_t bytes = (floats * int64_t(sizeof(float)) + 63) / 64 * 64;
    scratch.floats = 0;
    scratch.memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    TORCH_CHECK(scratch.memory, "bark_accel: out of memory for ", bytes, " bytes of scratch");
    scratch.floats = floats;
  }
  return scratch.memory.get();
}

int64_t release_memory() {
  std::atomic<int64_t> floats{0};
  run_team(team_size(), [&](const Team&) {
    floats += scratch.floats;
    scratch = {};
  });
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  return floats * int64_t(sizeof(float));
}

}  // namespace bark_accel
