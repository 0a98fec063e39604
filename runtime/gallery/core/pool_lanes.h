// Upper bounds of pooled scores, sixteen gallery rows side by side: plain loops over lanes, which the compiler makes
// vectors of, for each instruction set the same additions and products in the same order.
//
// Max, Mean, Sum and LSE grow with each similarity, so pooling upper bounds gives an upper bound. Softmax pooling is a
// weighted mean and does not, but is at most the largest similarity. What float32 loses is added: u = 2^-24, S the
// largest |value|, n the count. Max loses nothing. Sum and Mean: the partial sums lose (n + 2) (n - 1) / 2 u S at most,
// adding the allowance and dividing 2 n u S more; 2 n^2 u S in all (n = 1: rounding keeps the order of numbers).
//
// LSE with a temperature T: `exponential` is within 5 u of its value, relatively, and `logarithm` within 3 u of its
// own, or of 1 where that is less (test_core_instructions.py tries each float32). Of a value that is less than the peak
// by x T, the argument is off by 4 u x, and x exp(-x) < 0.37; x is cut off at 80, which only raises the sum. The peak's
// own exponential is 1 exactly, so with n - 1 additions the sum is off by a factor within 1 +- 2.5 (n + 1) u, and all
// that follows by less than 8 n u; for n = 1 by nothing. The peak's division, and adding it, lose 5 u S / T at most.

constexpr float UNIT = 1.0f / (1 << 24);

inline float exponential(float x) {  // x <= 0
    x = x < -80.0f ? -80.0f : x;
    const float scaled = x * 1.44269504f;
    const float whole = (scaled + 12582912.0f) - 12582912.0f;  // the nearest integer
    const float f = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
    float value = 1.0f / 720.0f;
    value = value * f + 1.0f / 120.0f;
    value = value * f + 1.0f / 24.0f;
    value = value * f + 1.0f / 6.0f;
    value = value * f + 0.5f;
    value = value * f + 1.0f;
    value = value * f + 1.0f;
    const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return value * power;
}

inline float logarithm(float x) {  // x >= 1
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const int32_t exponent = (bits - 0x3f3504f3) >> 23;  // so that the rest lies between sqrt(1/2) and sqrt(2)
    bits -= exponent << 23;
    float rest;
    std::memcpy(&rest, &bits, sizeof rest);
    const float r = (rest - 1.0f) / (rest + 1.0f), square = r * r;
    float value = 1.0f / 9.0f;
    value = value * square + 1.0f / 7.0f;
    value = value * square + 1.0f / 5.0f;
    value = value * square + 1.0f / 3.0f;
    value = value * square + 1.0f;
    return static_cast<float>(exponent) * 0.693147181f + 2.0f * r * value;
}

void pool_lanes(const float* values, int64_t count, const int32_t* counts, Pooling pooling, float temperature,
                float* out) {
    float peak[LANES], total[LANES], size[LANES], n[LANES];
    for (int l = 0; l < LANES; ++l) {
        peak[l] = -std::numeric_limits<float>::infinity();
        total[l] = size[l] = 0.0f;
        n[l] = static_cast<float>(counts[l]);
    }
    for (int64_t i = 0; i < count; ++i)
        for (int l = 0; l < LANES; ++l) {
            const float value = values[i * LANES + l];
            const bool mine = i < counts[l];
            const float magnitude = value < 0 ? -value : value;
            peak[l] = mine && value > peak[l] ? value : peak[l];
            size[l] = mine && magnitude > size[l] ? magnitude : size[l];
        }
    if (pooling == Pooling::mean || pooling == Pooling::sum) {
        for (int64_t i = 0; i < count; ++i)
            for (int l = 0; l < LANES; ++l) total[l] += i < counts[l] ? values[i * LANES + l] : 0.0f;
        for (int l = 0; l < LANES; ++l) {
            total[l] += 2.0f * UNIT * n[l] * n[l] * size[l];
            out[l] = pooling == Pooling::mean ? total[l] / n[l] : total[l];
        }
    } else if (pooling == Pooling::lse) {
        const float inverse = 1.0f / temperature;
        for (int64_t i = 0; i < count; ++i)
            for (int l = 0; l < LANES; ++l) {
                const bool mine = i < counts[l];
                const float value = exponential(mine ? (values[i * LANES + l] - peak[l]) * inverse : 0.0f);
                total[l] += mine ? value : 0.0f;
            }
        for (int l = 0; l < LANES; ++l)
            out[l] = peak[l] * inverse + logarithm(total[l]) + 8.0f * UNIT * (size[l] * inverse + n[l]);
    } else {
        for (int l = 0; l < LANES; ++l) out[l] = peak[l];
    }
}
