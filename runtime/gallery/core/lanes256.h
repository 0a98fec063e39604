// What AVX2 and AVX-VNNI share: registers of eight lanes, and their float32 arithmetic (FMA, F16C).

#pragma once

#include <immintrin.h>

#include "lanes.h"

namespace chan {
namespace {

struct Lanes256 {
    static constexpr int WIDTH = 8;
    typedef int32_t Int __attribute__((vector_size(32)));
    typedef float Float __attribute__((vector_size(32)));

    static CHAN_INLINE __m256i load(const void* bytes) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(bytes));
    }
    static CHAN_INLINE __m256i four(const void* bytes) {
        int32_t value;
        std::memcpy(&value, bytes, sizeof value);
        return _mm256_set1_epi32(value);
    }
    static CHAN_INLINE Float widened(const float* values) { return loaded<Float>(values); }
    static CHAN_INLINE Float widened(const uint16_t* values) {
        return (Float)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
    }
    static CHAN_INLINE void narrow(Float values, uint16_t* half) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(half), _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT));
    }
    static CHAN_INLINE Float multiply_add(Float left, Float right, Float sum) {
        return (Float)_mm256_fmadd_ps((__m256)left, (__m256)right, (__m256)sum);
    }
    static CHAN_INLINE float folded(Float lanes) {
        const __m256 all = (__m256)lanes;
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
};

}  // namespace
}  // namespace chan
