#include "cpu.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace chan {

std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  // These ask the CPU and, for wide registers, whether the system saves them.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
    names.push_back("avx512");
  }
  if (avx2) names.push_back("avx2");
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  if (getauxval(AT_HWCAP) & kDotProduct) names.push_back("dotprod");
#endif
  names.push_back("generic");
  return names;
}

}  // namespace chan
