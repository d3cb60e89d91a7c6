// What the module shows of the CUDA side, where it was built with one.
#pragma once

#include <cstdint>

namespace bark_accel {

// The stream that the ops launch on: torch's current one.
uintptr_t cuda_stream(int64_t device);

// Programmatic dependent launch (compute capability 9.0 and later).
void set_dependent_launch(bool on);

// One kernel a decode step, where persistent_step.cuh can do it.
void set_persistent_step(bool on);

// Whether a kernel's blocks may wait for each other on a device.
bool runs_all_blocks_at_once(int64_t device);

}  // namespace bark_accel
