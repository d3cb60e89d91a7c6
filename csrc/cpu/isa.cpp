#include "isa.h"

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <atomic>
#include <cstdlib>
#include <memory>

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
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<float, Free> buffer;
  thread_local int64_t capacity = 0;
  if (floats > capacity) {
    const int64_t bytes = (floats * int64_t(sizeof(float)) + 63) / 64 * 64;
    buffer.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    capacity = buffer ? floats : 0;
    TORCH_CHECK(buffer, "bark_accel: out of memory for ", bytes, " bytes of scratch");
  }
  return buffer.get();
}

}  // namespace bark_accel
