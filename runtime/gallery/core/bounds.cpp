// Bounds of rows' scores, each narrower than the one before and from more bytes; see proof/bounds.py.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "state.h"

namespace chan {
namespace {

constexpr size_t AT_ONCE = 20;  // vectors of a row whose int8 codes are multiplied at a time

}  // namespace

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
        for (int64_t w = 0; w < query.count && work.levels; ++w) any |= work.second[v * places + w] == work.highest[w];
        if (any) work.take(v);
    }
}

// How far each word's similarities with a row's vectors can be from what the int8 codes give.
void Search::changes(const Query& query, Work& work) const {
    const Part& part = *work.part;
    const double scale = part.scale[work.row], error = part.error[work.row], norm = part.norm[work.row];
    const Lost& lost = work.top ? query.lost_high : query.lost;
    const bool measured = part.blocks != nullptr && query.blocks;
    const float* blocks = measured ? part.blocks + work.row * (2 * query.blocks + 1) : nullptr;  // of errors, then norms
    const double pooled = double(plan_.pools_query ? query.count : work.vectors());
    work.change.resize(query.count);
    for (int64_t w = 0; w < query.count; ++w) {
        double inner = query.norm[w] * error, outer = lost.norm[w] * norm;
        if (measured) {
            double along = query.rest[w] * error;
            for (int64_t j = 0; j < query.blocks; ++j) along += query.along[w * query.blocks + j] * blocks[j];
            inner = std::min(inner, along);
            if (!lost.along.empty()) {
                along = lost.norm[w] * blocks[2 * query.blocks];
                for (int64_t j = 0; j < query.blocks; ++j)
                    along += lost.along[w * query.blocks + j] * blocks[query.blocks + j];
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
    work.weight.resize(places), work.above.resize(places);
    work.below.assign(places, FLT_MAX);  // of places without a word
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

// The sums of a tile of words with what `pointers` lists, over the steps from `begin` to `end` of the int8 level. The
// first of them may shift its sums, which are 0 then.
void Search::multiply_steps(const Query& query, const Work& work, int64_t tile, int64_t begin, int64_t end,
                            int32_t* highest, int32_t* out) const {
    const Packed& packed = query.codes.packed;
    const auto steps = static_cast<int64_t>(packed.program.size());
    const int8_t* digits = packed.digits.data() + (tile * steps + begin) * GROUP * LANES;
    const auto vectors = static_cast<int64_t>(work.pointers.size()) - NEXT;
    plan_.kernels->row_sums(work.pointers.data(), vectors, work.part->stride, packed.program.data() + begin, end - begin,
                            digits, 1, highest, out);
}

// Multiply the int8 codes of the vectors in `listed` from `first` on, and fetch those of `next`, if there is one.
void Search::multiply(const Query& query, Work& work, size_t first, const Work* next) const {
    const Packed& packed = query.codes.packed;
    const int64_t tiles = (query.count + LANES - 1) / LANES, vectors = work.vectors();
    const int64_t end = work.top ? packed.high : static_cast<int64_t>(packed.program.size());
    work.pointers.clear();
    for (size_t i = first; i < work.listed.size(); ++i) work.pointers.push_back(work.codes_of(work.listed[i]));
    for (size_t i = 0; i < NEXT; ++i)
        work.pointers.push_back(next && i < next->listed.size() ? next->codes_of(next->listed[i]) : work.pointers.back());
    for (int64_t tile = 0; tile < tiles; ++tile)
        multiply_steps(query, work, tile, 0, end, &work.highest[tile * LANES],
                       &work.codes[(tile * vectors + static_cast<int64_t>(first)) * LANES]);
    evaluate(query, work);
}

// Of vectors whose high digits were multiplied, multiply the low ones as well.
void Search::add_low_digits(const Query& query, Work& work) const {
    const Packed& packed = query.codes.packed;
    const int64_t tiles = (query.count + LANES - 1) / LANES, vectors = work.vectors();
    const auto listed = static_cast<int64_t>(work.listed.size()), steps = static_cast<int64_t>(packed.program.size());
    work.top = false;
    work.pointers.clear();
    for (const int32_t vector : work.listed) work.pointers.push_back(work.codes_of(vector));
    for (int i = 0; i < NEXT; ++i) work.pointers.push_back(work.pointers.back());
    work.added.resize(vectors * LANES);
    for (int64_t tile = 0; tile < tiles; ++tile) {
        int32_t* highest = &work.highest[tile * LANES];
        multiply_steps(query, work, tile, packed.high, steps, highest, work.added.data());
        std::fill(highest, highest + LANES, INT32_MIN);
        for (int64_t i = 0; i < listed; ++i)
            for (int l = 0; l < LANES; ++l) {
                int32_t& sum = work.codes[(tile * vectors + i) * LANES + l];
                sum = sum * (1 << DIGIT) + work.added[i * LANES + l];
                highest[l] = std::max(highest[l], sum);
            }
    }
    evaluate(query, work);
}

// Each word's largest similarity by its highest sum.
void Search::evaluate(const Query& query, Work& work) const {
    const double scale = work.part->scale[work.row], digit = work.top ? 1 << DIGIT : 1;
    const std::vector<double>& offset = work.top ? query.offset_high : query.codes.offset;
    for (int64_t w = 0; w < query.count; ++w)
        work.values[w] = scale * (digit * query.codes.scale[w] * work.highest[w] + offset[w]);
}

// A row's score lies between *lower and *upper. Where the second level bounds each similarity, only as many of the row's
// vectors are multiplied as could raise an upper bound, those that matter most first; and of the query the high digits,
// as most rows need no more. *lower is not computed where *upper is below the threshold.
void Search::bound_codes(const Query& query, double threshold, Work& work, const Work* next, double* lower,
                         double* upper) const {
    const int64_t vectors = work.vectors(), words = query.count, tiles = (words + LANES - 1) / LANES;
    *lower = -INFINITE;
    work.top = threshold > -INFINITE && !query.offset_high.empty();
    changes(query, work);
    if (plan_.pools_query) {
        work.codes.resize(vectors * tiles * LANES);
        work.highest.assign(tiles * LANES, INT32_MIN);
        work.values.resize(words), work.high.resize(words);
        multiply(query, work, 0, next);
        work.weight.clear();
        while (true) {
            for (int64_t w = 0; w < words; ++w) work.high[w] = work.values[w] + work.change[w];
            const size_t first = work.listed.size();
            const bool more = static_cast<int64_t>(first) < vectors && others(query, work);
            *upper = pool_above(work.high);
            if (*upper < threshold) return;
            if (more) {
                const size_t some = std::min(AT_ONCE, work.others.size());
                if (some < work.others.size())
                    std::nth_element(work.others.begin(), work.others.begin() + some, work.others.end(), std::greater<>());
                for (size_t i = 0; i < some; ++i) work.take(work.others[i].second);
                multiply(query, work, first, nullptr);
            } else if (work.top) {
                add_low_digits(query, work);
                changes(query, work);
            } else {
                break;
            }
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
        int64_t w = 0;
        while (w < words && upper(w) < work.values[w] - work.change[w]) ++w;
        if (w < words) held.push_back(vector);
    };
    for (size_t i = 0; i < work.listed.size(); ++i) {
        consider(work.listed[i], [&](int64_t w) {
            const int32_t sum = work.codes[(w / LANES * vectors + static_cast<int64_t>(i)) * LANES + w % LANES];
            return scale * (query.codes.scale[w] * sum + query.codes.offset[w]) + work.change[w];
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

// Bring bounds of rows by their codes as close as their `needed` asks for; false where `touch` failed.
bool Search::narrow(Pending* const* rows, int64_t count, const TouchFunction& touch) const {
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
            ++row.query->second_read;
            const Work& after = works[std::min(i + 1, count - 1)];
            const Part& its = after.part->first ? *after.part : part;
            const int64_t next = after.part->first ? after.row : work.row;
            row.upper = std::min(row.upper, bound_second(*row.query, work, its.second + its.starts[next] * plan_.second.width));
            if (row.upper < row.needed) continue;
        }
        if (!ready(part, work.row, CODES, touch)) return false;
        ++row.query->codes_read;
        choose(*row.query, work);
        left.emplace_back(&row, &work);
    }
    for (size_t i = 0; i < left.size(); ++i) {
        auto& [row, work] = left[i];
        double upper;
        bound_codes(*row->query, row->needed, *work, i + 1 < left.size() ? left[i + 1].second : nullptr, &row->lower, &upper);
        row->upper = std::min(row->upper, upper);
        if (row->upper >= row->needed) hold(*row->query, *work, row->held);
    }
    return true;
}

}  // namespace chan
