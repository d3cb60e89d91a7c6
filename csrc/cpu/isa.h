// Which kernel table is in use: the best one this CPU supports, unless set_isa chose another.
#pragma once

#include <string>
#include <vector>

#include "../kernels/params.h"

namespace bark_accel {

const KernelTable& kernels();
std::vector<std::string> available_isas();  // worst first; "generic" is always there
bool set_isa(const std::string& name);      // false: not one of them

// Per-thread scratch, aligned to 64 bytes, valid until the next call on this thread.
float* thread_scratch(int64_t floats);
// The same for the thread that calls an op, of all threads' use; kept apart from that thread's own scratch.
float* shared_scratch(int64_t floats);
// Frees that of this thread and of its team, and gives the system back what is free in the heap; returns the
// bytes of scratch.
int64_t release_memory();

}  // namespace bark_accel
