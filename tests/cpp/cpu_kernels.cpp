// The kernels of csrc/kernels as csrc/cpu calls them, against double precision, on buffers of exactly the
// size they need: built with a sanitizer, this sees what they read, write and share too much. BARK_KERNELS
// lists the tables that were linked. Arguments: none, all cases; --short N, every N-th buffer of every case
// in turn one element too short, where the kernels have to die; --no-barrier, threads that do not wait for
// each other.
#include <sys/wait.h>
#include <unistd.h>

#include "cpu_cases/attention.h"
#include "cpu_cases/codec.h"
#include "cpu_cases/decode_step.h"
#include "cpu_cases/embedding_sum.h"
#include "cpu_cases/products.h"
#include "cpu_cases/sampling.h"

namespace {

using namespace cpu_cases;

constexpr Case kCases[] = {
    {"decode_step", 60, true, decode_steps},      {"two teams", 6, true, two_teams},
    {"attention", 40, true, attention},           {"int16_attention", 24, true, int16_attention},
    {"int16_linear", 24, true, int16_linear},     {"int8_linear", 24, true, int8_linear},
    {"float32_linear", 24, true, float32_linear}, {"attention anywhere", 24, true, attention_anywhere},
    {"embedding_sum", 40, true, embedding_sums},  {"MT19937", 4, true, generators},
    {"sample_row", 150, true, samples},           {"largest integers", 24, true, largest_integers},
    {"float32_conv", 24, true, float32_conv},     {"lstm_layer", 24, true, lstm_layer},
};

// Whether a child dies of an element that is missing; its report goes nowhere.
bool dies(const Case& test, unsigned seed, int64_t without) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) _exit(3);
    emulator::Session session;
    int64_t checks = 0;
    short_block = without;
    blocks = 0;
    _exit(run_case(test, session, seed, true, &checks) ? 2 : 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 2));
}

int shorten_blocks(int64_t step) {
  int64_t tried = 0, survivors = 0;
  for (const Case& test : kCases) {
    emulator::Session session;
    int64_t checks = 0;
    short_block = -1;
    blocks = 0;
    if (run_case(test, session, 0, false, &checks)) return 1;
    const int64_t count = blocks;
    for (int64_t i = 0; i < count; i += step, ++tried) {
      if (dies(test, 0, i)) continue;
      std::fprintf(stderr, "nobody noticed: %s, block %lld\n", test.name, (long long)i);
      ++survivors;
    }
  }
  std::printf("%lld blocks too short, %lld not noticed\n", (long long)tried, (long long)survivors);
  return survivors || !tried;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  no_barrier = mode == "--no-barrier";
  if (mode == "--short") return shorten_blocks(argc > 2 ? std::atoll(argv[2]) : 1);
  return run_all(kCases, int(std::size(kCases)), mode);
}
