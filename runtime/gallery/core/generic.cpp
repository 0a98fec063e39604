// The kernels in plain C++: what the others must equal, and what runs where none of them does.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace chan {
namespace {

#include "pool_lanes.h"
#include "widen_fixed.h"

int32_t shifted(int32_t sum, int32_t bits) { return static_cast<int32_t>(static_cast<uint32_t>(sum) << bits); }

// The sums of one vector of a block with one word.
void block_sums(const uint8_t* codes, const Step* program, int64_t steps, const int8_t* digits, int32_t* sums) {
    std::fill(sums, sums + LANES, 0);
    for (int64_t step = 0; step < steps; ++step) {
        if (program[step].shift)
            for (int lane = 0; lane < LANES; ++lane) sums[lane] = shifted(sums[lane], program[step].shift);
        const uint8_t* group = codes + int64_t(program[step].group) * GROUP * LANES;
        for (int at = 0; at < GROUP; ++at)
            for (int lane = 0; lane < LANES; ++lane)
                sums[lane] += group[(at / FOUR * LANES + lane) * FOUR + at % FOUR] * digits[step * GROUP + at];
    }
}

void block_over_row(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                    const int8_t* digits, int64_t words, int32_t* out) {
    std::fill(out, out + words * LANES, std::numeric_limits<int32_t>::min());
    int32_t sums[LANES];
    for (int64_t vector = 0; vector < vectors; ++vector)
        for (int64_t word = 0; word < words; ++word) {
            block_sums(codes + vector * width * LANES, program, steps, digits + word * steps * GROUP, sums);
            for (int lane = 0; lane < LANES; ++lane)
                out[word * LANES + lane] = std::max(out[word * LANES + lane], sums[lane]);
        }
}

void block_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                      const int8_t* digits, int64_t words, const float* scale, const float* offset, float* out) {
    std::fill(out, out + vectors * LANES, -std::numeric_limits<float>::infinity());
    int32_t sums[LANES];
    for (int64_t vector = 0; vector < vectors; ++vector)
        for (int64_t word = 0; word < words; ++word) {
            block_sums(codes + vector * width * LANES, program, steps, digits + word * steps * GROUP, sums);
            for (int lane = 0; lane < LANES; ++lane) {
                float value = scale[word] * static_cast<float>(sums[lane]) + offset[word];
                out[vector * LANES + lane] = std::max(out[vector * LANES + lane], value);
            }
        }
}

// The sums of one vector of a row with one tile of words.
void tile_sums(const uint8_t* codes, const Step* program, int64_t steps, const int8_t* digits, int32_t* sums) {
    std::fill(sums, sums + LANES, 0);
    for (int64_t step = 0; step < steps; ++step) {
        if (program[step].shift)
            for (int lane = 0; lane < LANES; ++lane) sums[lane] = shifted(sums[lane], program[step].shift);
        const uint8_t* group = codes + int64_t(program[step].group) * GROUP;
        const int8_t* mine = digits + step * GROUP * LANES;
        for (int at = 0; at < GROUP; ++at)
            for (int lane = 0; lane < LANES; ++lane)
                sums[lane] += group[at] * mine[(at / FOUR * LANES + lane) * FOUR + at % FOUR];
    }
}

void row_sums(const uint8_t* const* codes, int64_t vectors, int64_t, const Step* program, int64_t steps,
              const int8_t* digits, int64_t tiles, int32_t* highest, int32_t* out) {
    for (int64_t vector = 0; vector < vectors; ++vector)
        for (int64_t tile = 0; tile < tiles; ++tile, out += LANES) {
            tile_sums(codes[vector], program, steps, digits + tile * steps * GROUP * LANES, out);
            for (int lane = 0; lane < LANES; ++lane)
                highest[tile * LANES + lane] = std::max(highest[tile * LANES + lane], out[lane]);
        }
}

void row_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                    const int8_t* digits, int64_t tiles, const float* scale, const float* offset, float* out) {
    std::fill(out, out + vectors, -std::numeric_limits<float>::infinity());
    int32_t sums[LANES];
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t vector = 0; vector < vectors; ++vector) {
            tile_sums(codes + vector * width, program, steps, digits + tile * steps * GROUP * LANES, sums);
            for (int lane = 0; lane < LANES; ++lane) {
                int64_t word = tile * LANES + lane;
                out[vector] = std::max(out[vector], scale[word] * static_cast<float>(sums[lane]) + offset[word]);
            }
        }
}

void pair_sums(const uint8_t* const* codes, const int8_t* const* digits, int64_t pairs, int64_t width,
               int32_t* out) {
    for (int64_t i = 0; i < pairs; ++i) {
        out[i] = 0;
        for (int64_t at = 0; at < width; ++at) out[i] += codes[i][at] * digits[i][at];
    }
}

void lead(const int32_t* sums, int64_t vectors, int64_t places, int32_t* highest, int32_t* leader) {
    for (int64_t place = 0; place < places; ++place) {
        highest[place] = sums[place], leader[place] = 0;
        for (int64_t v = 1; v < vectors; ++v)
            if (sums[v * places + place] > highest[place])
                highest[place] = sums[v * places + place], leader[place] = static_cast<int32_t>(v);
    }
}

float widened(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 0x3ff, bits;
    if (exponent == 0) {  // zero, or below what float16 writes with a leading one
        float value = std::ldexp(static_cast<float>(fraction), -24);
        std::memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

float value_of(float value) { return value; }
float value_of(uint16_t half) { return widened(half); }

template <typename Value>
void all_products(const Value* vectors, int64_t count, int64_t dim, const float* query, int64_t words, int64_t padded,
                  float* out) {
    for (int64_t vector = 0; vector < count; ++vector)
        for (int64_t word = 0; word < words; ++word) {
            float lanes[16] = {};
            for (int64_t at = 0; at < dim; ++at)
                lanes[at % 16] =
                    std::fma(value_of(vectors[vector * dim + at]), query[word * padded + at], lanes[at % 16]);
            for (int half = 8; half; half /= 2)
                for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
            out[vector * words + word] = lanes[0];
        }
}

void pair_products(const float* const* left, const float* const* right, int64_t pairs, int64_t dim, float* out) {
    for (int64_t i = 0; i < pairs; ++i) all_products(left[i], 1, dim, right[i], 1, dim, out + i);
}

double dot(const float* left, const float* right, int64_t dim) {
    double lanes[8] = {};  // the products are exact, so it is the same whether they are fused with the additions
    for (int64_t at = 0; at < dim; ++at) lanes[at % 8] += double(left[at]) * double(right[at]);
    for (int half = 4; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

void widen(const uint16_t* half, int64_t count, float* out) {
    for (int64_t at = 0; at < count; ++at) out[at] = widened(half[at]);
}

uint16_t narrowed(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | (size >> 13 & 0x3ff));
    if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // from 65520 on
    if (size < 0x38800000) {  // below what float16 writes with a leading one: 0.5 has its last place where float16 has it
        const float sum = std::fabs(value) + 0.5f;
        std::memcpy(&bits, &sum, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13);
}

void narrow(const float* values, int64_t count, uint16_t* half) {
    for (int64_t at = 0; at < count; ++at) half[at] = narrowed(values[at]);
}

const Kernels KERNELS = {"generic",      block_over_row, block_over_query,     row_sums,
                         row_over_query, pair_sums,      lead,                 all_products<float>,
                         all_products<uint16_t>, pair_products, dot, widen, narrow, widen_fixed, Pool<4>::lanes};

}  // namespace

const Kernels* generic_kernels() { return &KERNELS; }

}  // namespace chan
