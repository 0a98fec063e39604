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

// Similarities in float32 of some of a row's vectors, in rising order, with the query's: out [vectors][words].
void Search::multiply_fine(const Query& query, const Part& part, int64_t row, const int32_t* held, int64_t vectors,
                           float* out) const {
    const int64_t words = query.count, dim = plan_.dim, first = part.starts[row];
    if (!vectors) return;
    const float* fine;
    if (held[vectors - 1] - held[0] + 1 == vectors) {  // they follow each other
        if (part.form == Fine::float16) {
            const auto* half = static_cast<const uint16_t*>(part.fine) + (first + held[0]) * dim;
            plan_.kernels->half_products(half, vectors, dim, query.vectors.data(), words, query.padded, out);
            return;
        }
        fine = in_float32(part, row, first + held[0], vectors);
    } else {
        thread_local std::vector<float> gathered;
        gathered.resize(vectors * dim);
        for (int64_t i = 0; i < vectors; ++i) widen_vector(part, row, first + held[i], &gathered[i * dim]);
        fine = gathered.data();
    }
    plan_.kernels->products(fine, vectors, dim, query.vectors.data(), words, query.padded, out);
}

// A row's score from similarities in float32. held: its vectors that can hold a maximum, in rising order; out
// [held][words], their similarities; values, those that are pooled.
double Search::pool_fine(const Query& query, const Part& part, int64_t row, const std::vector<int32_t>& held,
                         std::vector<float>& out, std::vector<double>& values) const {
    const int64_t words = query.count;
    const auto vectors = static_cast<int64_t>(held.size());
    out.resize(vectors * words);
    multiply_fine(query, part, row, held.data(), vectors, out.data());
    values.assign(plan_.pools_query ? words : vectors, -INFINITE);
    for (int64_t v = 0; v < vectors; ++v)
        for (int64_t w = 0; w < words; ++w) {
            double& value = values[plan_.pools_query ? w : v];
            value = std::max(value, double(out[v * words + w]));
        }
    return pool(values.data(), static_cast<int64_t>(values.size()), plan_.pooling, plan_.temperature);
}

// A row's score from its fine copy in float32 lies between *low and *high; held and out are as in `pool_fine`.
void Search::score_fine(const Query& query, const Part& part, int64_t row, const std::vector<int32_t>& held,
                        std::vector<float>& out, double* low, double* high) const {
    thread_local std::vector<double> values;
    const double score = pool_fine(query, part, row, held, out, values);
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
void Search::decide(const Query& query, const Part& part, int64_t row, const std::vector<int32_t>& held,
                    const float* similarities, std::vector<double>& maxima, std::vector<int32_t>& winners) const {
    const int64_t words = query.count, dim = plan_.dim, first = part.starts[row];
    const auto vectors = static_cast<int64_t>(held.size());
    const double slack = 2 * float_error(query, part, row);
    const auto exact = [&](int64_t vector, int64_t word) {
        return plan_.kernels->dot(in_float32(part, row, first + vector, 1), &query.vectors[word * query.padded], dim);
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

double Search::exact_score(const Pending& row) const {
    thread_local std::vector<double> maxima;
    thread_local std::vector<int32_t> winners;
    maxima.clear(), winners.clear();
    int64_t local;
    const Part& part = part_of(row.row, &local);
    decide(*row.query, part, local, row.held, row.similarities.data(), maxima, winners);
    return pool(maxima.data(), static_cast<int64_t>(maxima.size()), plan_.pooling, plan_.temperature);
}

}  // namespace chan
