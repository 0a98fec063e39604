// What the two versions for 64-bit Arm share: registers of four lanes, and their float32 arithmetic.

#pragma once

#include <arm_neon.h>

#include "lanes.h"

namespace chan {
namespace {

struct LanesNeon {
    static constexpr int WIDTH = 4, ROW_VECTORS = 6;
    typedef int32x4_t Int;
    typedef float32x4_t Float;
    using Digits = int8x16_t;

    static CHAN_INLINE uint8x16_t four(const void* bytes) {
        uint32_t value;
        std::memcpy(&value, bytes, sizeof value);
        return vreinterpretq_u8_u32(vdupq_n_u32(value));
    }
    static CHAN_INLINE Digits digits(const int8_t* bytes) { return vld1q_s8(bytes); }
    static CHAN_INLINE Digits four_digits(const int8_t* spread) { return vreinterpretq_s8_u8(four(spread)); }

    static constexpr int SPREAD = FOUR;
    static const int8_t* spread(const int8_t* digits, int64_t) { return digits; }

    static CHAN_INLINE Float widened(const float* values) { return vld1q_f32(values); }
    static CHAN_INLINE Float widened(const uint16_t* values) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(values)));
    }
    static CHAN_INLINE void narrow(Float values, uint16_t* half) {
        vst1_u16(half, vreinterpret_u16_f16(vcvt_f16_f32(values)));
    }
    static CHAN_INLINE Float multiply_add(Float left, Float right, Float sum) { return vfmaq_f32(sum, left, right); }
    static CHAN_INLINE float folded(Float lanes) {
        const float32x2_t two = vadd_f32(vget_low_f32(lanes), vget_high_f32(lanes));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
};

}  // namespace
}  // namespace chan
