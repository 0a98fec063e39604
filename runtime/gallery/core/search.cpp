#include "search.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

#include "state.h"

namespace chan {
namespace {

constexpr int64_t BEYOND = 22;      // rows beyond k that are looked at for a first threshold
constexpr int64_t CHUNK = 8;        // blocks that a thread scans at a time
constexpr int64_t ROWS = 64;        // rows that a thread scans at a time where there are no blocks
constexpr int64_t TOGETHER = 8;     // rows that a thread brings closer bounds of at a time
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

void Search::finish(const Query& query, const float* upper, int64_t k, const uint8_t* allowed, double floor,
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
        if (!(upper[row] >= floor)) continue;
        best.emplace_back().row = row;
        best.back().needed = floor;
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
        some.erase(std::remove_if(some.begin(), some.end(), [&](const Pending* each) { return !(each->upper >= floor); }),
                   some.end());
        if (static_cast<int64_t>(some.size()) > k) {
            std::nth_element(some.begin(), some.begin() + k, some.end(),
                             [](const Pending* a, const Pending* b) { return a->lower > b->lower; });
            some.resize(k);
        }
        return score_some();
    };
    if (narrow_some() && first_scores()) {
        double threshold = std::max(floor, kth_lower_bound(best, k));

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
            if (each.held.empty() && each.upper >= threshold) some.push_back(&each);
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
                                 const uint8_t* allowed, const double* floors, const TouchFunction& touch,
                                 Threads& threads) const {
    std::vector<Answer> answers(count);
    if (rows_ && count)
        in_turns(queries, starts, count, allowed, threads, [&](int64_t i, const Query& query, const float* upper) {
            finish(query, upper, k, allowed, floors[i], touch, threads, answers[i]);
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
