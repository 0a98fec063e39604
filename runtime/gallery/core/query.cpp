// Coding a query: its vectors along the gallery's axes, and as integers at each level.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <functional>

#include "state.h"

namespace chan {
namespace {

constexpr int32_t LARGEST = 127 * 128 + 63;  // integer of two digits
constexpr int SUMS = 4;                      // that a sum is split into, so that additions need not wait for each other
constexpr double COARSE = 0.07;              // share of a level's bound that the query's own rounding may take

// Of an integer that is written as two digits.
int32_t high_digit(int32_t integer) { return (integer + (1 << DIGIT) / 2) >> DIGIT; }

// tiled: LANES vectors a tile, as the kernels for single rows read them; the last vector is repeated in a last tile.
Packed pack(const std::vector<int32_t>& integers, int64_t vectors, int64_t width, bool tiled) {
    const int64_t groups = width / GROUP;
    std::vector<char> two(groups, 0);
    for (int64_t v = 0; v < vectors; ++v)
        for (int64_t g = 0; g < groups; ++g) {
            const int32_t* mine = &integers[v * width + g * GROUP];
            int32_t beyond = 0;
            for (int i = 0; i < GROUP; ++i) beyond |= mine[i] > 127 || mine[i] < -127;
            two[g] |= static_cast<char>(beyond);
        }
    Packed packed;
    for (int64_t g = 0; g < groups; ++g)
        if (two[g]) packed.program.push_back({int32_t(g), 0});
    const int64_t high = packed.high = static_cast<int64_t>(packed.program.size()), steps = high + groups;
    for (int64_t g = 0; g < groups; ++g) packed.program.push_back({int32_t(g), high && g == 0 ? DIGIT : 0});
    const int64_t places = tiled ? (vectors + LANES - 1) / LANES * LANES : vectors;
    packed.digits.resize(places * steps * GROUP);
    for (int64_t place = 0; place < places; ++place) {
        const int32_t* mine = &integers[std::min(place, vectors - 1) * width];
        // four digits of a step lie side by side, then those of the tile's other vectors
        int8_t* out = &packed.digits[tiled ? (place / LANES * steps * GROUP * LANES + place % LANES * FOUR)
                                           : place * steps * GROUP];
        const int64_t four_stride = tiled ? FOUR * LANES : FOUR;
        const auto put = [&](int64_t step, const int8_t (&digits)[GROUP]) {
            for (int64_t four = 0; four < GROUP / FOUR; ++four)
                std::memcpy(out + (step * (GROUP / FOUR) + four) * four_stride, digits + four * FOUR, FOUR);
        };
        for (int64_t g = 0, step = 0; g < groups; ++g) {
            int8_t low[GROUP], top[GROUP];
            for (int i = 0; i < GROUP; ++i) {
                const int32_t integer = mine[g * GROUP + i], upper = two[g] ? high_digit(integer) : 0;
                top[i] = static_cast<int8_t>(upper);
                low[i] = static_cast<int8_t>(integer - upper * (1 << DIGIT));
            }
            if (two[g]) put(step++, top);
            put(high + g, low);
        }
    }
    return packed;
}

// The least scale at which integers stay within two digits and no sum of products overflows, even with one integer more.
double least_scale(double largest, double total, int64_t width) {
    const double room = 2147483648.0 / 255 - 66.0 * width - LARGEST;
    return std::max(largest / LARGEST, total / room) * MORE;
}

// Make the scales of vectors [vectors] as fine as they can be in as many steps: in groups that need one digit for every
// vector, integers grow until the largest fills the digit, and in the others until they fill two.
// factors [vectors][width]; least [vectors], of the scales.
void refine(const std::vector<double>& factors, int64_t width, const std::vector<double>& least,
            std::vector<double>& scales) {
    const size_t vectors = scales.size();
    std::vector<double> finer = least, largest(vectors);
    for (int64_t begin = 0; begin < width; begin += GROUP) {
        bool two = false;
        for (size_t v = 0; v < vectors; ++v) {
            largest[v] = 0;
            for (int64_t i = begin; i < begin + GROUP; ++i)
                largest[v] = std::max(largest[v], std::abs(factors[static_cast<int64_t>(v) * width + i]));
            two |= largest[v] > 127 * scales[v];
        }
        for (size_t v = 0; v < vectors && !two; ++v) finer[v] = std::max(finer[v], largest[v] / 127);
    }
    scales = finer;
}

// To even where two are as near. (std::nearbyint is a call of a function where the compiler may use no SSE4.1.)
int32_t nearest(double value) {
    constexpr double SHIFT = 3.0 * (1ull << 51);  // beyond it float64 has no fractions
    return static_cast<int32_t>((std::clamp(value, double(-LARGEST), double(LARGEST)) + SHIFT) - SHIFT);
}

}  // namespace

void Search::place(Query& query, const float* vectors, int64_t count) const {
    const int64_t dim = plan_.dim;
    query.count = count;
    query.padded = (dim + LANES - 1) / LANES * LANES + LANES;  // or 4 KB apart they would share few cache lines
    query.vectors.assign(count * query.padded, 0);
    for (int64_t w = 0; w < count; ++w) {
        std::memcpy(&query.vectors[w * query.padded], vectors + w * dim, dim * sizeof(float));
        query.norm.push_back(std::sqrt(sum_of_squares(vectors + w * dim, dim)) * MORE);
        query.largest = std::max(query.largest, query.norm.back());
    }
}

void Search::prepare(Query& query, const float* vectors, int64_t count, Threads* threads) const {
    const int64_t dim = plan_.dim, axes = plan_.axes;
    place(query, vectors, count);
    const double roundings = double(query.padded / LANES + 5) * UNIT32;
    const double relative = roundings / (1 - roundings);
    const double size = std::sqrt(1 + plan_.deviation);  // no less than the norm of any axis
    std::vector<float> y(axes * count);                  // B'q, [axes][count]
    const double mean_norm = axes ? std::sqrt(sum_of_squares(plan_.mean, dim)) * MORE : 0;
    std::vector<double> off(count);                      // no less than |B'q - y| of any axis
    for (int64_t w = 0; w < count; ++w) {
        const double norm = query.norm[w];
        off[w] = relative * size * norm * MORE + dim * FLT_MIN * (1 + norm + size);
    }
    const double f = std::max(0.0, 1 - plan_.deviation);
    // R(q), of the first `leading` axes
    const auto beyond = [&](int64_t w, int64_t leading) {
        const double norm = query.norm[w];
        double square = 0;
        for (int64_t i = 0; i < leading; ++i) square += double(y[i * count + w]) * y[i * count + w];
        const double held = std::max(0.0, std::sqrt(square) / MORE - std::sqrt(double(leading)) * off[w]);
        const double left = norm * norm * (1 + 4e-9) - f * held * held;
        return std::min(norm, std::sqrt(std::max(0.0, left)) * MORE);
    };
    const auto along = [&](const float* of, int64_t w, int64_t begin, int64_t end, double each) {
        double square = 0;
        for (int64_t i = begin; i < end; ++i) square += double(of[i * count + w]) * of[i * count + w];
        return std::sqrt(square) * MORE + std::sqrt(double(end - begin)) * each;
    };

    const auto code = [&](const Level& level, Coded& coded, bool tiled) {
        const int64_t last = level.norms - 1, width = level.width;
        double steps = 0;
        for (int64_t i = 0; i < level.codes; ++i) steps += level.steps[i];
        std::vector<double> scales(count), least(count);
        std::vector<double> factors(count * width);  // of norms, but the last one, and of codes
        for (int64_t w = 0; w < count; ++w) {
            double* mine = &factors[w * width];
            double coordinates = 0, bound = 0, largest = 0, total = 0;
            for (int64_t i = 0; i < level.codes; ++i) {
                const int64_t axis = i < level.coordinates ? i : i - level.coordinates;
                mine[level.norms + i] = f * y[axis * count + w] * level.steps[i];
                coordinates = std::max(coordinates, std::abs(mine[level.norms + i]));
            }
            for (int64_t j = 0; j < last; ++j) {
                const bool rest = j + 1 == last;
                const double weight =
                    rest ? beyond(w, axes) : along(y.data(), w, level.edges[j], level.edges[j + 1], off[w]);
                bound += weight * level.norm_typical[j];
                mine[j] = weight * level.norm_step[j];
            }
            for (int64_t i = 0; i < width; ++i) {
                largest = std::max(largest, std::abs(mine[i]));
                total += std::abs(mine[i]);
            }
            const double spread = std::sqrt(double(level.codes) / 12);
            const double lost = std::max(spread * level.norm_typical[last], DBL_MIN);  // of the bound by a scale of 1
            scales[w] = std::min(coordinates / 127, COARSE * bound / lost);
            least[w] = least_scale(largest, total, width + level.codes);
            scales[w] = std::max(scales[w], least[w]);
        }
        refine(factors, width, least, scales);
        std::vector<int32_t> integers(count * width, 0);
        std::vector<double> totals(count);
        for (int64_t w = 0; w < count; ++w) {
            const double* factor = &factors[w * width];
            const double scale = scales[w] > 0 ? scales[w] : 1;
            int32_t* mine = &integers[w * width];
            double lost = 0, offset = 0, used = 0;
            for (int64_t i = level.norms; i < level.norms + level.codes; ++i) {
                mine[i] = nearest(factor[i] / scale);
                const double rounded = factor[i] - scale * mine[i];
                lost += rounded * rounded;
                offset -= 128.0 * mine[i];
                used += std::abs(mine[i]);
            }
            for (int64_t j = 0; j < level.norms; ++j) {
                const double exact = j < last ? factor[j] : std::sqrt(lost) * MORE * level.norm_step[last];
                mine[j] = nearest(std::ceil(exact / scale * MORE));
                used += mine[j];
            }
            // q.mean and the products with steps in float64, B'q in float32, and (2)
            const double middle = plan_.kernels->dot(&query.vectors[w * query.padded], plan_.mean, dim);
            const double slack = 127 * off[w] * steps * MORE +
                                 4 * double(dim + width) * UNIT64 * (query.norm[w] * mean_norm + 255 * scale * used);
            coded.scale.push_back(scale);
            const double pooled = double(std::max(count, longest_));
            const double more = rounding(query.norm[w] * largest_, dim, pooled, plan_.temperature);
            coded.offset.push_back(scale * offset + middle + slack + more);
            totals[w] = used;
        }
        coded.packed = pack(integers, count, width, tiled);
        coded.finish_float(totals);
    };
    // for the int8 codes of all coordinates
    query.blocks = plan_.edges.empty() ? 0 : static_cast<int64_t>(plan_.edges.size()) - 1;
    const int64_t stride = parts_.empty() ? 0 : parts_[0].stride;
    std::vector<int32_t> integers(count * stride, 0);
    std::vector<double> totals(count);
    const auto code_all = [&](int64_t w) {
        const float* mine = &query.vectors[w * query.padded];
        float largest = 0;
        double sizes[SUMS] = {};
        for (int64_t i = 0; i < dim; ++i) {
            largest = std::max(largest, std::abs(mine[i]));
            sizes[i % SUMS] += std::abs(mine[i]);
        }
        double scale = largest / (plan_.digits == 1 ? 127.0 : double(LARGEST));
        scale = std::max(scale, least_scale(largest, sizes[0] + sizes[1] + sizes[2] + sizes[3], stride));
        if (!(scale > 0)) scale = 1;
        const double inverse = 1 / scale;
        int32_t* out = &integers[w * stride];
        for (int64_t i = 0; i < dim; ++i) out[i] = nearest(mine[i] * inverse);
        int64_t sum = 0, size = 0;
        for (int64_t i = 0; i < dim; ++i) sum += out[i], size += std::abs(out[i]);
        totals[w] = double(size);
        query.codes.scale.push_back(scale);
        query.codes.offset.push_back(scale * (-128.0 * double(sum)));
    };
    // What the integers `kept` lose of the vectors, and where that is much, what of it is along leading axes.
    const auto measure = [&](const std::vector<int32_t>& kept, bool much, Lost& lost) {
        std::vector<float> left(much && query.blocks ? count * query.padded : 0);
        for (int64_t w = 0; w < count; ++w) {
            const float* mine = &query.vectors[w * query.padded];
            const double scale = query.codes.scale[w];
            double squares[SUMS] = {};
            for (int64_t i = 0; i < dim; ++i) {
                const double rounded = mine[i] - scale * kept[w * stride + i];
                squares[i % SUMS] += rounded * rounded;
                if (!left.empty()) left[w * query.padded + i] = static_cast<float>(rounded);
            }
            lost.norm.push_back(std::sqrt(squares[0] + squares[1] + squares[2] + squares[3]) * MORE);
        }
        if (left.empty()) return;
        const int64_t leading = plan_.edges.back();
        std::vector<float> coordinates(leading * count);
        plan_.kernels->products(plan_.basis, leading, dim, left.data(), count, query.padded, coordinates.data());
        for (int64_t w = 0; w < count; ++w) {
            const double error = lost.norm[w];  // `left` was rounded to float32 as well
            const double each = (relative + 2 * UNIT32) * size * error * MORE + dim * FLT_MIN * (1 + error + size);
            for (int64_t j = 0; j < query.blocks; ++j)
                lost.along.push_back(along(coordinates.data(), w, plan_.edges[j], plan_.edges[j + 1], each));
        }
    };
    const auto measure_high = [&] {
        std::vector<int32_t> high(count * stride, 0);
        for (int64_t w = 0; w < count; ++w) {
            int64_t sum = 0;
            for (int64_t step = 0; step < query.codes.packed.high; ++step) {
                const int64_t begin = w * stride + int64_t(query.codes.packed.program[step].group) * GROUP;
                for (int64_t i = begin; i < begin + GROUP; ++i) sum += high[i] = high_digit(integers[i]) * (1 << DIGIT);
            }
            query.offset_high.push_back(query.codes.scale[w] * (-128.0 * double(sum)));
        }
        measure(high, true, query.lost_high);
    };

    // The digits of each vector side by side, for pairs of it and a row's vector.
    const auto lay_out = [&] {
        const Packed& packed = query.codes.packed;
        query.digit_count = packed.high ? 2 : 1;
        query.digit_lines = (stride + LINE - 1) / LINE;
        query.digits.assign(query.digit_count * count * query.digit_lines, {});
        for (int64_t w = 0; w < count; ++w) {
            int8_t *const high = query.digits_of(w, 0), *const low = query.digits_of(w, query.digit_count - 1);
            const int32_t* mine = &integers[w * stride];
            for (int64_t i = 0; i < stride; ++i) low[i] = static_cast<int8_t>(mine[i]);
            for (int64_t step = 0; step < packed.high; ++step) {
                const int64_t begin = packed.program[step].group * GROUP;
                for (int64_t i = begin; i < begin + GROUP; ++i) {
                    const int32_t upper = high_digit(mine[i]);
                    high[i] = static_cast<int8_t>(upper);
                    low[i] = static_cast<int8_t>(mine[i] - upper * (1 << DIGIT));
                }
            }
        }
    };

    const std::function<void(int64_t)> half = [&](int64_t which) {
        if (which == 0) {
            if (axes)
                plan_.kernels->products(plan_.basis, axes, dim, query.vectors.data(), count, query.padded, y.data());
            if (plan_.first.coordinates) code(plan_.first, query.first, false);
            if (plan_.second.coordinates) code(plan_.second, query.second, true);
        } else {
            for (int64_t w = 0; w < count; ++w) code_all(w);
            measure(integers, plan_.digits == 1, query.lost);
            query.codes.packed = pack(integers, count, stride, true);
            query.codes.finish_float(totals);
            if (plan_.pools_query && plan_.second.coordinates) {
                lay_out();
                if (query.codes.packed.high) measure_high();
            }
        }
    };
    if (threads)
        threads->run(2, half);
    else
        half(0), half(1);
    for (int64_t w = 0; w < count && query.blocks; ++w) {
        query.rest.push_back(beyond(w, plan_.edges.back()));
        for (int64_t j = 0; j < query.blocks; ++j)
            query.along.push_back(along(y.data(), w, plan_.edges[j], plan_.edges[j + 1], off[w]));
    }
}

}  // namespace chan
