// AVX-VNNI: vpdpbusd on registers of eight sums, for CPUs without AVX-512.

#include "kernels.h"
#include "target.h"

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)

// CHAN_EVEX compiles the same kernels to AVX-512 VNNI's instructions on registers of eight sums, so that a CPU that has
// these and no AVX-VNNI can test them.
#if defined(CHAN_EVEX)
CHAN_TARGET("avx2,fma,f16c,avx512vl,avx512vnni")
#else
CHAN_TARGET("avx2,fma,f16c,avxvnni")
#endif

#include "lanes256.h"

namespace chan {
namespace {

struct AvxVnni : Lanes256 {
    static constexpr int ROW_VECTORS = 6;
    using Codes = __m256i;
    using Digits = __m256i;
    static constexpr bool SIGNED = false;

    static CHAN_INLINE Codes codes(const uint8_t* bytes) { return load(bytes); }
    static CHAN_INLINE Codes four_codes(const uint8_t* bytes) { return four(bytes); }
    static CHAN_INLINE Digits digits(const int8_t* bytes) { return load(bytes); }
    static CHAN_INLINE Digits four_digits(const int8_t* spread) { return four(spread); }

    static constexpr int SPREAD = FOUR;
    static const int8_t* spread(const int8_t* digits, int64_t) { return digits; }

    static CHAN_INLINE Int add_products(Int sums, Codes codes, Digits digits) {
#ifdef CHAN_EVEX
        return (Int)_mm256_dpbusd_epi32((__m256i)sums, codes, digits);
#else
        return (Int)_mm256_dpbusd_avx_epi32((__m256i)sums, codes, digits);
#endif
    }
};

constexpr Kernels KERNELS = Lanes<AvxVnni>::kernels("avx_vnni");

}  // namespace

}  // namespace chan

CHAN_TARGET_END

#include <cpuid.h>

namespace chan {
const Kernels* avxvnni_kernels() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return nullptr;
#ifdef CHAN_EVEX
    const bool there = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool there = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#endif
    return there ? &KERNELS : nullptr;
}
}  // namespace chan

#else

namespace chan {
const Kernels* avxvnni_kernels() { return nullptr; }
}  // namespace chan

#endif
