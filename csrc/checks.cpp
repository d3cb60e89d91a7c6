#include "checks.h"

namespace bark_accel {
namespace {

thread_local std::string refusal;

}  // namespace

void refuse(const std::string& message) {
  refusal = message;
  throw std::invalid_argument(message);
}

const char* last_refusal() { return refusal.c_str(); }

}  // namespace bark_accel
