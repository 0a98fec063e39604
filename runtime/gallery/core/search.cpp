#include "search.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace chan {
namespace {

constexpr double UNIT64 = 1.0 / (1ull << 53), UNIT32 = 1.0 / (1 << 24);
constexpr double INFINITE = std::numeric_limits<double>::infinity();
constexpr double MORE = 1 + 1e-9;   // what float64 loses in a sum of squares, and in a few operations after it
constexpr int DIGIT = 7;            // bits of the low digit
constexpr int32_t LARGEST = 127 * 128 + 63;  // integer of two digits
constexpr double COARSE = 0.02;        // share of a level's bound that the query's own rounding may take
constexpr int64_t BEYOND = 22;      // rows beyond k that are looked at for a first threshold
constexpr int64_t CHUNK = 8;        // blocks that a thread scans at a time
constexpr int64_t ROWS = 64;        // rows that a thread scans at a time where there are no blocks
constexpr size_t AT_ONCE = 20;      // vectors of a row whose int8 codes are multiplied at a time
constexpr int64_t TOGETHER = 8;     // rows that a thread brings closer bounds of at a time
constexpr int64_t TURN = 64;        // queries that are scanned together
constexpr int64_t TURN_BYTES = 64 << 20;  // of their upper bounds

double sum_of_squares(const float* values, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += double(values[i]) * values[i];
    return sum;
}

// Integers of some vectors, [vectors][width], as digits, and the program that multiplies them.
struct Packed {
    std::vector<Step> program;
    std::vector<int8_t> digits;
};

// tiled: LANES vectors a tile, as the kernels for single rows read them; the last vector is repeated in a last tile.
Packed pack(const std::vector<int32_t>& integers, int64_t vectors, int64_t width, bool tiled) {
    const int64_t groups = width / GROUP;
    std::vector<char> two(groups, 0);
    for (int64_t v = 0; v < vectors; ++v)
        for (int64_t i = 0; i < width; ++i)
            if (std::abs(integers[v * width + i]) > 127) two[i / GROUP] = 1;
    Packed packed;
    std::vector<char> high;
    for (int64_t g = 0; g < groups; ++g)
        if (two[g]) {
            packed.program.push_back({int32_t(g), 0});
            high.push_back(1);
        }
    const bool shift = !packed.program.empty();
    for (int64_t g = 0; g < groups; ++g) {
        packed.program.push_back({int32_t(g), shift && g == 0 ? DIGIT : 0});
        high.push_back(0);
    }
    const int64_t steps = static_cast<int64_t>(packed.program.size());
    const int64_t places = tiled ? (vectors + LANES - 1) / LANES * LANES : vectors;
    packed.digits.assign(places * steps * GROUP, 0);
    for (int64_t place = 0; place < places; ++place) {
        const int32_t* mine = &integers[std::min(place, vectors - 1) * width];
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t group = packed.program[step].group;
            for (int64_t i = 0; i < GROUP; ++i) {
                const int32_t integer = mine[group * GROUP + i];
                const int32_t top = two[group] ? (integer + 64) >> DIGIT : 0;
                const int32_t digit = high[step] ? top : integer - (top << DIGIT);
                const int64_t at = tiled ? place / LANES * steps * GROUP * LANES +
                                               ((step * GROUP + i) / FOUR * LANES + place % LANES) * FOUR + i % FOUR
                                         : (place * steps + step) * GROUP + i;
                packed.digits[at] = static_cast<int8_t>(digit);
            }
        }
    }
    return packed;
}

// The least scale at which integers stay within two digits and no sum of products overflows, even with one integer more.
double least_scale(double largest, double total, int64_t width) {
    const double room = 2147483648.0 / 255 - 66.0 * width - LARGEST;
    return std::max(largest / LARGEST, total / room) * MORE;
}

// To even where two are as near. (std::nearbyint is a call of a function where the compiler may use no SSE4.1.)
int32_t nearest(double value) {
    constexpr double SHIFT = 3.0 * (1ull << 51);  // beyond it float64 has no fractions
    return static_cast<int32_t>((std::clamp(value, double(-LARGEST), double(LARGEST)) + SHIFT) - SHIFT);
}

}  // namespace

// A query at one level: word w's similarity is at most scale[w] * sum + offset[w] (at the int8 level: about that, times
// the row's scale).
struct Coded {
    Packed packed;
    std::vector<double> scale, offset;
    std::vector<float> scale32, offset32;  // for kernels that take the maximum over words; the offset is rounded up
    std::vector<double> loss;              // what these lose at most

    void finish_float(const std::vector<double>& total) {
        const size_t words = scale.size(), places = (words + LANES - 1) / LANES * LANES;
        for (size_t place = 0; place < places; ++place) {
            const size_t w = std::min(place, words - 1);
            const double lost = 8 * UNIT32 * (scale[w] * total[w] * 255 + std::abs(offset[w])) + FLT_MIN;
            if (place == w) loss.push_back(lost);
            scale32.push_back(static_cast<float>(scale[w]));
            offset32.push_back(static_cast<float>(offset[w] + lost));
        }
    }
};

struct Search::Query {
    int64_t count = 0, padded = 0;
    std::vector<float> vectors;  // [count][padded], zero from dim on
    std::vector<double> norm;    // no less than ||q||
    double largest = 0;
    Coded first, second, codes;
    int64_t blocks = 0;                          // E: of axes at the int8 level
    std::vector<double> along, rest;             // ||B_j'q|| [count][E], R(q), of the leading axes
    std::vector<double> lost_along, lost;        // ||B_j'dq||, ||dq||
};

Search::Search(Plan plan, std::vector<Part> parts) : plan_(std::move(plan)), parts_(std::move(parts)) {
    for (Part& part : parts_) {
        part.base = rows_;
        rows_ += part.rows;
        for (int64_t row = 0; row < part.rows; ++row)
            longest_ = std::max(longest_, part.starts[row + 1] - part.starts[row]);
        for (int64_t row = 0; row < part.rows; ++row)
            largest_ = std::max(largest_, double(part.norm[row]) + part.error[row]);
        if (!part.first) continue;
        part.block_starts.push_back(0);
        for (int64_t place = 0; place < part.rows; place += LANES) {
            int64_t most = 0;
            for (int64_t i = place; i < std::min(place + LANES, part.rows); ++i)
                most = std::max(most, part.starts[part.order[i] + 1] - part.starts[part.order[i]]);
            part.block_starts.push_back(part.block_starts.back() + most);
        }
    }
}

namespace {

// What float64 arithmetic on similarities within `size` and their pooling can lose, as a change of each: (2).
double rounding(double size, int64_t dim, double count, double temperature) {
    return 16 * UNIT64 * (double(dim) + count + 16) * (size + temperature);
}

// See pooling.score_change.
double score_change(double change, double count, double spread, Pooling pooling, double temperature) {
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
double pool(const double* values, int64_t count, Pooling pooling, double temperature) {
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

double spread_of(const double* values, int64_t count) {
    const auto [least, most] = std::minmax_element(values, values + count);
    return *most - *least;
}

}  // namespace

// -- the query

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
        std::vector<int32_t> integers(count * level.width, 0);
        std::vector<double> weight(level.norms), totals(count), product(level.coordinates);
        double steps = 0;
        for (int64_t i = 0; i < level.coordinates; ++i) steps += level.step[i];
        for (int64_t w = 0; w < count; ++w) {
            double largest = 0, total = 0, bound = 0;
            for (int64_t i = 0; i < level.coordinates; ++i) {
                product[i] = f * y[i * count + w] * level.step[i];
                largest = std::max(largest, std::abs(product[i]));
                total += std::abs(product[i]);
            }
            const double coordinates = largest;
            for (int64_t j = 0; j + 1 < level.norms; ++j) {
                const bool rest = j + 2 == level.norms;
                weight[j] = rest ? beyond(w, axes) : along(y.data(), w, level.edges[j], level.edges[j + 1], off[w]);
                bound += weight[j] * level.norm_typical[j];
                largest = std::max(largest, weight[j] * level.norm_step[j]);
                total += weight[j] * level.norm_step[j];
            }
            const int64_t last = level.norms - 1;
            const double spread = std::sqrt(double(level.coordinates) / 12);
            double scale = COARSE * bound / std::max(spread * level.norm_typical[last], DBL_MIN);
            scale = std::min(scale, coordinates / 127);
            scale = std::max(scale, least_scale(largest, total, level.width + level.coordinates));
            if (!(scale > 0)) scale = 1;
            int32_t* mine = &integers[w * level.width];
            double lost = 0, offset = 0, used = 0;
            for (int64_t i = 0; i < level.coordinates; ++i) {
                const int32_t integer = nearest(product[i] / scale);
                mine[level.norms + i] = integer;
                const double rounded = product[i] - scale * integer;
                lost += rounded * rounded;
                offset -= 128.0 * integer;
                used += std::abs(integer);
            }
            weight[last] = std::sqrt(lost) * MORE;
            for (int64_t j = 0; j < level.norms; ++j) {
                mine[j] = nearest(std::ceil(weight[j] * level.norm_step[j] / scale * MORE));
                used += mine[j];
            }
            // q.mean and the products with steps in float64, B'q in float32, and (2)
            const double middle = plan_.kernels->dot(&query.vectors[w * query.padded], plan_.mean, dim);
            const double slack = 127 * off[w] * steps * MORE + 4 * double(dim + level.width) * UNIT64 *
                                                                   (query.norm[w] * mean_norm + 255 * scale * used);
            coded.scale.push_back(scale);
            const double pooled = double(std::max(count, longest_));
            const double more = rounding(query.norm[w] * largest_, dim, pooled, plan_.temperature);
            coded.offset.push_back(scale * offset + middle + slack + more);
            totals[w] = used;
        }
        coded.packed = pack(integers, count, level.width, tiled);
        coded.finish_float(totals);
    };
    // for the int8 codes of all coordinates
    const int64_t stride = parts_.empty() ? 0 : parts_[0].stride;
    std::vector<int32_t> integers(count * stride, 0);
    std::vector<float> lost(count * query.padded, 0);
    std::vector<double> totals(count);
    const auto code_all = [&](int64_t w) {
        const float* mine = &query.vectors[w * query.padded];
        double largest = 0, total = 0;
        for (int64_t i = 0; i < dim; ++i) {
            largest = std::max(largest, double(std::abs(mine[i])));
            total += std::abs(mine[i]);
        }
        double scale = std::max(largest / (plan_.digits == 1 ? 127 : LARGEST), least_scale(largest, total, stride));
        if (!(scale > 0)) scale = 1;
        double offset = 0, square = 0;
        for (int64_t i = 0; i < dim; ++i) {
            const int32_t integer = nearest(mine[i] / scale);
            const double rounded = mine[i] - scale * integer;
            integers[w * stride + i] = integer;
            lost[w * query.padded + i] = static_cast<float>(rounded);
            offset -= 128.0 * integer;
            square += rounded * rounded;
            totals[w] += std::abs(integer);
        }
        query.lost.push_back(std::sqrt(square) * MORE);
        query.codes.scale.push_back(scale);
        query.codes.offset.push_back(scale * offset);
    };

    const std::function<void(int64_t)> half = [&](int64_t which) {
        if (which == 0) {
            if (axes)
                plan_.kernels->products(plan_.basis, axes, dim, query.vectors.data(), count, query.padded, y.data());
            if (plan_.first.coordinates) code(plan_.first, query.first, false);
            if (plan_.second.coordinates) code(plan_.second, query.second, true);
        } else {
            for (int64_t w = 0; w < count; ++w) code_all(w);
            query.codes.packed = pack(integers, count, stride, true);
            query.codes.finish_float(totals);
        }
    };
    if (threads)
        threads->run(2, half);
    else
        half(0), half(1);
    query.blocks = plan_.edges.empty() ? 0 : static_cast<int64_t>(plan_.edges.size()) - 1;
    for (int64_t w = 0; w < count && query.blocks; ++w) {
        query.rest.push_back(beyond(w, plan_.edges.back()));
        for (int64_t j = 0; j < query.blocks; ++j)
            query.along.push_back(along(y.data(), w, plan_.edges[j], plan_.edges[j + 1], off[w]));
    }
    if (query.blocks && plan_.digits == 1) {
        plan_.kernels->products(plan_.basis, axes, dim, lost.data(), count, query.padded, y.data());
        for (int64_t w = 0; w < count; ++w) {
            const double error = query.lost[w];  // `lost` was rounded to float32 as well
            const double each = (relative + 2 * UNIT32) * size * error * MORE + dim * FLT_MIN * (1 + error + size);
            for (int64_t j = 0; j < query.blocks; ++j)
                query.lost_along.push_back(along(y.data(), w, plan_.edges[j], plan_.edges[j + 1], each));
        }
    }
}

// -- bounds

void Search::bound_blocks(const Query& query, const Part& part, int64_t first, int64_t last, const uint8_t* allowed,
                          float* upper) const {
    const Coded& coded = query.first;
    const int64_t width = plan_.first.width, steps = static_cast<int64_t>(coded.packed.program.size());
    const int64_t most = plan_.pools_query ? query.count : longest_;
    thread_local std::vector<int32_t> sums;
    thread_local std::vector<float> values;
    sums.resize(query.count * LANES);
    values.resize(most * LANES);
    for (int64_t block = first; block < last; ++block) {
        const int64_t place = block * LANES, rows = std::min<int64_t>(LANES, part.rows - place);
        const int64_t* order = part.order + place;
        if (allowed && std::none_of(order, order + rows, [&](int64_t row) { return allowed[part.base + row]; })) {
            for (int64_t lane = 0; lane < rows; ++lane) upper[part.base + order[lane]] = -FLT_MAX;
            continue;
        }
        const int64_t begin = part.block_starts[block], vectors = part.block_starts[block + 1] - begin;
        const uint8_t* codes = part.first + begin * width * LANES;
        int32_t counts[LANES];
        float scores[LANES];
        int64_t pooled = query.count;
        if (plan_.pools_query) {
            plan_.kernels->block_over_row(codes, vectors, width, coded.packed.program.data(), steps,
                                          coded.packed.digits.data(), query.count, sums.data());
            for (int64_t w = 0; w < query.count; ++w)
                for (int lane = 0; lane < LANES; ++lane) {
                    const double value = coded.scale[w] * sums[w * LANES + lane] + coded.offset[w];
                    values[w * LANES + lane] = static_cast<float>(value + std::abs(value) * (2 * UNIT32) + FLT_MIN);
                }
            std::fill(counts, counts + LANES, static_cast<int32_t>(query.count));
        } else {
            plan_.kernels->block_over_query(codes, vectors, width, coded.packed.program.data(), steps,
                                            coded.packed.digits.data(), query.count, coded.scale32.data(),
                                            coded.offset32.data(), values.data());
            pooled = vectors;
            for (int64_t lane = 0; lane < LANES; ++lane) {
                const int64_t row = order[std::min(lane, rows - 1)];
                counts[lane] = static_cast<int32_t>(part.starts[row + 1] - part.starts[row]);
            }
        }
        plan_.kernels->pool_lanes(values.data(), pooled, counts, plan_.pooling, static_cast<float>(plan_.temperature),
                                  scores);
        for (int64_t lane = 0; lane < rows; ++lane) {
            const int64_t row = order[lane];
            float& out = upper[part.base + row];
            out = part.loose[row] & 1 ? std::numeric_limits<float>::infinity() : scores[lane];
            if (std::isnan(out)) out = std::numeric_limits<float>::infinity();
            if (allowed && !allowed[part.base + row]) out = -FLT_MAX;
        }
    }
}

// What a thread knows of a row while it narrows the row's bounds.
struct Search::Work {
    const Part* part = nullptr;
    int64_t row = 0;               // in its part
    bool levels = false;           // whether `second` bounds the row's similarities
    std::vector<int32_t> second;   // sums of the second level, [vectors][places]
    std::vector<int32_t> codes;    // sums of the int8 codes of the vectors in `listed`, [listed][places]
    std::vector<int32_t> highest;  // of each word's sums
    std::vector<int32_t> listed;   // vectors
    std::vector<char> chosen;      // [vectors], whether it is in `listed`
    std::vector<const uint8_t*> pointers;
    std::vector<std::pair<float, int32_t>> others;  // vectors that can raise `high`, and how much that would matter
    std::vector<float> best, weight, below, above, matter;
    std::vector<double> values, low, high, change;

    int64_t vectors() const { return part->starts[row + 1] - part->starts[row]; }
    const uint8_t* codes_of(int64_t vector) const { return part->codes + (part->starts[row] + vector) * part->stride; }
    void take(int64_t vector) {
        chosen[vector] = 1;
        listed.push_back(static_cast<int32_t>(vector));
    }
};

double Search::pool_above(const std::vector<double>& upper) const {
    const Pooling pooling = plan_.pooling == Pooling::softmax ? Pooling::max : plan_.pooling;
    return pool(upper.data(), static_cast<int64_t>(upper.size()), pooling, plan_.temperature);
}

// An upper bound of the row's score; and the vectors that the second level says are best for a word are chosen. Fetches
// what begins at `next`.
double Search::bound_second(const Query& query, Work& work, const uint8_t* next) const {
    const Part& part = *work.part;
    const int64_t vectors = work.vectors(), tiles = (query.count + LANES - 1) / LANES;
    work.levels = false;
    if (part.loose[work.row] & 2) return INFINITE;
    const Coded& coded = query.second;
    const int64_t width = plan_.second.width, steps = static_cast<int64_t>(coded.packed.program.size());
    const uint8_t* codes = part.second + part.starts[work.row] * width;
    if (!plan_.pools_query) {
        work.best.resize(vectors);
        plan_.kernels->row_over_query(codes, vectors, width, coded.packed.program.data(), steps,
                                      coded.packed.digits.data(), tiles, coded.scale32.data(), coded.offset32.data(),
                                      work.best.data());
        work.values.assign(work.best.begin(), work.best.end());
        return pool_above(work.values);
    }
    const int64_t places = tiles * LANES;
    work.levels = true;
    work.second.resize(vectors * places);
    work.highest.assign(places, INT32_MIN);
    work.values.resize(query.count);
    work.pointers.clear();
    for (int64_t v = 0; v < vectors; ++v) work.pointers.push_back(codes + v * width);
    for (int64_t v = 0; v < NEXT; ++v) work.pointers.push_back(next + v * width);
    plan_.kernels->row_sums(work.pointers.data(), vectors, width, coded.packed.program.data(), steps,
                            coded.packed.digits.data(), tiles, work.highest.data(), work.second.data());
    for (int64_t w = 0; w < query.count; ++w) work.values[w] = coded.scale[w] * work.highest[w] + coded.offset[w];
    return pool_above(work.values);
}

// Choose the vectors whose int8 codes are multiplied first: those that the second level says are best for a word.
void Search::choose(const Query& query, Work& work) const {
    const int64_t vectors = work.vectors(), places = (query.count + LANES - 1) / LANES * LANES;
    work.listed.clear();
    work.chosen.assign(vectors, 0);
    for (int64_t v = 0; v < vectors; ++v) {
        bool any = !work.levels;
        const int32_t* sums = &work.second[work.levels ? v * places : 0];
        for (int64_t w = 0; w < query.count && work.levels; ++w) any |= sums[w] == work.highest[w];
        if (any) work.take(v);
    }
}

// How far each word's similarities with a row's vectors can be from what the int8 codes give.
void Search::changes(const Query& query, Work& work) const {
    const Part& part = *work.part;
    const double scale = part.scale[work.row], error = part.error[work.row], norm = part.norm[work.row];
    const bool measured = part.blocks != nullptr && query.blocks;
    const float* blocks = measured ? part.blocks + work.row * (2 * query.blocks + 1) : nullptr;  // of errors, then norms
    const double pooled = double(plan_.pools_query ? query.count : work.vectors());
    work.change.resize(query.count);
    for (int64_t w = 0; w < query.count; ++w) {
        double inner = query.norm[w] * error, outer = query.lost[w] * norm;
        if (measured) {
            double along = query.rest[w] * error;
            for (int64_t j = 0; j < query.blocks; ++j) along += query.along[w * query.blocks + j] * blocks[j];
            inner = std::min(inner, along);
            if (plan_.digits == 1) {
                along = query.lost[w] * blocks[2 * query.blocks];
                for (int64_t j = 0; j < query.blocks; ++j)
                    along += query.lost_along[w * query.blocks + j] * blocks[query.blocks + j];
                outer = std::min(outer, along);
            }
        }
        const double size = query.norm[w] * (norm + error);
        const double loss = plan_.pools_query ? 0 : 2 * scale * query.codes.loss[w];
        work.change[w] = (inner + outer) * MORE + loss + rounding(size, plan_.dim, pooled, plan_.temperature);
    }
}

// Raise `high`, upper bounds of each word's largest similarity, to what the second level leaves open for vectors that
// were not chosen, and find those that do so; false where there are none.
bool Search::others(const Query& query, Work& work) const {
    const int64_t vectors = work.vectors(), words = query.count, places = (words + LANES - 1) / LANES * LANES;
    const double peak = *std::max_element(work.high.begin(), work.high.end());
    const bool begins = work.weight.empty();
    for (auto* each : {&work.weight, &work.below, &work.above}) each->resize(places);
    for (int64_t w = 0; w < words; ++w) {
        const double distance = (work.high[w] - peak) / plan_.temperature;
        if (begins) work.weight[w] = plan_.pooling == Pooling::lse ? static_cast<float>(std::exp(distance)) : 1.0f;
        const float near = static_cast<float>(work.high[w]);
        work.below[w] = work.above[w] = double(near) > work.high[w] ? std::nextafter(near, -FLT_MAX) : near;
    }
    work.matter.resize(vectors);
    plan_.kernels->open_lanes(work.second.data(), vectors, places, work.chosen.data(), query.second.scale32.data(),
                              query.second.offset32.data(), work.weight.data(), work.below.data(), work.above.data(),
                              work.matter.data());
    for (int64_t w = 0; w < words; ++w) work.high[w] = std::max(work.high[w], double(work.above[w]));
    work.others.clear();
    for (int64_t v = 0; v < vectors; ++v)
        if (work.matter[v] > 0) work.others.emplace_back(work.matter[v], static_cast<int32_t>(v));
    return !work.others.empty();
}

// Multiply the int8 codes of the vectors in `listed` from `first` on, and fetch those of `next`, if there is one.
void Search::multiply(const Query& query, Work& work, size_t first, const Work* next) const {
    const Coded& coded = query.codes;
    const int64_t tiles = (query.count + LANES - 1) / LANES, places = tiles * LANES;
    const int64_t count = static_cast<int64_t>(work.listed.size() - first);
    work.pointers.clear();
    for (size_t i = first; i < work.listed.size(); ++i) work.pointers.push_back(work.codes_of(work.listed[i]));
    for (size_t i = 0; i < NEXT; ++i)
        work.pointers.push_back(next && i < next->listed.size() ? next->codes_of(next->listed[i]) : work.pointers.back());
    plan_.kernels->row_sums(work.pointers.data(), count, work.part->stride, coded.packed.program.data(),
                            static_cast<int64_t>(coded.packed.program.size()), coded.packed.digits.data(), tiles,
                            work.highest.data(), &work.codes[static_cast<int64_t>(first) * places]);
    const double scale = work.part->scale[work.row];
    for (int64_t w = 0; w < query.count; ++w)
        work.values[w] = scale * (coded.scale[w] * work.highest[w] + coded.offset[w]);
}

// A row's score lies between *lower and *upper. Where the second level bounds each similarity, only as many of the row's
// vectors are multiplied as could raise an upper bound, those that matter most first, and none once *upper is below the
// threshold.
void Search::bound_codes(const Query& query, double threshold, Work& work, const Work* next, double* lower,
                         double* upper) const {
    const int64_t vectors = work.vectors(), words = query.count, tiles = (words + LANES - 1) / LANES;
    changes(query, work);
    if (plan_.pools_query) {
        work.codes.resize(vectors * tiles * LANES);
        work.highest.assign(tiles * LANES, INT32_MIN);
        work.values.resize(words);
        multiply(query, work, 0, next);
        work.weight.clear();
        while (static_cast<int64_t>(work.listed.size()) < vectors) {
            work.high.resize(words);
            for (int64_t w = 0; w < words; ++w) work.high[w] = work.values[w] + work.change[w];
            if (!others(query, work)) break;
            *upper = pool_above(work.high);
            if (*upper < threshold) {
                *lower = -INFINITE;
                return;
            }
            const size_t first = work.listed.size(), some = std::min(AT_ONCE, work.others.size());
            std::partial_sort(work.others.begin(), work.others.begin() + some, work.others.end(), std::greater<>());
            for (size_t i = 0; i < some; ++i) work.take(work.others[i].second);
            multiply(query, work, first, nullptr);
        }
    } else {
        const Coded& coded = query.codes;
        work.best.resize(vectors);
        plan_.kernels->row_over_query(work.codes_of(0), vectors, work.part->stride, coded.packed.program.data(),
                                      static_cast<int64_t>(coded.packed.program.size()), coded.packed.digits.data(),
                                      tiles, coded.scale32.data(), coded.offset32.data(), work.best.data());
        const double scale = work.part->scale[work.row];
        work.values.resize(vectors);
        for (int64_t i = 0; i < vectors; ++i) work.values[i] = scale * work.best[i];
        work.change.assign(vectors, *std::max_element(work.change.begin(), work.change.end()));
    }
    const auto count = static_cast<int64_t>(work.values.size());
    if (plan_.pooling == Pooling::softmax) {
        const double score = pool(work.values.data(), count, plan_.pooling, plan_.temperature);
        const double spread = spread_of(work.values.data(), count);
        const double most = *std::max_element(work.change.begin(), work.change.end());
        const double radius = score_change(most, double(count), spread, plan_.pooling, plan_.temperature);
        *lower = score - radius, *upper = score + radius;
    } else {
        work.high.resize(count), work.low.resize(count);
        for (int64_t i = 0; i < count; ++i) {
            work.high[i] = work.values[i] + work.change[i];
            work.low[i] = work.values[i] - work.change[i];
        }
        *upper = pool(work.high.data(), count, plan_.pooling, plan_.temperature);
        *lower = pool(work.low.data(), count, plan_.pooling, plan_.temperature);
    }
    if (!(*lower <= *upper)) *lower = -INFINITE, *upper = INFINITE;  // past float64's range: nothing is known
}

// The vectors that can hold a maximum, in rising order, after `bound_codes`.
void Search::hold(const Query& query, const Work& work, std::vector<int32_t>& held) const {
    const int64_t vectors = work.vectors(), words = query.count, places = (words + LANES - 1) / LANES * LANES;
    held.clear();
    if (!plan_.pools_query) {
        held.resize(vectors);
        std::iota(held.begin(), held.end(), 0);
        return;
    }
    const double scale = work.part->scale[work.row];
    const auto consider = [&](int32_t vector, const auto& upper) {
        bool any = false;
        for (int64_t w = 0; w < words; ++w) any |= !(upper(w) < work.values[w] - work.change[w]);
        if (any) held.push_back(vector);
    };
    for (size_t i = 0; i < work.listed.size(); ++i) {
        const int32_t* sums = &work.codes[static_cast<int64_t>(i) * places];
        consider(work.listed[i], [&](int64_t w) {
            return scale * (query.codes.scale[w] * sums[w] + query.codes.offset[w]) + work.change[w];
        });
    }
    for (int64_t v = 0; v < vectors && static_cast<int64_t>(work.listed.size()) < vectors; ++v) {
        const int32_t* sums = &work.second[v * places];
        if (!work.chosen[v])
            consider(static_cast<int32_t>(v),
                     [&](int64_t w) { return query.second.scale[w] * sums[w] + query.second.offset[w]; });
    }
    std::sort(held.begin(), held.end());
}

// -- the search

const Part& Search::part_of(int64_t row, int64_t* local) const {
    const auto after = std::upper_bound(parts_.begin(), parts_.end(), row,
                                        [](int64_t wanted, const Part& part) { return wanted < part.base; });
    const Part& part = *(after - 1);
    *local = row - part.base;
    return part;
}

bool Search::ready(const Part& part, int64_t local, uint8_t what, const TouchFunction& touch) const {
    if ((part.checked[local] & what) == what) return true;
    return touch(&part - parts_.data(), local, what);
}

// A row that may be among the best.
struct Search::Pending {
    int64_t row = 0;
    double needed = -INFINITE;                   // what its upper bound must reach
    double lower = -INFINITE, upper = INFINITE;  // by its codes
    double low = -INFINITE, high = INFINITE;     // by its fine copy in float32
    std::vector<int32_t> held;                   // its vectors that can hold a maximum
    std::vector<float> similarities;             // of these with the query's, [held][words]; empty until it is scored
};

// Bring bounds of rows by their codes as close as their `needed` asks for; false where `touch` failed.
bool Search::narrow(const Query& query, Pending* const* rows, int64_t count, const TouchFunction& touch,
                    Reads& reads) const {
    thread_local std::vector<Work> works;
    thread_local std::vector<std::pair<Pending*, Work*>> left;
    if (static_cast<int64_t>(works.size()) < count) works.resize(count);
    left.clear();
    for (int64_t i = 0; i < count; ++i) works[i].part = &part_of(rows[i]->row, &works[i].row);
    for (int64_t i = 0; i < count; ++i) {
        Pending& row = *rows[i];
        Work& work = works[i];
        const Part& part = *work.part;
        work.levels = false;
        if (part.first && plan_.second.coordinates) {
            if (!ready(part, work.row, SECOND, touch)) return false;
            ++reads.second;
            const Work& after = works[std::min(i + 1, count - 1)];
            const Part& its = after.part->first ? *after.part : part;
            const int64_t next = after.part->first ? after.row : work.row;
            row.upper = std::min(row.upper, bound_second(query, work, its.second + its.starts[next] * plan_.second.width));
            if (row.upper < row.needed) continue;
        }
        if (!ready(part, work.row, CODES, touch)) return false;
        choose(query, work);
        left.emplace_back(&row, &work);
    }
    reads.codes += static_cast<int64_t>(left.size());
    for (size_t i = 0; i < left.size(); ++i) {
        auto& [row, work] = left[i];
        double upper;
        bound_codes(query, row->needed, *work, i + 1 < left.size() ? left[i + 1].second : nullptr, &row->lower, &upper);
        row->upper = std::min(row->upper, upper);
        if (row->upper >= row->needed) hold(query, *work, row->held);
    }
    return true;
}

double Search::kth_lower_bound(const std::vector<Pending>& rows, int64_t k) {
    if (k > static_cast<int64_t>(rows.size())) return -INFINITE;
    std::vector<double> values;
    for (const Pending& each : rows) values.push_back(std::max(each.lower, each.low));
    std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<double>());
    return values[k - 1];
}

namespace {

// The `count` rows with the largest finite values, in ascending order.
std::vector<int64_t> largest_rows(const float* values, int64_t rows, int64_t count, const uint8_t* allowed) {
    std::vector<std::pair<float, int64_t>> heap;  // the least of them in front
    const auto above = std::greater<std::pair<float, int64_t>>();
    for (int64_t row = 0; row < rows; ++row) {
        const bool full = static_cast<int64_t>(heap.size()) >= count;
        if ((full && values[row] <= heap.front().first) || std::isinf(values[row]) || (allowed && !allowed[row]))
            continue;
        if (full) {
            std::pop_heap(heap.begin(), heap.end(), above);
            heap.pop_back();
        }
        heap.emplace_back(values[row], row);
        std::push_heap(heap.begin(), heap.end(), above);
    }
    std::vector<int64_t> found;
    for (const auto& [value, row] : heap) found.push_back(row);
    std::sort(found.begin(), found.end());
    return found;
}

}  // namespace

void Search::finish(const Query& query, const float* upper, int64_t k, const uint8_t* allowed,
                    const TouchFunction& touch, Threads& threads, Answer& answer) const {
    std::atomic<bool> stopped{false};
    Reads reads;
    const auto in_pieces = [&](int64_t count, int64_t piece, const std::function<bool(int64_t)>& work) {
        threads.run((count + piece - 1) / piece, [&](int64_t which) {
            for (int64_t i = which * piece; i < std::min(count, (which + 1) * piece) && !stopped; ++i)
                if (!work(i)) stopped = true;
        });
        return !stopped;
    };
    const auto score = [&](Pending& each) {
        int64_t local;
        const Part& part = part_of(each.row, &local);
        if (!ready(part, local, FINE, touch)) return false;
        score_fine(query, part, local, each.held, each.similarities, &each.low, &each.high);
        return true;
    };

    // The rows that look best give a first threshold: the fine copy of k of them, and the others' codes.
    std::vector<Pending> best, pending;
    for (const int64_t row : largest_rows(upper, rows_, k + BEYOND, allowed)) {
        best.emplace_back().row = row;
        best.back().upper = upper[row];
    }
    std::vector<Pending*> some;
    for (Pending& each : best) some.push_back(&each);
    const auto narrow_some = [&] {
        const auto left = static_cast<int64_t>(some.size());
        return in_pieces((left + TOGETHER - 1) / TOGETHER, 1, [&](int64_t i) {
            return narrow(query, &some[i * TOGETHER], std::min(TOGETHER, left - i * TOGETHER), touch, reads);
        });
    };
    const auto score_some = [&] {
        answer.fine += static_cast<int64_t>(some.size());
        return in_pieces(static_cast<int64_t>(some.size()), 1, [&](int64_t i) { return score(*some[i]); });
    };
    const auto first_scores = [&] {
        if (static_cast<int64_t>(some.size()) > k) {
            std::nth_element(some.begin(), some.begin() + k, some.end(),
                             [](const Pending* a, const Pending* b) { return a->lower > b->lower; });
            some.resize(k);
        }
        return score_some();
    };
    if (narrow_some() && first_scores()) {
        double threshold = kth_lower_bound(best, k);

        // Every row whose upper bound reaches it, by more of its codes.
        auto known = best.begin();
        for (int64_t row = 0; row < rows_; ++row) {
            if (!(upper[row] >= threshold) || (allowed && !allowed[row])) continue;
            while (known != best.end() && known->row < row) ++known;
            if (known != best.end() && known->row == row) {
                pending.push_back(std::move(*known));
                continue;
            }
            pending.emplace_back().row = row;
            pending.back().needed = threshold;
            pending.back().upper = upper[row];
        }
        some.clear();
        for (Pending& each : pending)
            if (each.held.empty()) some.push_back(&each);
        narrow_some();

        // By falling upper bound from the fine copy, until what is left cannot be among the best.
        pending.erase(std::remove_if(pending.begin(), pending.end(),
                                     [&](const Pending& each) { return !(each.upper >= threshold); }),
                      pending.end());
        std::sort(pending.begin(), pending.end(), [](const Pending& a, const Pending& b) {
            return a.upper != b.upper ? a.upper > b.upper : a.row < b.row;
        });
        threshold = std::max(threshold, kth_lower_bound(pending, k));
        for (size_t next = 0; !stopped && next < pending.size() && pending[next].upper >= threshold;) {
            some.clear();
            for (; next < pending.size() && pending[next].upper >= threshold && some.size() < 8; ++next)
                if (pending[next].similarities.empty()) some.push_back(&pending[next]);
            if (!score_some()) break;
            threshold = std::max(threshold, kth_lower_bound(pending, k));
        }
        for (const Pending& each : pending) {
            if (stopped || each.similarities.empty()) continue;
            if (!(each.low <= each.upper && each.lower <= each.high)) answer.contradiction = each.row;
            if (!(each.high >= threshold)) continue;
            int64_t local;
            const Part& part = part_of(each.row, &local);
            const auto begin = static_cast<int64_t>(answer.maxima.size());
            decide(query, part, local, each.held, each.similarities.data(), answer.maxima, answer.winners);
            answer.rows.push_back({each.row, begin, static_cast<int64_t>(answer.maxima.size()) - begin});
        }
    }
    answer.second = reads.second, answer.codes = reads.codes, answer.stopped = stopped;
}

// A row's score from its fine copy in float32 lies between *low and *high. held: its vectors that can hold a maximum, in
// rising order; out [held][words], their similarities.
void Search::score_fine(const Query& query, const Part& part, int64_t row, const std::vector<int32_t>& held,
                        std::vector<float>& out, double* low, double* high) const {
    const int64_t words = query.count, dim = plan_.dim, first = part.starts[row];
    const auto vectors = static_cast<int64_t>(held.size());
    out.resize(vectors * words);
    for (int64_t i = 0, next; i < vectors; i = next) {  // those that follow each other at once
        for (next = i + 1; next < vectors && held[next] == held[next - 1] + 1;) ++next;
        const int64_t at = (first + held[i]) * dim;
        if (part.half)
            plan_.kernels->half_products(static_cast<const uint16_t*>(part.fine) + at, next - i, dim,
                                         query.vectors.data(), words, query.padded, &out[i * words]);
        else
            plan_.kernels->products(static_cast<const float*>(part.fine) + at, next - i, dim, query.vectors.data(),
                                    words, query.padded, &out[i * words]);
    }
    thread_local std::vector<double> values;
    values.assign(plan_.pools_query ? words : vectors, -INFINITE);
    for (int64_t v = 0; v < vectors; ++v)
        for (int64_t w = 0; w < words; ++w) {
            double& value = values[plan_.pools_query ? w : v];
            value = std::max(value, double(out[v * words + w]));
        }
    const auto count = static_cast<int64_t>(values.size());
    const double size = query.largest * (double(part.norm[row]) + part.error[row]);
    const double change = float_error(query, part, row) + rounding(size, dim, double(count), plan_.temperature);
    const double spread = plan_.pooling == Pooling::softmax ? spread_of(values.data(), count) : 0;
    const double score = pool(values.data(), count, plan_.pooling, plan_.temperature);
    const double radius = score_change(change, double(count), spread, plan_.pooling, plan_.temperature);
    *low = score - radius, *high = score + radius;
}

// How far a float32 inner product of the query and a row's fine copy can be from the float64 one.
double Search::float_error(const Query& query, const Part& part, int64_t row) const {
    const double roundings = double(query.padded / LANES + 5) * UNIT32, dim = double(plan_.dim);
    const double relative = (roundings / (1 - roundings) + 4 * dim * UNIT64) * (1 + 1e-6);
    const double norm = double(part.norm[row]) + part.error[row];
    return relative * query.largest * norm + dim * double(FLT_MIN) * (1 + query.largest + norm);
}

// What float32 leaves undecided, in float64: of each maximum, the products that could be it.
void Search::decide(const Query& query, const Part& part, int64_t row, const std::vector<int32_t>& held,
                    const float* similarities, std::vector<double>& maxima, std::vector<int32_t>& winners) const {
    const int64_t words = query.count, dim = plan_.dim, first = part.starts[row];
    const auto vectors = static_cast<int64_t>(held.size());
    const double slack = 2 * float_error(query, part, row);
    thread_local std::vector<float> widened;
    const auto exact = [&](int64_t vector, int64_t word) {
        const int64_t at = (first + vector) * dim;
        const float* fine = static_cast<const float*>(part.fine) + at;
        if (part.half) {
            widened.resize(dim);
            plan_.kernels->widen(static_cast<const uint16_t*>(part.fine) + at, dim, widened.data());
            fine = widened.data();
        }
        return plan_.kernels->dot(fine, &query.vectors[word * query.padded], dim);
    };
    const int64_t outer = plan_.pools_query ? words : vectors, inner = plan_.pools_query ? vectors : words;
    const int64_t outer_stride = plan_.pools_query ? 1 : words, inner_stride = plan_.pools_query ? words : 1;
    for (int64_t a = 0; a < outer; ++a) {
        const float* mine = similarities + a * outer_stride;
        double most = -INFINITE, maximum = -INFINITE;
        int32_t winner = 0;
        for (int64_t b = 0; b < inner; ++b) most = std::max(most, double(mine[b * inner_stride]));
        for (int64_t b = 0; b < inner; ++b) {
            if (double(mine[b * inner_stride]) < most - slack) continue;
            const double value = plan_.pools_query ? exact(held[b], a) : exact(a, b);
            if (value > maximum) maximum = value, winner = plan_.pools_query ? held[b] : static_cast<int32_t>(b);
        }
        maxima.push_back(maximum);
        winners.push_back(winner);
    }
}

double Search::exact_score(const Query& query, const Part& part, const Pending& row, int64_t local) const {
    thread_local std::vector<double> maxima;
    thread_local std::vector<int32_t> winners;
    maxima.clear(), winners.clear();
    decide(query, part, local, row.held, row.similarities.data(), maxima, winners);
    return pool(maxima.data(), static_cast<int64_t>(maxima.size()), plan_.pooling, plan_.temperature);
}

bool Search::in_turns(const float* queries, const int64_t* starts, int64_t count, const uint8_t* allowed,
                      Threads& threads, const std::function<bool(int64_t, const Query&, const float*)>& each) const {
    std::unique_ptr<std::vector<float>> upper;
    {
        std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);  // in a forked process nobody may ever unlock it
        if (lock && !spare_.empty()) {
            upper = std::move(spare_.back());
            spare_.pop_back();
        }
    }
    if (!upper) upper = std::make_unique<std::vector<float>>();
    const int64_t turn = std::clamp<int64_t>(TURN_BYTES / (4 * rows_), 1, std::min(TURN, count));
    upper->resize(turn * rows_);

    struct Piece {
        const Part* part;
        int64_t first, last;
    };
    std::vector<Piece> pieces;
    for (const Part& part : parts_) {
        const int64_t units = part.first ? static_cast<int64_t>(part.block_starts.size()) - 1 : part.rows;
        const int64_t size = part.first ? CHUNK : ROWS;
        for (int64_t first = 0; first < units; first += size)
            pieces.push_back({&part, first, std::min(units, first + size)});
    }
    std::atomic<bool> well{true};
    for (int64_t begin = 0; begin < count && well; begin += turn) {
        const int64_t here = std::min(turn, count - begin);
        std::vector<Query> asked(here);
        threads.run(here, [&](int64_t i) {
            prepare(asked[i], queries + starts[begin + i] * plan_.dim, starts[begin + i + 1] - starts[begin + i],
                    here == 1 ? &threads : nullptr);
        });
        threads.run(static_cast<int64_t>(pieces.size()), [&](int64_t which) {
            const Piece& piece = pieces[which];
            for (int64_t unit = piece.first; unit < piece.last; ++unit)
                for (int64_t i = 0; i < here; ++i) {
                    float* mine = upper->data() + i * rows_;
                    if (piece.part->first) {
                        bound_blocks(asked[i], *piece.part, unit, unit + 1, allowed, mine);
                        continue;
                    }
                    float& out = mine[piece.part->base + unit];
                    out = -FLT_MAX;
                    if (allowed && !allowed[piece.part->base + unit]) continue;
                    thread_local Work work;
                    work.part = piece.part, work.row = unit, work.levels = false;
                    choose(asked[i], work);
                    double low, high;
                    bound_codes(asked[i], -INFINITE, work, nullptr, &low, &high);
                    out = static_cast<float>(high + std::abs(high) * (2 * UNIT32) + FLT_MIN);
                }
        });
        const auto complete = [&](int64_t i) {
            if (well && !each(begin + i, asked[i], upper->data() + i * rows_)) well = false;
        };
        if (here >= threads.count())
            threads.run(here, complete);
        else
            for (int64_t i = 0; i < here; ++i) complete(i);
    }
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) spare_.push_back(std::move(upper));
    return well;
}

std::vector<Answer> Search::best(const float* queries, const int64_t* starts, int64_t count, int64_t k,
                                 const uint8_t* allowed, const TouchFunction& touch, Threads& threads) const {
    std::vector<Answer> answers(count);
    if (rows_ && count)
        in_turns(queries, starts, count, allowed, threads, [&](int64_t i, const Query& query, const float* upper) {
            finish(query, upper, k, allowed, touch, threads, answers[i]);
            return !answers[i].stopped;
        });
    return answers;
}

bool Search::above(const float* queries, const int64_t* starts, int64_t count, const double* query_thresholds,
                   const double* row_thresholds, const TouchFunction& touch, Threads& threads,
                   std::vector<std::vector<Scored>>& found) const {
    found.assign(count, {});
    if (!rows_ || !count) return true;
    return in_turns(queries, starts, count, nullptr, threads, [&](int64_t i, const Query& query, const float* upper) {
        Reads reads;
        std::vector<Pending> rows(TOGETHER);
        std::vector<Pending*> some;
        const auto decide_some = [&] {
            if (!narrow(query, some.data(), static_cast<int64_t>(some.size()), touch, reads)) return false;
            for (Pending* each : some) {
                if (each->upper < each->needed) continue;
                const double mine = query_thresholds[i], its = row_thresholds[each->row];
                double low = each->lower, high = each->upper;
                const auto decided = [&] { return (low > mine || high < mine) && (low > its || high < its); };
                int64_t local;
                const Part& part = part_of(each->row, &local);
                if (!decided()) {
                    if (!ready(part, local, FINE, touch)) return false;
                    score_fine(query, part, local, each->held, each->similarities, &low, &high);
                }
                const double score = decided() ? low : exact_score(query, part, *each, local);
                if (score >= each->needed) found[i].push_back({each->row, score});
            }
            some.clear();
            return true;
        };
        for (int64_t row = 0; row < rows_; ++row) {
            const double least = std::min(query_thresholds[i], row_thresholds[row]);
            if (!(upper[row] >= least)) continue;
            Pending& each = rows[some.size()];
            each.row = row, each.needed = least, each.lower = -INFINITE, each.upper = INFINITE;
            some.push_back(&each);
            if (static_cast<int64_t>(some.size()) == TOGETHER && !decide_some()) return false;
        }
        return some.empty() || decide_some();
    });
}

bool Search::scores(const float* queries, const int64_t* starts, int64_t count, const int64_t* rows,
                    const TouchFunction& touch, Threads& threads, double* out) const {
    std::atomic<bool> well{true};
    threads.run((count + 15) / 16, [&](int64_t piece) {
        Pending row;
        for (int64_t i = piece * 16; i < std::min(count, (piece + 1) * 16) && well; ++i) {
            Query query;
            place(query, queries + starts[i] * plan_.dim, starts[i + 1] - starts[i]);
            int64_t local;
            const Part& part = part_of(rows[i], &local);
            if (!ready(part, local, FINE, touch)) {
                well = false;
                return;
            }
            row.held.resize(part.starts[local + 1] - part.starts[local]);
            std::iota(row.held.begin(), row.held.end(), 0);
            score_fine(query, part, local, row.held, row.similarities, &row.low, &row.high);
            out[i] = exact_score(query, part, row, local);
        }
    });
    return well;
}

}  // namespace chan
