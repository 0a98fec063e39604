// Bounds of rows' scores, each narrower than the one before and from more bytes; see proof/bounds.py.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "state.h"

namespace chan {

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
                    values[w * LANES + lane] = no_less(value);
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
        pool_lanes(values.data(), pooled, counts, scores);
        for (int64_t lane = 0; lane < rows; ++lane) {
            const int64_t row = order[lane];
            float& out = upper[part.base + row];
            out = part.loose[row] & 1 ? std::numeric_limits<float>::infinity() : scores[lane];
            if (allowed && !allowed[part.base + row]) out = -FLT_MAX;
        }
    }
}

// Upper bounds of LANES rows' scores, from those of what is pooled, see pool_lanes.h: infinite past float32's range.
void Search::pool_lanes(const float* values, int64_t count, const int32_t* counts, float* scores) const {
    plan_.kernels->pool_lanes(values, count, counts, plan_.pooling, static_cast<float>(plan_.temperature), scores);
    for (int lane = 0; lane < LANES; ++lane)
        if (!(scores[lane] >= -FLT_MAX)) scores[lane] = std::numeric_limits<float>::infinity();
}

// Upper bounds of rows' scores, `upper`, from those of what is pooled, `high`.
void Search::pool_above(Work* const* works, int64_t count) const {
    thread_local std::vector<float> values;
    for (int64_t first = 0; first < count; first += LANES) {
        const int64_t here = std::min<int64_t>(LANES, count - first);
        int32_t counts[LANES] = {};
        float scores[LANES];
        int64_t most = 0;
        for (int64_t lane = 0; lane < here; ++lane) {
            counts[lane] = static_cast<int32_t>(works[first + lane]->high.size());
            most = std::max<int64_t>(most, counts[lane]);
        }
        values.resize(most * LANES);
        for (int64_t lane = 0; lane < here; ++lane)
            for (int64_t i = 0; i < counts[lane]; ++i) values[i * LANES + lane] = no_less(works[first + lane]->high[i]);
        pool_lanes(values.data(), most, counts, scores);
        for (int64_t lane = 0; lane < here; ++lane) works[first + lane]->upper = scores[lane];
    }
}

// Bounds of what is pooled, by the second level: `high`. False where a row has none. Fetches what begins at `next`.
bool Search::bound_second(const Query& query, Work& work, const uint8_t* next) const {
    const Part& part = *work.part;
    const int64_t vectors = work.vectors(), tiles = (query.count + LANES - 1) / LANES;
    work.levels = false;
    if (part.loose[work.row] & 2) return false;
    const Coded& coded = query.second;
    const int64_t width = plan_.second.width, steps = static_cast<int64_t>(coded.packed.program.size());
    const uint8_t* codes = part.second + part.starts[work.row] * width;
    if (!plan_.pools_query) {
        work.best.resize(vectors);
        plan_.kernels->row_over_query(codes, vectors, width, coded.packed.program.data(), steps,
                                      coded.packed.digits.data(), tiles, coded.scale32.data(), coded.offset32.data(),
                                      work.best.data());
        work.high.assign(work.best.begin(), work.best.end());
        return true;
    }
    const int64_t places = tiles * LANES;
    work.levels = true;
    work.second.resize(vectors * places);
    work.highest.assign(places, INT32_MIN);
    work.high.resize(query.count);
    work.pointers.clear();
    for (int64_t v = 0; v < vectors; ++v) work.pointers.push_back(codes + v * width);
    for (int64_t v = 0; v < NEXT; ++v) work.pointers.push_back(next + v * width);
    plan_.kernels->row_sums(work.pointers.data(), vectors, width, coded.packed.program.data(), steps,
                            coded.packed.digits.data(), tiles, work.highest.data(), work.second.data());
    for (int64_t w = 0; w < query.count; ++w) work.high[w] = coded.scale[w] * work.highest[w] + coded.offset[w];
    return true;
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

// What is pooled, of a row of which the second level does not bound each similarity: from all of its int8 codes.
void Search::multiply_all(const Query& query, Work& work) const {
    const int64_t vectors = work.vectors(), tiles = (query.count + LANES - 1) / LANES;
    const Coded& coded = query.codes;
    if (!plan_.pools_query) {
        const double scale = work.part->scale[work.row];
        work.best.resize(vectors);
        plan_.kernels->row_over_query(work.codes_of(0), vectors, work.part->stride, coded.packed.program.data(),
                                      static_cast<int64_t>(coded.packed.program.size()), coded.packed.digits.data(),
                                      tiles, coded.scale32.data(), coded.offset32.data(), work.best.data());
        work.values.resize(vectors);
        for (int64_t i = 0; i < vectors; ++i) work.values[i] = scale * work.best[i];
        work.change.assign(vectors, *std::max_element(work.change.begin(), work.change.end()));
        return;
    }
    work.pointers.clear();
    for (int64_t v = 0; v < vectors; ++v) work.pointers.push_back(work.codes_of(v));
    work.pointers.resize(vectors + NEXT, work.pointers.back());
    work.sums.resize(vectors * tiles * LANES);
    work.highest.assign(tiles * LANES, INT32_MIN);
    plan_.kernels->row_sums(work.pointers.data(), vectors, work.part->stride, coded.packed.program.data(),
                            static_cast<int64_t>(coded.packed.program.size()), coded.packed.digits.data(), tiles,
                            work.highest.data(), work.sums.data());
    work.values.resize(query.count);
    for (int64_t w = 0; w < query.count; ++w) work.values[w] = similarity(query, work, w, work.highest[w]);
}

// A row's score lies between *lower and *upper. Where the second level bounds its similarities, its pairs were multiplied
// before; *lower is then not computed where *upper is below the threshold.
void Search::bound_codes(const Query& query, double threshold, Work& work, double* lower, double* upper) const {
    *lower = -INFINITE;
    if (work.levels) {
        *upper = work.upper;
        if (*upper < threshold) return;
    } else {
        work.top = false;
        changes(query, work);
        multiply_all(query, work);
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

namespace {

// A number that is no more than any sum for which `scale * sum + offset` is no less than `least`: the quotient is off by
// far less than 1 where it is within the range of sums.
int32_t least_sum(double scale, double offset, double least) {
    const double sum = std::floor((least - offset) / scale) - 1;
    return static_cast<int32_t>(std::isnan(sum) ? INT32_MIN + 1 : std::clamp<double>(sum, INT32_MIN + 1, INT32_MAX));
}

}  // namespace

// The pairs that can hold a maximum, vectors in rising order, after `bound_codes`; none where that is not known.
void Search::hold(const Query& query, Work& work, std::vector<Pair>& pairs) const {
    const int64_t vectors = work.vectors(), words = query.count, places = (words + LANES - 1) / LANES * LANES;
    pairs.clear();
    if (!plan_.pools_query) return;
    const auto can = [&](int64_t w, int32_t sum) {
        return !(similarity(query, work, w, sum) + work.change[w] < work.values[w] - work.change[w]);
    };
    if (!work.levels) {
        for (int64_t v = 0; v < vectors; ++v)
            for (int64_t w = 0; w < words; ++w)
                if (can(w, work.sums[v * places + w])) pairs.push_back({int32_t(v), int32_t(w)});
        return;
    }
    for (size_t i = 0; i < work.pairs.size(); ++i) {  // their places in `second` were INT32_MIN
        const auto [v, w] = work.pairs[i];
        if (can(w, work.products[i])) work.second[v * places + w] = INT32_MAX;
    }
    thread_local std::vector<int32_t> least;
    least.resize(words);
    for (int64_t w = 0; w < words; ++w)
        least[w] = least_sum(query.second.scale[w], query.second.offset[w], work.values[w] - work.change[w]);
    for (int64_t v = 0; v < vectors; ++v)
        for (int64_t w = 0; w < words; ++w)
            if (work.second[v * places + w] >= least[w]) pairs.push_back({int32_t(v), int32_t(w)});
}

// Bring bounds of rows by their codes as close as their `needed` asks for; false where `touch` failed.
bool Search::narrow(Pending* const* rows, int64_t count, const TouchFunction& touch) const {
    thread_local std::vector<Work> works;
    thread_local std::vector<Work*> bounded, left, open;  // by the second level; after it; and with pairs that wait
    if (static_cast<int64_t>(works.size()) < count) works.resize(count);
    bounded.clear(), left.clear(), open.clear();
    for (int64_t i = 0; i < count; ++i) {
        works[i].pending = rows[i];
        works[i].part = &part_of(rows[i]->row, &works[i].row);
        works[i].levels = false;
    }
    for (int64_t i = 0; i < count; ++i) {
        Work& work = works[i];
        const Part& part = *work.part;
        if (!part.first || !plan_.second.coordinates) continue;
        if (!ready(part, work.row, SECOND, touch)) return false;
        ++rows[i]->query->second_read;
        const Work& after = works[std::min(i + 1, count - 1)];
        const Part& its = after.part->first ? *after.part : part;
        const int64_t next = after.part->first ? after.row : work.row;
        if (bound_second(*rows[i]->query, work, its.second + its.starts[next] * plan_.second.width)) bounded.push_back(&work);
    }
    pool_above(bounded.data(), static_cast<int64_t>(bounded.size()));
    for (const Work* work : bounded) work->pending->upper = std::min(work->pending->upper, work->upper);
    for (int64_t i = 0; i < count; ++i) {
        Work& work = works[i];
        const Pending& row = *rows[i];
        if (row.upper < row.needed) continue;
        if (!ready(*work.part, work.row, CODES, touch)) return false;
        ++row.query->codes_read;
        left.push_back(&work);
        if (!work.levels) continue;
        begin_pairs(*row.query, row.needed, work);
        open.push_back(&work);
    }
    while (!open.empty()) {  // by turns, so that one row's codes are fetched while another's are multiplied
        for (Work* work : open) {
            multiply(*work->pending->query, *work);
            open_pairs(*work->pending->query, *work, true);
        }
        pool_above(open.data(), static_cast<int64_t>(open.size()));
        const auto done = [&](Work* work) { return !goes_on(*work->pending->query, work->pending->needed, *work); };
        open.erase(std::remove_if(open.begin(), open.end(), done), open.end());
    }
    for (Work* work : left) {
        Pending& row = *work->pending;
        double upper;
        bound_codes(*row.query, row.needed, *work, &row.lower, &upper);
        row.upper = std::min(row.upper, upper);
        if (row.upper >= row.needed) hold(*row.query, *work, row.pairs);
    }
    return true;
}

}  // namespace chan
