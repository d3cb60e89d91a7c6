// What Python calls through ctypes (bark_accel/ops/_library.py). Ops register themselves in cpu/ and cuda/;
// their schemas are in bark_accel/ops/schemas.py.
#include <torch/headeronly/version.h>

#include <string>

#include "checks.h"
#include "cpu/generator_state.h"
#include "cpu/isa.h"
#include "cpu/step_team.h"
#ifdef BARK_ACCEL_CUDA_ARCHS
#include "cuda/bind.h"
#else
#define BARK_ACCEL_CUDA_ARCHS "none"
#define BARK_ACCEL_WITHOUT_CUDA
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* bark_accel_torch() { return TORCH_VERSION; }
#ifdef _OPENMP
EXPORT const char* bark_accel_compiler() { return __VERSION__; }
#else
EXPORT const char* bark_accel_compiler() { return __VERSION__ ", without OpenMP"; }
#endif
EXPORT const char* bark_accel_cuda() { return BARK_ACCEL_CUDA_ARCHS; }

EXPORT const char* bark_accel_isa() { return bark_accel::kernels().name; }

// Names with commas between them.
EXPORT const char* bark_accel_available_isas() {
  static const std::string names = [] {
    std::string joined;
    for (const std::string& name : bark_accel::available_isas()) joined += (joined.empty() ? "" : ",") + name;
    return joined;
  }();
  return names.c_str();
}

EXPORT bool bark_accel_set_isa(const char* name) { return bark_accel::set_isa(name); }

EXPORT void bark_accel_set_step_threads(int64_t fixed, int64_t start, int64_t most) {
  bark_accel::set_step_threads(fixed, start, most);
}
EXPORT int64_t bark_accel_last_step_threads() { return bark_accel::last_step_threads(); }

EXPORT const char* bark_accel_last_refusal() { return bark_accel::last_refusal(); }

EXPORT int64_t bark_accel_release_memory() { return bark_accel::release_memory(); }

// Draws exponential noise [count] float32 as the samplers do, from a state of a CPU generator, which
// advances.
EXPORT void bark_accel_draw_noise(void* state, float* noise, int64_t count) {
  const bark_accel::Words words(*static_cast<bark_accel::GeneratorState*>(state), count);
  for (int64_t i = 0; i < count; ++i) noise[i] = bark_accel::kernels().exponential(words.first() + 2 * i);
}

#ifndef BARK_ACCEL_WITHOUT_CUDA
EXPORT uintptr_t bark_accel_cuda_stream(int64_t device) { return bark_accel::cuda_stream(device); }
EXPORT void bark_accel_set_dependent_launch(bool on) { bark_accel::set_dependent_launch(on); }
EXPORT void bark_accel_set_persistent_step(bool on) { bark_accel::set_persistent_step(on); }
EXPORT bool bark_accel_runs_all_blocks_at_once(int64_t device) {
  return bark_accel::runs_all_blocks_at_once(device);
}
#endif
