// Pooling in float64, and how far a pooled score can be off; see proof/bounds.py and proof/pooling.py.

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels.h"

namespace chan {

constexpr double UNIT64 = 1.0 / (1ull << 53), UNIT32 = 1.0 / (1 << 24);
constexpr double INFINITE = std::numeric_limits<double>::infinity();
constexpr double MORE = 1 + 1e-9;  // what float64 loses in a sum of squares, and in a few operations after it

// An upper bound in float32. What is below all of its finite numbers becomes the least of them, not -infinity.
inline float no_less(double value) {
    return static_cast<float>(std::max(value + std::abs(value) * (2 * UNIT32) + FLT_MIN, -double(FLT_MAX)));
}

inline double sum_of_squares(const float* values, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += double(values[i]) * values[i];
    return sum;
}

// What float64 arithmetic on similarities within `size` and their pooling can lose, as a change of each: (2).
inline double rounding(double size, int64_t dim, double count, double temperature) {
    return 16 * UNIT64 * (double(dim) + count + 16) * (size + temperature);
}

// See pooling.score_change.
inline double score_change(double change, double count, double spread, Pooling pooling, double temperature) {
    switch (pooling) {
        case Pooling::sum:
            return change * count;
        case Pooling::lse:
            return change / temperature;
        case Pooling::softmax:
            return change + spread * std::tanh(change / (2 * temperature));
        default:
            return change;
    }
}

// The values pooled, in float64; see pooling.pool.
inline double pool(const double* values, int64_t count, Pooling pooling, double temperature) {
    const double peak = *std::max_element(values, values + count);
    double total = 0, weights = 0;
    switch (pooling) {
        case Pooling::max:
            return peak;
        case Pooling::mean:
        case Pooling::sum:
            for (int64_t i = 0; i < count; ++i) total += values[i];
            return pooling == Pooling::sum ? total : total / double(count);
        default:
            for (int64_t i = 0; i < count; ++i) {
                const double weight = std::exp((values[i] - peak) / temperature);
                weights += weight;
                total += weight * values[i];
            }
            return pooling == Pooling::lse ? peak / temperature + std::log(weights) : total / weights;
    }
}

inline double spread_of(const double* values, int64_t count) {
    const auto [least, most] = std::minmax_element(values, values + count);
    return *most - *least;
}

}  // namespace chan
