// Which pairs of a query and a row reach a threshold: bounds decide most of them, and few need their score.

#include <algorithm>
#include <functional>
#include <mutex>
#include <numeric>

#include "state.h"

namespace chan {
namespace {

constexpr size_t SOME = 8;            // vectors of a row whose fine copy is multiplied at a time
constexpr int64_t TRIED = 256;        // pairs that show whether the second level decides enough of them
constexpr double LEAST = 0.2;         // share that is enough

}  // namespace

// Choose the vectors whose fine copy is multiplied first: those that the second level says are best for a word.
void Search::choose_vectors(const Query& query, Work& work) const {
    const int64_t vectors = work.vectors(), places = (query.count + LANES - 1) / LANES * LANES;
    work.listed.clear();
    work.chosen.assign(vectors, 0);
    for (int64_t v = 0; v < vectors; ++v) {
        bool any = !work.levels;
        for (int64_t w = 0; w < query.count && work.levels; ++w) any |= work.second[v * places + w] == work.highest[w];
        if (any) work.take(v);
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

// Bring a pair's bounds so close that they lie on one side of each limit, or as close as float32 can. Of the row's fine
// copy only as many vectors are multiplied as that takes: those first that the second level says are best for a word,
// then those that matter most; without the second level all at once. Fetches the second level of `next`.
bool Search::narrow_fine(Pending& pair, double mine, double its, bool second, const Pending& next,
                         const TouchFunction& touch) const {
    thread_local Work work;
    const Query& query = *pair.query;
    work.part = &part_of(pair.row, &work.row);
    const Part& part = *work.part;
    work.levels = false;
    if (part.first && second) {
        if (!ready(part, work.row, SECOND, touch)) return false;
        int64_t local;
        const Part& after = part_of(next.row, &local);
        const uint8_t* fetched = after.first ? after.second + after.starts[local] * plan_.second.width : part.second;
        pair.upper = std::min(pair.upper, bound_second(query, work, fetched));
        if (pair.upper < pair.needed) return true;
    }
    if (!ready(part, work.row, FINE, touch)) return false;
    choose_vectors(query, work);
    const int64_t vectors = work.vectors(), words = query.count;
    const double size = query.largest * (double(part.norm[work.row]) + part.error[work.row]);
    const double change = float_error(query, part, work.row) +
                          rounding(size, plan_.dim, double(words), plan_.temperature);
    work.values.assign(words, -INFINITE);
    work.weight.clear();
    work.high.resize(words), work.low.resize(words);
    for (size_t done = 0;;) {
        const size_t fresh = work.listed.size() - done;
        std::sort(work.listed.begin() + done, work.listed.end());
        work.similarities.resize(fresh * words);
        multiply_fine(query, part, work.row, &work.listed[done], static_cast<int64_t>(fresh), work.similarities.data());
        for (size_t i = 0; i < fresh; ++i)
            for (int64_t w = 0; w < words; ++w)
                work.values[w] = std::max(work.values[w], double(work.similarities[i * words + w]));
        done = work.listed.size();
        for (int64_t w = 0; w < words; ++w) {
            work.low[w] = work.values[w] - change;
            work.high[w] = work.values[w] + change;
        }
        const bool more = static_cast<int64_t>(done) < vectors && others(query, work);
        pair.low = pool(work.low.data(), words, plan_.pooling, plan_.temperature);
        pair.high = pool(work.high.data(), words, plan_.pooling, plan_.temperature);
        if (!(pair.low <= pair.high)) pair.low = -INFINITE, pair.high = INFINITE;  // past float64's range
        if (!more || pair.decided(mine, its)) return true;
        const size_t some = std::min(SOME, work.others.size());
        if (some < work.others.size())
            std::nth_element(work.others.begin(), work.others.begin() + some, work.others.end(), std::greater<>());
        for (size_t i = 0; i < some; ++i) work.take(work.others[i].second);
    }
}

bool Search::above(const float* queries, const int64_t* starts, int64_t count, const double* query_thresholds,
                   const double* row_thresholds, const TouchFunction& touch, Threads& threads,
                   std::vector<std::vector<Scored>>& found) const {
    found.assign(count, {});
    if (!rows_ || !count) return true;
    // of a maximum over a row's vectors that pooling does not lower
    const bool by_vectors = plan_.pools_query && plan_.pooling != Pooling::softmax && plan_.second.coordinates;
    return in_turns(queries, starts, count, nullptr, threads, [&](int64_t first, std::vector<Query>& asked, float* upper) {
        const auto needed = [&](int64_t i, int64_t row) {
            return std::min(query_thresholds[first + i], row_thresholds[row]);
        };
        std::mutex mutex;
        std::atomic<int64_t> tried{0}, open{0};  // pairs of which the second level was read, and those it left open
        const auto decide_pair = [&](Pending& pair) {
            const int64_t query = first + (pair.query - asked.data());
            const double mine = query_thresholds[query], its = row_thresholds[pair.row];
            if (!pair.decided(mine, its)) {
                if (by_vectors) {  // float32 cannot tell, or only with all vectors at once
                    int64_t local;
                    const Part& part = part_of(pair.row, &local);
                    pair.held.resize(part.starts[local + 1] - part.starts[local]);
                    std::iota(pair.held.begin(), pair.held.end(), 0);
                }
                if (!score(pair, touch)) return false;
            }
            const double value = pair.decided(mine, its) ? pair.low : exact_score(pair);
            if (value < pair.needed) return true;
            std::lock_guard<std::mutex> lock(mutex);
            found[query].push_back({pair.row, value});
            return true;
        };
        const auto by_codes = [&](Pending& pair) {
            pair.low = pair.lower, pair.high = pair.upper;
            return decide_pair(pair);
        };
        const auto decide_pairs = [&](const std::vector<Pending*>& pairs) {
            if (!by_vectors) return narrow_all(pairs, touch, threads, by_codes);
            const auto pair_count = static_cast<int64_t>(pairs.size());
            std::atomic<bool> well{true};
            threads.run((pair_count + TOGETHER - 1) / TOGETHER, [&](int64_t piece) {
                const int64_t last = std::min(pair_count, (piece + 1) * TOGETHER);
                for (int64_t i = piece * TOGETHER; i < last && well; ++i) {
                    Pending& pair = *pairs[i];
                    const double mine = query_thresholds[first + (pair.query - asked.data())];
                    const bool second = tried < TRIED || double(open) < (1 - LEAST) * double(tried);
                    const Pending& next = *pairs[std::min(i + 1, last - 1)];
                    if (!narrow_fine(pair, mine, row_thresholds[pair.row], second, next, touch)) well = false;
                    const bool is_open = pair.upper >= pair.needed;
                    tried += second, open += second && is_open;
                    if (well && is_open && !decide_pair(pair)) well = false;
                }
            });
            return well.load();
        };
        if (!for_pairs(asked, upper, needed, decide_pairs)) return false;
        threads.run(static_cast<int64_t>(asked.size()), [&](int64_t i) {
            std::sort(found[first + i].begin(), found[first + i].end(),
                      [](const Scored& a, const Scored& b) { return a.row < b.row; });
        });
        return true;
    });
}

}  // namespace chan
