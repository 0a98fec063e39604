// Takes the core's bounds step by step on made-up rows and queries, and compares each with similarities in long double
// and with the float64 ones that a score is made of. Prints a line for each claim: name, how often it was checked, how
// often it failed, and the least slack as a share of the norms' product. test_core_bounds.py reads the lines.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "core_made_rows.h"

namespace chan {

struct Claim {
    int64_t times = 0, failures = 0;
    Exact least = INFINITE;
};
std::map<std::string, Claim> claims;

// That `slack` is no less than 0; size: of what is compared.
void claim(const char* name, Exact slack, Exact size) {
    Claim& mine = claims[name];
    ++mine.times;
    mine.failures += !(slack >= 0);
    if (size > 0 && slack / size < mine.least) mine.least = slack / size;
}

struct BoundCheck {
    Case& c;
    Search search;
    Search::Query query;
    Vector sims;               // of the row at hand, [vectors][words]
    std::vector<double> dots;  // in float64
    Vector best;
    std::vector<double> best64;
    Exact score = 0, score64 = 0, size = 0;

    explicit BoundCheck(Case& made) : c(made), search(made.plan, {made.part}) {
        search.prepare(query, c.query.data(), c.words, nullptr);
    }
    void between(const char* name, Exact low, Exact high) const {
        const Exact unit = size * (c.plan.pooling == Pooling::lse ? 1 / c.plan.temperature : 1);
        claim(name, std::min({high - score, high - score64, score - low, score64 - low}), unit);
    }

    void check_query() const {
        for (int64_t w = 0; w < c.words; ++w) {
            const Vector q(&c.query[w * c.dim], &c.query[(w + 1) * c.dim]);
            const Vector parts = along(c, c.plan.edges, q);
            claim("query norm", query.norm[w] - length(q), length(q));
            claim("query rest", query.rest[w] - parts.back(), length(q));
            for (int64_t j = 0; j < query.blocks; ++j)
                claim("query along", query.along[w * query.blocks + j] - parts[j], length(q));
            if (query.digits.empty()) continue;
            Vector lost = q, high = q;
            for (int64_t i = 0; i < c.dim; ++i) {
                const Exact top = query.digit_count == 2 ? query.digits_of(w, 0)[i] * 128 : 0;
                lost[i] -= query.codes.scale[w] * (top + query.digits_of(w, query.digit_count - 1)[i]);
                high[i] -= query.codes.scale[w] * top;
            }
            check_lost("query lost", w, query.lost, lost);
            if (query.digit_count == 2) check_lost("query lost by high digits", w, query.lost_high, high);
        }
    }
    // What float64 loses of a product of a scale and an integer is in (2) of proof/bounds.py.
    void check_lost(const char* name, int64_t w, const Lost& lost, const Vector& exact) const {
        const Vector parts = along(c, c.plan.edges, exact);
        const Exact rounded = 2 * UNIT64 * query.norm[w];
        claim(name, lost.norm[w] - length(exact) + rounded, length(exact));
        for (int64_t j = 0; j < query.blocks && !lost.along.empty(); ++j)
            claim(name, lost.along[w * query.blocks + j] - parts[j] + rounded, length(exact));
    }

    // Each word's largest similarity, and that of pairs, while pairs are multiplied.
    void check_words(const Search::Work& work, const char* words, const char* pairs, bool codes) const {
        const int64_t places = (c.words + LANES - 1) / LANES * LANES;
        std::vector<char> there(dots.size(), 0);
        for (const Pair& pair : work.pairs) there[pair.vector * c.words + pair.word] = 1;
        for (int64_t w = 0; w < c.words; ++w) {
            const Exact low = work.values[w] - work.change[w];
            claim(words, std::min(work.high[w] - best[w], work.high[w] - Exact(best64[w])), size);
            claim(words, std::min(best[w] - low, best64[w] - low), size);
            for (int64_t v = 0; v < work.vectors(); ++v)
                if (!there[v * c.words + w] && work.second[v * places + w] == INT32_MIN && codes)
                    claim("dropped pairs hold no maximum", best64[w] > dots[v * c.words + w] ? 0 : -1, 0);
        }
        for (size_t i = 0; i < work.multiplied && codes; ++i) {
            const auto [v, w] = work.pairs[i];
            const Exact found = search.similarity(query, work, w, work.products[i]), at = v * c.words + w;
            claim(pairs, work.change[w] - std::abs(found - sims[int64_t(at)]), size);
            claim(pairs, work.change[w] - std::abs(found - dots[int64_t(at)]), size);
        }
    }

    void check_fine(int64_t row, const std::vector<Pair>& pairs) const {
        std::vector<float> out;
        double low, high;
        search.score_fine(query, c.part, row, pairs, out, &low, &high);
        between("fine score", low, high);
        const double error = search.float_error(query, c.part, row);
        for (size_t i = 0; i < out.size(); ++i) {
            const size_t at = pairs.empty() ? i : size_t(pairs[i].vector * c.words + pairs[i].word);
            claim("float32 similarity", error - std::abs(Exact(out[i]) - dots[at]), size);
        }
        std::vector<double> maxima;
        std::vector<int32_t> winners;
        search.decide(query, c.part, row, pairs, out.data(), maxima, winners);
        for (size_t i = 0; i < maxima.size(); ++i) {
            const size_t at = c.plan.pools_query ? winners[i] * c.words + i : i * c.words + winners[i];
            claim("decided maxima", maxima[i] == best64[i] && dots[at] == best64[i] ? 0 : -1, 0);
        }
    }

    void finish(int64_t row, double threshold, Search::Work& work, const char* name) const {
        double low, high;
        search.bound_codes(query, threshold, work, &low, &high);
        between(name, low, high);
        for (size_t i = 0; i < work.low.size() && high >= threshold && c.plan.pooling != Pooling::softmax; ++i)
            claim("pooled similarity", std::min(work.high[i] - std::max<Exact>(best[i], best64[i]),
                                                std::min<Exact>(best[i], best64[i]) - work.low[i]), size);
        if (!(high >= threshold)) return;
        std::vector<Pair> pairs;
        search.hold(query, work, pairs);
        for (int64_t v = 0; v < work.vectors() && !pairs.empty(); ++v)
            for (int64_t w = 0; w < c.words; ++w) {
                if (dots[v * c.words + w] < best64[w]) continue;
                const auto same = [&](const Pair& pair) { return pair.vector == v && pair.word == w; };
                const bool held = std::any_of(pairs.begin(), pairs.end(), same);
                claim("held pairs", held ? 0 : -1, 0);
            }
        check_fine(row, pairs);
    }

    void check_row(int64_t row, const float* first, const double* second) {
        const int64_t begin = c.starts[row], vectors = c.starts[row + 1] - begin, words = c.words;
        const int64_t places = (words + LANES - 1) / LANES * LANES;
        sims.assign(vectors * words, 0), dots.assign(vectors * words, 0);
        best.assign(c.plan.pools_query ? words : vectors, -INFINITE), best64.assign(best.size(), -INFINITE);
        size = query.largest * (Exact(c.norm[row]) + c.error[row]);
        for (int64_t v = 0; v < vectors; ++v)
            for (int64_t w = 0; w < words; ++w) {
                const int64_t at = v * words + w, place = c.plan.pools_query ? w : v;
                sims[at] = inner(&c.fine[(begin + v) * c.dim], &c.query[w * c.dim], c.dim);
                dots[at] = c.plan.kernels->dot(&c.fine[(begin + v) * c.dim], &c.query[w * c.dim], c.dim);
                best[place] = std::max(best[place], sims[at]), best64[place] = std::max(best64[place], dots[at]);
            }
        score = pool_exactly(best, c.plan.pooling, c.plan.temperature);
        score64 = pool(best64.data(), int64_t(best64.size()), c.plan.pooling, c.plan.temperature);
        Search::Work work;
        work.part = &search.parts_[0], work.row = row;
        const Exact near = size * std::pow(10, real(-9, 0)) * (below(2) ? 1 : -1);
        const double threshold = below(4) ? double(score + near) : -INFINITE;
        if (c.part.first) {
            between("first level", -INFINITE, first[row]);
            between("second level", -INFINITE, second[row]);
            Search::Work* const one = &work;
            search.bound_second(query, work, c.part.second);
            if (work.levels) {
                for (int64_t v = 0; v < vectors; ++v)
                    for (int64_t w = 0; w < words; ++w) {
                        const double sum = work.second[v * places + w];
                        const Exact bound = query.second.scale[w] * sum + query.second.offset[w];
                        const Exact most = std::max<Exact>(sims[v * words + w], dots[v * words + w]);
                        claim("second level of a pair", bound - most, size);
                    }
                const Search::Work after = work;
                search.begin_pairs(query, threshold, work);
                check_words(work, "words by codes", "pairs by codes", true);
                do {
                    search.multiply(query, work);
                    search.open_pairs(query, work, true);
                    search.pool_above(&one, 1);
                    check_words(work, "words by codes", "pairs by codes", true);
                    between("row by pairs", -INFINITE, work.upper);
                } while (search.goes_on(query, threshold, work));
                finish(row, threshold, work, "row by codes of pairs");
                work = after;
                work.change.assign(words, search.float_error(query, search.parts_[0], row));
                work.values.assign(words, -INFINITE);
                work.pairs.clear(), work.multiplied = 0;
                for (search.open_pairs(query, work, false); work.multiplied < work.pairs.size();) {
                    search.multiply_fine_pairs(query, work);
                    search.open_pairs(query, work, false);
                    for (int64_t w = 0; w < words; ++w) {
                        const double above = work.high[w] - best64[w];
                        const double under = best64[w] - (work.values[w] - work.change[w]);
                        claim("words by fine copies", std::min(above, under), size);
                    }
                }
                for (const double limit : {INFINITE, double(score), double(score + near), double(score - near)}) {
                    if (c.plan.pooling == Pooling::softmax) break;
                    Search::Pending pair(query, row, INFINITE, -INFINITE);
                    search.narrow_fine(pair, limit, limit, true, pair, [](int64_t, int64_t, uint8_t) { return true; });
                    between("row by fine pairs", pair.low, std::min(pair.high, pair.upper));
                }
            }
            work.levels = false;
        }
        finish(row, -INFINITE, work, "row by all codes");
        check_fine(row, {});
    }

    // Upper bounds by the second level, infinite where there are none: rows are pooled together, in rising order and once
    // more in falling order, so that each is in another place.
    std::vector<double> bound_together() const {
        std::vector<double> upper(c.rows, INFINITE);
        std::vector<Search::Work> works(c.rows);
        std::vector<Search::Work*> bounded;
        for (int64_t row = 0; row < c.rows && c.part.first; ++row) {
            works[row].part = &search.parts_[0], works[row].row = row;
            if (search.bound_second(query, works[row], c.part.second)) bounded.push_back(&works[row]);
        }
        for (int order = 0; order < 2; ++order) {
            search.pool_above(bounded.data(), int64_t(bounded.size()));
            for (const Search::Work* work : bounded) upper[work->row] = std::min(upper[work->row], work->upper);
            std::reverse(bounded.begin(), bounded.end());
        }
        return upper;
    }

    static void run() {
        Case made;
        make_plan(made);
        made.part.stride = (made.dim + GROUP - 1) / GROUP * GROUP;
        {
            BoundCheck asked(made);
            make_rows(made, asked.query.codes.scale);
        }
        point(made, below(4) != 0);
        BoundCheck check(made);
        check.check_query();
        std::vector<float> first(made.rows);
        const std::vector<double> second = check.bound_together();
        if (made.part.first)
            check.search.bound_blocks(check.query, check.search.parts_[0], 0, (made.rows + LANES - 1) / LANES, nullptr,
                                      first.data());
        for (int64_t row = 0; row < made.rows; ++row) check.check_row(row, first.data(), second.data());
    }
};

}  // namespace chan

int main(int, char** arguments) {
    const int cases = std::atoi(arguments[1]);
    for (int i = 0; i < cases; ++i) {
        chan::state = 0x9E3779B97F4A7C15ull * static_cast<uint64_t>(i + 1);
        chan::BoundCheck::run();
    }
    for (const auto& [name, mine] : chan::claims)
        std::printf("%s,%lld,%lld,%.3Lg\n", name.c_str(), static_cast<long long>(mine.times),
                    static_cast<long long>(mine.failures), mine.least);
}
