// Arm's dot products (USDOT) of unsigned bytes with signed ones, which come with its matrix multiplication (I8MM).

#include "kernels.h"
#include "target.h"

#if defined(__aarch64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 10)

CHAN_TARGET_ARM("i8mm")

#include "lanes_neon.h"

namespace chan {
namespace {

struct I8mm : LanesNeon {
    static constexpr bool SIGNED = false;
    using Codes = uint8x16_t;

    static CHAN_INLINE Codes codes(const uint8_t* bytes) { return vld1q_u8(bytes); }
    static CHAN_INLINE Codes four_codes(const uint8_t* bytes) { return four(bytes); }
    static CHAN_INLINE Int add_products(Int sums, Codes codes, Digits digits) {
        return vusdotq_s32(sums, codes, digits);
    }
};

constexpr Kernels KERNELS = Lanes<I8mm>::kernels("neon_i8mm");

}  // namespace
}  // namespace chan

CHAN_TARGET_END

#include <sys/auxv.h>

namespace chan {
const Kernels* i8mm_kernels() {
    constexpr unsigned long I8MM = 1ul << 13;  // of AT_HWCAP2
    return getauxval(AT_HWCAP2) & I8MM ? &KERNELS : nullptr;
}
}  // namespace chan

#else

namespace chan {
const Kernels* i8mm_kernels() { return nullptr; }
}  // namespace chan

#endif
