// AVX2, with FMA and F16C. Its product of bytes, vpmaddubsw, saturates; so bytes are widened to 16 bits, the even and
// the odd ones apart, and vpmaddwd adds pairs of their products in 32 bits.

#include "kernels.h"
#include "target.h"

#if defined(__x86_64__)

CHAN_TARGET("avx2,fma,f16c")

#include "lanes256.h"

namespace chan {
namespace {

struct Avx2 : Lanes256 {
    static constexpr int ROW_VECTORS = 4;
    struct Codes {
        __m256i even, odd;
    };
    using Digits = Codes;
    static constexpr bool SIGNED = false;

    static CHAN_INLINE Codes parts(__m256i unsigned_bytes) {
        return {_mm256_and_si256(unsigned_bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16(unsigned_bytes, 8)};
    }
    static CHAN_INLINE Codes codes(const uint8_t* bytes) { return parts(load(bytes)); }
    static CHAN_INLINE Codes four_codes(const uint8_t* bytes) { return parts(four(bytes)); }
    static CHAN_INLINE Digits digits(const int8_t* bytes) {
        const __m256i both = load(bytes);
        return {_mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8), _mm256_srai_epi16(both, 8)};
    }
    static CHAN_INLINE Digits four_digits(const int8_t* spread) { return {four(spread), four(spread + FOUR)}; }

    // Four digits become two pairs of 16 bits: the even ones, the odd ones.
    static constexpr int SPREAD = 8;
    static const int8_t* spread(const int8_t* digits, int64_t fours) {
        thread_local Scratch scratch;
        int8_t* const out = scratch.at_least(fours * SPREAD);
        for (int64_t i = 0; i < fours; ++i) {
            const int16_t pairs[4] = {digits[4 * i], digits[4 * i + 2], digits[4 * i + 1], digits[4 * i + 3]};
            std::memcpy(out + i * SPREAD, pairs, sizeof pairs);
        }
        return out;
    }

    static CHAN_INLINE Int add_products(Int sums, Codes codes, Digits digits) {
        const __m256i even = _mm256_madd_epi16(codes.even, digits.even), odd = _mm256_madd_epi16(codes.odd, digits.odd);
        return (Int)_mm256_add_epi32(_mm256_add_epi32((__m256i)sums, even), odd);
    }
};

constexpr Kernels KERNELS = Lanes<Avx2>::kernels("avx2");

}  // namespace

}  // namespace chan

CHAN_TARGET_END

namespace chan {
const Kernels* avx2_kernels() {  // every CPU that has AVX2 has F16C, which compilers cannot ask for by name
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &KERNELS : nullptr;
}
}  // namespace chan

#else

namespace chan {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace chan

#endif
