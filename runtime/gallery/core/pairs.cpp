// Bounds by single pairs, a vector of a row and one of a query, of their int8 codes or their fine copies: of those alone
// that could matter.
//
// The second level bounds every pair. A pair whose bound does not exceed what other pairs of its word already allow cannot
// raise the row's upper bound, so it is not multiplied; see "Vectors of a row" in proof/bounds.py.

#include <algorithm>

#include "state.h"

namespace chan {

// Let those pairs wait that the second level leaves open: each word's best, unless it cannot raise the upper bound of the
// word's largest similarity. `high` becomes these upper bounds. fetch: begin to read their int8 codes, which are multiplied
// once other rows had their turn.
void Search::open_pairs(const Query& query, Work& work, bool fetch) const {
    const int64_t words = query.count, places = (words + LANES - 1) / LANES * LANES;
    const Coded& second = query.second;
    work.high.resize(words), work.leader.resize(places);
    plan_.kernels->lead(work.second.data(), work.vectors(), places, work.highest.data(), work.leader.data());
    for (int64_t w = 0; w < words; ++w) {
        work.high[w] = work.values[w] + work.change[w];
        if (work.highest[w] == INT32_MIN) continue;
        const double open = second.scale[w] * work.highest[w] + second.offset[w];
        if (!(open > work.high[w])) continue;
        work.high[w] = open;
        work.pairs.push_back({work.leader[w], static_cast<int32_t>(w)});
        const uint8_t* codes = work.codes_of(work.leader[w]);
        for (int64_t at = 0; at < work.part->stride && fetch; at += LINE) __builtin_prefetch(codes + at, 0, 2);
    }
}

// Choose the pairs that are multiplied first: each word with the vector that the second level says is best. Of a query
// that is compared with a threshold the high digits are multiplied first, as most rows need no more.
void Search::begin_pairs(const Query& query, double threshold, Work& work) const {
    work.top = threshold > -INFINITE && query.digit_count == 2;
    changes(query, work);
    work.values.assign(query.count, -INFINITE);
    work.pairs.clear(), work.products.clear();
    work.multiplied = 0, work.digit = 0;
    open_pairs(query, work, true);
}

// Multiply the codes of the pairs that wait for it, and raise `values` to their similarities.
void Search::multiply(const Query& query, Work& work) const {
    const int64_t stride = work.part->stride, places = (query.count + LANES - 1) / LANES * LANES;
    const int64_t digits = work.top ? 1 : query.digit_count;
    work.codes.clear(), work.digits.clear();
    for (size_t i = work.multiplied; i < work.pairs.size(); ++i)
        for (int64_t digit = work.digit; digit < digits; ++digit) {
            work.codes.push_back(work.codes_of(work.pairs[i].vector));
            work.digits.push_back(query.digits_of(work.pairs[i].word, digit));
        }
    work.sums.resize(work.codes.size());
    plan_.kernels->pair_sums(work.codes.data(), work.digits.data(), static_cast<int64_t>(work.codes.size()), stride,
                             work.sums.data());
    work.products.resize(work.pairs.size(), 0);
    const int32_t* sum = work.sums.data();
    for (; work.multiplied < work.pairs.size(); ++work.multiplied) {
        const Pair& pair = work.pairs[work.multiplied];
        int32_t& product = work.products[work.multiplied];
        for (int64_t digit = work.digit; digit < digits; ++digit) product = product * (1 << DIGIT) + *sum++;
        work.second[pair.vector * places + pair.word] = INT32_MIN;
        work.values[pair.word] = std::max(work.values[pair.word], similarity(query, work, pair.word, product));
    }
    work.digit = 0;
}

// Of pairs whose high digits were multiplied, let those wait for the low ones that can hold a maximum, and no others.
void Search::keep_low_digits(const Query& query, Work& work) const {
    size_t kept = 0;
    for (size_t i = 0; i < work.pairs.size(); ++i) {
        const int32_t w = work.pairs[i].word;
        if (similarity(query, work, w, work.products[i]) + work.change[w] < work.values[w] - work.change[w]) continue;
        work.pairs[kept] = work.pairs[i];
        work.products[kept++] = work.products[i];
    }
    work.pairs.resize(kept), work.products.resize(kept);
    work.multiplied = 0, work.digit = 1;
    work.top = false;
    work.values.assign(query.count, -INFINITE);
    changes(query, work);
}

// Whether a row has pairs that wait, after its others were multiplied: not where its upper bound is below the threshold.
bool Search::goes_on(const Query& query, double threshold, Work& work) const {
    if (work.upper < threshold) return false;
    if (work.multiplied < work.pairs.size()) return true;
    if (!work.top) return false;
    keep_low_digits(query, work);
    return true;
}

// Multiply the fine copies of the pairs that wait for it, in float32, and raise `values` to their similarities.
void Search::multiply_fine_pairs(const Query& query, Work& work) const {
    const int64_t places = (query.count + LANES - 1) / LANES * LANES;
    const auto count = static_cast<int64_t>(work.pairs.size() - work.multiplied);
    const Pair* const pairs = &work.pairs[work.multiplied];
    work.similarities.resize(count);
    multiply_pairs(query, *work.part, work.row, pairs, count, work.similarities.data());
    for (int64_t i = 0; i < count; ++i) {
        work.second[pairs[i].vector * places + pairs[i].word] = INT32_MIN;
        work.values[pairs[i].word] = std::max(work.values[pairs[i].word], double(work.similarities[i]));
    }
    work.multiplied = work.pairs.size();
}

}  // namespace chan
