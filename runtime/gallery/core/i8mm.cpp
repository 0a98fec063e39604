// Arm's dot products (USDOT) of unsigned bytes with signed ones, which come with its matrix multiplication (I8MM).

#include "kernels.h"

#if defined(__aarch64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 10)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("i8mm"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+i8mm")
#endif

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

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

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
