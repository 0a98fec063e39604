// Scores from a row's fine copy: in float32 with a proven distance, and what that leaves undecided in float64.

#include <algorithm>
#include <cfloat>
#include <cstring>

#include "state.h"

namespace chan {

// `count` vectors of a row's fine copy as float32 [count][dim], from the vector `first` of the part on; until the next
// call of the same thread.
const float* Search::in_float32(const Part& part, int64_t row, int64_t first, int64_t count) const {
    const int64_t dim = plan_.dim;
    if (part.form == Fine::float32) return static_cast<const float*>(part.fine) + first * dim;
    thread_local std::vector<float> widened;
    widened.resize(count * dim);
    for (int64_t i = 0; i < count; ++i) widen_vector(part, row, first + i, &widened[i * dim]);
    return widened.data();
}

// A vector of a row's fine copy, the part's vector `at`: out [dim].
void Search::widen_vector(const Part& part, int64_t row, int64_t at, float* out) const {
    const int64_t dim = plan_.dim;
    switch (part.form) {
        case Fine::float32:
            std::memcpy(out, static_cast<const float*>(part.fine) + at * dim, dim * sizeof(float));
            break;
        case Fine::float16:
            plan_.kernels->widen(static_cast<const uint16_t*>(part.fine) + at * dim, dim, out);
            break;
        case Fine::fixed16:
            plan_.kernels->widen_fixed(part.codes + at * part.stride, static_cast<const uint8_t*>(part.fine) + at * dim,
                                       dim, part.scale[row] / 256, out);
    }
}

// Similarities in float32 of all of a row's vectors with all of the query's: out [vectors][words].
void Search::multiply_row(const Query& query, const Part& part, int64_t row, float* out) const {
    const int64_t dim = plan_.dim, first = part.starts[row], vectors = part.starts[row + 1] - first;
    if (part.form == Fine::float16)
        plan_.kernels->half_products(static_cast<const uint16_t*>(part.fine) + first * dim, vectors, dim,
                                     query.vectors.data(), query.count, query.padded, out);
    else
        plan_.kernels->products(in_float32(part, row, first, vectors), vectors, dim, query.vectors.data(), query.count,
                                query.padded, out);
}

// Similarities in float32 of some pairs: out [pairs]. A vector is widened once where its pairs follow each other.
void Search::multiply_pairs(const Query& query, const Part& part, int64_t row, const Pair* pairs, int64_t count,
                            float* out) const {
    thread_local std::vector<const float*> left, right;
    thread_local std::vector<float> widened;
    const int64_t dim = plan_.dim, first = part.starts[row];
    left.resize(count), right.resize(count);
    if (part.form != Fine::float32) widened.resize(count * dim);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t at = first + pairs[i].vector;
        right[i] = &query.vectors[pairs[i].word * query.padded];
        if (part.form == Fine::float32) {
            left[i] = static_cast<const float*>(part.fine) + at * dim;
        } else if (i && pairs[i].vector == pairs[i - 1].vector) {
            left[i] = left[i - 1];
        } else {
            left[i] = &widened[i * dim];
            widen_vector(part, row, at, &widened[i * dim]);
        }
    }
    plan_.kernels->pair_products(left.data(), right.data(), count, dim, out);
}

namespace {

// Call `each(i, vector, word)` for every pair: those in `pairs`, or where there are none, all of a row's and a query's.
template <typename Each>
void for_each_pair(const std::vector<Pair>& pairs, int64_t vectors, int64_t words, const Each& each) {
    for (size_t i = 0; i < pairs.size(); ++i) each(i, pairs[i].vector, pairs[i].word);
    if (!pairs.empty()) return;
    for (int64_t v = 0; v < vectors; ++v)
        for (int64_t w = 0; w < words; ++w) each(v * words + w, v, w);
}

}  // namespace

// A row's score from similarities in float32. pairs: those that can hold a maximum, or none for all; out: the
// similarities of these; values: those that are pooled.
double Search::pool_fine(const Query& query, const Part& part, int64_t row, const std::vector<Pair>& pairs,
                         std::vector<float>& out, std::vector<double>& values) const {
    const int64_t words = query.count, vectors = part.starts[row + 1] - part.starts[row];
    out.resize(pairs.empty() ? vectors * words : pairs.size());
    if (pairs.empty())
        multiply_row(query, part, row, out.data());
    else
        multiply_pairs(query, part, row, pairs.data(), static_cast<int64_t>(pairs.size()), out.data());
    values.assign(plan_.pools_query ? words : vectors, -INFINITE);
    for_each_pair(pairs, vectors, words, [&](size_t i, int64_t v, int64_t w) {
        double& value = values[plan_.pools_query ? w : v];
        value = std::max(value, double(out[i]));
    });
    return pool(values.data(), static_cast<int64_t>(values.size()), plan_.pooling, plan_.temperature);
}

// A row's score from its fine copy in float32 lies between *low and *high; pairs and out are as in `pool_fine`.
void Search::score_fine(const Query& query, const Part& part, int64_t row, const std::vector<Pair>& pairs,
                        std::vector<float>& out, double* low, double* high) const {
    thread_local std::vector<double> values;
    const double score = pool_fine(query, part, row, pairs, out, values);
    const auto count = static_cast<int64_t>(values.size());
    const double size = query.largest * (double(part.norm[row]) + part.error[row]);
    const double change = float_error(query, part, row) + rounding(size, plan_.dim, double(count), plan_.temperature);
    const double spread = plan_.pooling == Pooling::softmax ? spread_of(values.data(), count) : 0;
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
void Search::decide(const Query& query, const Part& part, int64_t row, const std::vector<Pair>& pairs,
                    const float* similarities, std::vector<double>& maxima, std::vector<int32_t>& winners) const {
    const int64_t words = query.count, dim = plan_.dim, first = part.starts[row];
    const int64_t vectors = part.starts[row + 1] - first, count = plan_.pools_query ? words : vectors;
    const double slack = 2 * float_error(query, part, row);
    thread_local std::vector<double> most;
    most.assign(count, -INFINITE);
    for_each_pair(pairs, vectors, words, [&](size_t i, int64_t v, int64_t w) {
        double& mine = most[plan_.pools_query ? w : v];
        mine = std::max(mine, double(similarities[i]));
    });
    const size_t begin = maxima.size();
    maxima.resize(begin + count, -INFINITE), winners.resize(begin + count, 0);
    for_each_pair(pairs, vectors, words, [&](size_t i, int64_t v, int64_t w) {
        const int64_t place = plan_.pools_query ? w : v;
        if (double(similarities[i]) < most[place] - slack) return;
        const float* fine = in_float32(part, row, first + v, 1);
        const double value = plan_.kernels->dot(fine, &query.vectors[w * query.padded], dim);
        if (!(value > maxima[begin + place])) return;
        maxima[begin + place] = value;
        winners[begin + place] = static_cast<int32_t>(plan_.pools_query ? v : w);
    });
}

double Search::exact_score(const Pending& row) const {
    thread_local std::vector<double> maxima;
    thread_local std::vector<int32_t> winners;
    maxima.clear(), winners.clear();
    int64_t local;
    const Part& part = part_of(row.row, &local);
    decide(*row.query, part, local, row.pairs, row.similarities.data(), maxima, winners);
    return pool(maxima.data(), static_cast<int64_t>(maxima.size()), plan_.pooling, plan_.temperature);
}

}  // namespace chan
