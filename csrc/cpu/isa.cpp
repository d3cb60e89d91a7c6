#include "isa.h"

#ifdef __linux__
#include <malloc.h>
#include <sys/mman.h>
#endif

#ifdef BARK_ACCEL_X86
#include <cpuid.h>
#endif

#ifdef BARK_ACCEL_ARM
#ifdef __APPLE__
#include <sys/sysctl.h>
#else
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#endif

#include <atomic>
#include <cstdlib>
#include <memory>
#include <utility>

#include "team.h"

namespace bark_accel {
namespace {

#ifdef BARK_ACCEL_X86
// Not every compiler's __builtin_cpu_supports knows these two. Both need AVX2 beside them.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
}

bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
#endif

#ifdef BARK_ACCEL_ARM
bool has_dot_products() {
#ifdef __APPLE__
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
}
#endif

std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables{&generic_kernels()};
#ifdef BARK_ACCEL_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    tables.push_back(&avx2_kernels());
    if (has_avx_vnni()) tables.push_back(&avx_vnni_kernels());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      tables.push_back(&avx512_kernels());
      if (__builtin_cpu_supports("avx512vnni")) tables.push_back(&avx512_vnni_kernels());
    }
  }
#endif
#ifdef BARK_ACCEL_ARM
  tables.push_back(&neon_kernels());
  if (has_dot_products()) tables.push_back(&neon_dotprod_kernels());
#endif
  return tables;
}

std::atomic<const KernelTable*>& active() {
  static std::atomic<const KernelTable*> table{supported_tables().back()};
  return table;
}

constexpr int64_t kLargePage = 2 << 20;

// Grows, and is freed with its thread or by release().
class Scratch {
 public:
  float* at_least(int64_t floats) {
    if (floats > floats_) {
      const int64_t size = floats * int64_t(sizeof(float)), page = size < kLargePage ? 64 : kLargePage;
      const int64_t bytes = (size + page - 1) / page * page;
      floats_ = 0;
      memory_.reset(static_cast<float*>(std::aligned_alloc(page, bytes)));
      RUNTIME_CHECK(memory_, "bark_accel: out of memory for ", bytes, " bytes of scratch");
#ifdef MADV_HUGEPAGE
      if (page == kLargePage) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#endif
      floats_ = floats;
    }
    return memory_.get();
  }

  // Returns how many floats were freed.
  int64_t release() {
    memory_.reset();
    return std::exchange(floats_, 0);
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t floats_ = 0;
};

thread_local Scratch own_scratch, team_scratch;

}  // namespace

const KernelTable& kernels() { return *active().load(std::memory_order_relaxed); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : supported_tables()) names.emplace_back(table->name);
  return names;
}

bool set_isa(const std::string& name) {
  for (const KernelTable* table : supported_tables()) {
    if (name != table->name) continue;
    active().store(table, std::memory_order_relaxed);
    return true;
  }
  return false;
}

float* thread_scratch(int64_t floats) { return own_scratch.at_least(floats); }

float* shared_scratch(int64_t floats) { return team_scratch.at_least(floats); }

int64_t release_memory() {
  std::atomic<int64_t> floats{0};
  run_team(team_size(), [&](const Team&) { floats += own_scratch.release() + team_scratch.release(); });
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  return floats * int64_t(sizeof(float));
}

}  // namespace bark_accel
