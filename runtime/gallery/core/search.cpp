#include "search.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <limits>

#include "state.h"

namespace chan {
namespace {

constexpr int64_t BEYOND = 22;      // rows beyond k that are looked at for a first threshold
constexpr int64_t CHUNK = 8;        // blocks that a thread scans at a time
constexpr int64_t ROWS = 64;        // rows that a thread scans at a time where there are no blocks
constexpr int64_t NEAR = 4;          // rows whose fine copies stay in a cache
constexpr int64_t PAIRS = 1 << 15;   // of a query and a row that are looked at before others are
constexpr int64_t TURN = 64;        // queries that are scanned together
constexpr int64_t TURN_BYTES = 64 << 20;  // of their upper bounds

}  // namespace

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

bool Search::score(Pending& row, const TouchFunction& touch) const {
    int64_t local;
    const Part& part = part_of(row.row, &local);
    if (!ready(part, local, FINE, touch)) return false;
    score_fine(*row.query, part, local, row.pairs, row.similarities, &row.low, &row.high);
    return true;
}

// Narrow the bounds of pairs of a query and a row, in the order in which they come: where pairs with one row follow each
// other, its codes are read from memory once. `each` is called, on any thread, for those whose upper bound still reaches
// what they need. False where it or `touch` failed.
bool Search::narrow_all(const std::vector<Pending*>& pairs, const TouchFunction& touch, Threads& threads,
                        const std::function<bool(Pending&)>& each) const {
    const auto count = static_cast<int64_t>(pairs.size());
    std::atomic<bool> well{true};
    threads.run((count + TOGETHER - 1) / TOGETHER, [&](int64_t piece) {
        Pending* const* some = &pairs[piece * TOGETHER];
        const int64_t here = std::min(TOGETHER, count - piece * TOGETHER);
        if (well && !narrow(some, here, touch)) well = false;
        for (int64_t i = 0; i < here && well; ++i)
            if (some[i]->upper >= some[i]->needed && !each(*some[i])) well = false;
    });
    return well;
}

// Collect the pairs whose upper bound `upper` [queries][rows] reaches what `needed` asks for, rows in rising order and of
// each all its queries, and call `each` with some of them at a time. They are gone after it. False where `each` is.
bool Search::for_pairs(std::vector<Query>& queries, const float* upper,
                       const std::function<double(int64_t, int64_t)>& needed,
                       const std::function<bool(const std::vector<Pending*>&)>& each) const {
    const auto count = static_cast<int64_t>(queries.size());
    std::vector<Pending> pairs;
    std::vector<Pending*> pointers;
    const int64_t step = std::max<int64_t>(1, PAIRS / count);
    for (int64_t first = 0; first < rows_; first += step) {
        pairs.clear(), pointers.clear();
        for (int64_t row = first; row < std::min(rows_, first + step); ++row)
            for (int64_t i = 0; i < count; ++i) {
                const float bound = upper[i * rows_ + row];
                const double least = needed(i, row);
                if (bound >= least) pairs.emplace_back(queries[i], row, bound, least);
            }
        for (Pending& pair : pairs) pointers.push_back(&pair);
        if (!each(pointers)) return false;
    }
    return true;
}

// The rows that look best become pending ones, NaN their upper bounds, and the first threshold is theirs. False where
// `touch` failed.
bool Search::begin(Contest& contest, float* upper, int64_t k, const uint8_t* allowed, const TouchFunction& touch,
                   Threads& threads) const {
    for (const int64_t row : largest_rows(upper, rows_, k + BEYOND, allowed)) {
        if (!(upper[row] >= contest.threshold)) continue;
        contest.pending.emplace_back(*contest.query, row, upper[row], contest.threshold);
        upper[row] = std::numeric_limits<float>::quiet_NaN();
    }
    return raise_threshold(contest, k, touch, threads);
}

// Pending rows give a first threshold: the fine copy of k of them, and the others' codes. False where `touch` failed.
bool Search::raise_threshold(Contest& contest, int64_t k, const TouchFunction& touch, Threads& threads) const {
    std::vector<Pending>& best = contest.pending;
    std::vector<Pending*> some;
    for (Pending& each : best) some.push_back(&each);
    if (!narrow_all(some, touch, threads, [](Pending&) { return true; })) return false;
    some.erase(std::remove_if(some.begin(), some.end(), [](const Pending* each) { return !(each->upper >= each->needed); }),
               some.end());
    if (static_cast<int64_t>(some.size()) > k) {
        std::nth_element(some.begin(), some.begin() + k, some.end(),
                         [](const Pending* a, const Pending* b) { return a->lower > b->lower; });
        some.resize(k);
    }
    if (!score_some(contest, some, touch, threads)) return false;
    contest.threshold = std::max(contest.threshold, kth_lower_bound(best, k));
    return true;
}

bool Search::score_some(Contest& contest, const std::vector<Pending*>& some, const TouchFunction& touch,
                        Threads& threads) const {
    contest.fine += static_cast<int64_t>(some.size());
    std::atomic<bool> well{true};
    threads.run(static_cast<int64_t>(some.size()), [&](int64_t i) {
        if (well && !score(*some[i], touch)) well = false;
    });
    return well;
}

// By falling upper bound from the fine copy, until what is left cannot be among the best. False where `touch` failed.
bool Search::finish(Contest& contest, int64_t k, const TouchFunction& touch, Threads& threads, Answer& answer) const {
    std::vector<Pending>& pending = contest.pending;
    double threshold = contest.threshold;
    pending.erase(std::remove_if(pending.begin(), pending.end(),
                                 [&](const Pending& each) { return !(each.upper >= threshold); }),
                  pending.end());
    std::sort(pending.begin(), pending.end(), [](const Pending& a, const Pending& b) {
        return a.upper != b.upper ? a.upper > b.upper : a.row < b.row;
    });
    threshold = std::max(threshold, kth_lower_bound(pending, k));
    std::vector<Pending*> some;
    for (size_t next = 0; next < pending.size() && pending[next].upper >= threshold;) {
        some.clear();
        for (; next < pending.size() && pending[next].upper >= threshold && some.size() < 8; ++next)
            if (pending[next].similarities.empty()) some.push_back(&pending[next]);
        if (!score_some(contest, some, touch, threads)) return false;
        threshold = std::max(threshold, kth_lower_bound(pending, k));
    }
    some.clear();
    for (Pending& each : pending) {
        if (each.similarities.empty()) continue;
        if (!(each.low <= each.upper && each.lower <= each.high)) answer.contradiction = each.row;
        if (each.high >= threshold) some.push_back(&each);
    }
    const auto left = static_cast<int64_t>(some.size());
    std::vector<std::vector<double>> maxima(left);
    std::vector<std::vector<int32_t>> winners(left);
    threads.run(left, [&](int64_t i) {
        int64_t local;
        const Part& part = part_of(some[i]->row, &local);
        decide(*some[i]->query, part, local, some[i]->pairs, some[i]->similarities.data(), maxima[i], winners[i]);
    });
    for (int64_t i = 0; i < left; ++i) {
        const auto begin = static_cast<int64_t>(answer.maxima.size());
        answer.rows.push_back({some[i]->row, begin, static_cast<int64_t>(maxima[i].size())});
        answer.maxima.insert(answer.maxima.end(), maxima[i].begin(), maxima[i].end());
        answer.winners.insert(answer.winners.end(), winners[i].begin(), winners[i].end());
    }
    answer.second = contest.query->second_read, answer.codes = contest.query->codes_read, answer.fine = contest.fine;
    return true;
}

bool Search::in_turns(const float* queries, const int64_t* starts, int64_t count, const uint8_t* allowed,
                      Threads& threads,
                      const std::function<bool(int64_t, std::vector<Query>&, float*)>& each) const {
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
    bool well = true;
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
                    double low, high;
                    bound_codes(asked[i], -INFINITE, work, &low, &high);
                    out = no_less(high);
                }
        });
        well = each(begin, asked, upper->data());
    }
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) spare_.push_back(std::move(upper));
    return well;
}

bool Search::best(const float* queries, const int64_t* starts, int64_t count, int64_t k, const uint8_t* allowed,
                  const double* floors, const TouchFunction& touch, Threads& threads,
                  std::vector<Answer>& answers) const {
    answers.assign(count, {});
    if (!rows_ || !count) return true;
    return in_turns(queries, starts, count, allowed, threads, [&](int64_t first, std::vector<Query>& asked, float* upper) {
        const auto here = static_cast<int64_t>(asked.size());
        std::vector<Contest> contests(here);
        std::atomic<bool> well{true};
        for (int64_t i = 0; i < here; ++i) contests[i].query = &asked[i], contests[i].threshold = floors[first + i];
        const auto for_each = [&](const std::function<bool(int64_t)>& work) {
            const auto one = [&](int64_t i) {
                if (well && !work(i)) well = false;
            };
            if (here >= threads.count())
                threads.run(here, one);
            else
                for (int64_t i = 0; i < here; ++i) one(i);
            return well.load();
        };
        if (!for_each([&](int64_t i) { return begin(contests[i], upper + i * rows_, k, allowed, touch, threads); }))
            return false;
        std::mutex mutex;
        const auto needed = [&](int64_t i, int64_t row) {
            return allowed && !allowed[row] ? INFINITE : contests[i].threshold;
        };
        const auto keep = [&](Pending& pair) {
            std::lock_guard<std::mutex> lock(mutex);
            contests[pair.query - asked.data()].pending.push_back(std::move(pair));
            return true;
        };
        const auto narrow_them = [&](const std::vector<Pending*>& pairs) {
            return narrow_all(pairs, touch, threads, keep);
        };
        return for_pairs(asked, upper, needed, narrow_them) &&
               for_each([&](int64_t i) { return finish(contests[i], k, touch, threads, answers[first + i]); });
    });
}

bool Search::best_listed(const float* queries, const int64_t* starts, int64_t count, int64_t k, const int64_t* listed,
                         const int64_t* edges, const double* floors, const TouchFunction& touch, Threads& threads,
                         std::vector<Answer>& answers) const {
    answers.assign(count, {});
    const bool many = count >= threads.count();
    std::atomic<bool> well{true};
    const auto one = [&](int64_t i) {
        if (!well) return;
        Query query;
        prepare(query, queries + starts[i] * plan_.dim, starts[i + 1] - starts[i], many ? nullptr : &threads);
        Contest contest;
        contest.query = &query, contest.threshold = floors[i];
        for (int64_t place = edges[i]; place < edges[i + 1]; ++place)
            contest.pending.emplace_back(query, listed[place], INFINITE, contest.threshold);
        if (!raise_threshold(contest, k, touch, threads) || !finish(contest, k, touch, threads, answers[i])) well = false;
    };
    if (many)
        threads.run(count, one);
    else
        for (int64_t i = 0; i < count; ++i) one(i);
    return well;
}

bool Search::scores(const float* queries, const int64_t* starts, int64_t count, const int64_t* rows,
                    const TouchFunction& touch, Threads& threads, double* out) const {
    std::atomic<bool> well{true};
    threads.run((count + 15) / 16, [&](int64_t piece) {
        for (int64_t i = piece * 16; i < std::min(count, (piece + 1) * 16) && well; ++i) {
            Query query;
            place(query, queries + starts[i] * plan_.dim, starts[i + 1] - starts[i]);
            Pending row(query, rows[i], INFINITE, -INFINITE);
            if (score(row, touch))
                out[i] = exact_score(row);
            else
                well = false;
        }
    });
    return well;
}

bool Search::all_scores(const float* queries, const int64_t* starts, int64_t count, const TouchFunction& touch,
                        Threads& threads, float* out) const {
    std::vector<Query> asked(count);
    threads.run(count, [&](int64_t i) { place(asked[i], queries + starts[i] * plan_.dim, starts[i + 1] - starts[i]); });
    const int64_t across = (count + TURN - 1) / TURN, down = (rows_ + NEAR - 1) / NEAR;
    std::atomic<bool> well{true};
    threads.run(down * across, [&](int64_t piece) {
        const int64_t first = piece / across * NEAR, last = std::min(rows_, first + NEAR);
        const int64_t begin = piece % across * TURN, end = std::min(count, begin + TURN);
        std::vector<float> similarities;
        std::vector<double> values;
        for (int64_t i = begin; i < end && well; ++i)
            for (int64_t row = first; row < last && well; ++row) {
                int64_t local;
                const Part& part = part_of(row, &local);
                if (i == begin && !ready(part, local, FINE, touch)) well = false;
                if (well) out[row * count + i] = float(pool_fine(asked[i], part, local, {}, similarities, values));
            }
    });
    return well;
}

}  // namespace chan
