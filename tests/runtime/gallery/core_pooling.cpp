// How far pool_lanes.h is from exponentials and logarithms, in units of 2^-24: the largest errors over every float32, or
// over every so many, as the argument says. Exponentials: relative. Logarithms: of their values, or of 1 where that is
// less.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace chan {
namespace {

#include "pool_lanes.h"

float exponential(float x) { return Pool<4>::exponential(Pool<4>::Float{} + x)[0]; }
float logarithm(float x) { return Pool<4>::logarithm(Pool<4>::Float{} + x)[0]; }

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Calls `each` with floats of one sign from one to another, both included.
template <typename Function>
void every(float from, float to, uint32_t step, const Function& each) {
    const uint32_t last = bits_of(to);
    for (uint32_t bits = bits_of(from); bits <= last; bits += std::min(step, std::max(1u, last - bits))) {
        float value;
        std::memcpy(&value, &bits, sizeof value);
        each(value);
    }
}

}  // namespace
}  // namespace chan

int main(int, char** arguments) {
    const auto step = static_cast<uint32_t>(std::atoi(arguments[1]));
    double exponentials = 0, logarithms = 0;
    chan::every(-1e-9f, -80.0f, step, [&](float x) {
        const double exact = std::exp(double(x));
        exponentials = std::max(exponentials, std::abs(chan::exponential(x) - exact) / exact / chan::UNIT);
    });
    chan::every(1.0f, 3e7f, step, [&](float x) {
        const double exact = std::log(double(x));
        logarithms = std::max(logarithms, std::abs(chan::logarithm(x) - exact) / std::max(1.0, exact) / chan::UNIT);
    });
    const bool exactly = chan::exponential(0.0f) == 1 && chan::logarithm(1.0f) == 0;
    std::printf("%.3f %.3f %d\n", exponentials, logarithms, exactly);
}
