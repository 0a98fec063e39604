// Which pairs of a query and a row reach a threshold: bounds decide most of them, and few need their score.

#include <algorithm>
#include <functional>
#include <mutex>

#include "state.h"

namespace chan {
namespace {

constexpr int64_t TRIED = 256;        // pairs that show whether the second level decides enough of them
constexpr double LEAST = 0.2;         // share that is enough

}  // namespace

// Bring a pair's bounds so close that they lie on one side of each limit, or as close as float32 can. As at the int8 level,
// single vectors of the row and the query are multiplied, of their fine copies: each word with the vector that the second
// level says is best, as long as that could raise the word's largest similarity. Where the second level does not bound
// similarities, nothing is done. Fetches the second level of `next`.
bool Search::narrow_fine(Pending& pair, double mine, double its, bool second, const Pending& next,
                         const TouchFunction& touch) const {
    thread_local Work work;
    const Query& query = *pair.query;
    work.part = &part_of(pair.row, &work.row);
    const Part& part = *work.part;
    if (!part.first || !second) return true;
    if (!ready(part, work.row, SECOND, touch)) return false;
    int64_t local;
    const Part& after = part_of(next.row, &local);
    const uint8_t* fetched = after.first ? after.second + after.starts[local] * plan_.second.width : part.second;
    if (!bound_second(query, work, fetched)) return true;
    Work* const one = &work;
    pool_above(&one, 1);
    pair.upper = std::min(pair.upper, work.upper);
    if (pair.upper < pair.needed || !work.levels) return true;
    if (!ready(part, work.row, FINE, touch)) return false;
    const int64_t words = query.count;
    const double size = query.largest * (double(part.norm[work.row]) + part.error[work.row]);
    const double change = float_error(query, part, work.row) +
                          rounding(size, plan_.dim, double(words), plan_.temperature);
    work.change.assign(words, change);
    work.values.assign(words, -INFINITE);
    work.high.resize(words), work.low.resize(words);
    work.pairs.clear();
    work.multiplied = 0;
    for (open_pairs(query, work, false); work.multiplied < work.pairs.size();) {
        multiply_fine_pairs(query, work);
        open_pairs(query, work, false);
        for (int64_t w = 0; w < words; ++w) work.low[w] = work.values[w] - change;
        pair.low = pool(work.low.data(), words, plan_.pooling, plan_.temperature);
        pair.high = pool(work.high.data(), words, plan_.pooling, plan_.temperature);
        if (!(pair.low <= pair.high)) pair.low = -INFINITE, pair.high = INFINITE;  // past float64's range
        if (pair.decided(mine, its)) break;
    }
    return true;
}

bool Search::above(const float* queries, const int64_t* starts, int64_t count, const double* query_thresholds,
                   const double* row_thresholds, const TouchFunction& touch, Threads& threads,
                   std::vector<std::vector<Scored>>& found) const {
    found.assign(count, {});
    if (!rows_ || !count) return true;
    // whether the second level bounds each word's largest similarity, and pooling grows with each of these
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
            if (!pair.decided(mine, its) && !score(pair, touch)) return false;
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
