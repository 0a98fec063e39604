// Arm's dot products (SDOT) of signed bytes with signed ones: codes are made signed by taking 128 off.

#include "kernels.h"
#include "target.h"

#if defined(__aarch64__) && defined(__linux__) && (!defined(__clang__) || __clang_major__ >= 16)

CHAN_TARGET_ARM("dotprod")

#include "lanes_neon.h"

namespace chan {
namespace {

struct Dotprod : LanesNeon {
    static constexpr bool SIGNED = true;
    using Codes = int8x16_t;

    static CHAN_INLINE Codes less(uint8x16_t bytes) { return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128))); }
    static CHAN_INLINE Codes codes(const uint8_t* bytes) { return less(vld1q_u8(bytes)); }
    static CHAN_INLINE Codes four_codes(const uint8_t* bytes) { return less(four(bytes)); }
    static CHAN_INLINE Int add_products(Int sums, Codes codes, Digits digits) { return vdotq_s32(sums, codes, digits); }
};

constexpr Kernels KERNELS = Lanes<Dotprod>::kernels("neon_dotprod");

}  // namespace
}  // namespace chan

CHAN_TARGET_END

#include <sys/auxv.h>

namespace chan {
const Kernels* dotprod_kernels() {
    constexpr unsigned long ASIMDDP = 1ul << 20;  // of AT_HWCAP
    return getauxval(AT_HWCAP) & ASIMDDP ? &KERNELS : nullptr;
}
}  // namespace chan

#else

namespace chan {
const Kernels* dotprod_kernels() { return nullptr; }
}  // namespace chan

#endif
