// Scores from a row's fine copy: in float32 with a proven distance, and what that leaves undecided in float64.

#include <algorithm>
#include <cfloat>

#include "state.h"

namespace chan {

// `count` vectors of a row's fine copy as float32 [count][dim], from the vector `first` of the part on; until the next
// call of the same thread.
const float* Search::in_float32(const Part& part, int64_t row, int64_t first, int64_t count) const {
    const int64_t dim = plan_.dim;
    if (part.form == Fine::float32) return static_cast<const float*>(part.fine) + first * dim;
    thread_local std::vector<float> widened;
    widened.resize(count * dim);
    if (part.form == Fine::float16) {
        plan_.kernels->widen(static_cast<const uint16_t*>(part.fine) + first * dim, count * dim, widened.data());
        return widened.data();
    }
    const float unit = part.scale[row] / 256;
    for (int64_t i = 0; i < count; ++i)
        plan_.kernels->widen_fixed(part.codes + (first + i) * part.stride,
                                   static_cast<const uint8_t*>(part.fine) + (first + i) * dim, dim, unit,
                                   &widened[i * dim]);
    return widened.data();
}

// A row's score from similarities in float32. held: its vectors that can hold a maximum, in rising order; out
// [held][words], their similarities; values, those that are pooled.
double Search::pool_fine(const Query& query, const Part& part, int64_t row, const std::vector<int32_t>& held,
                         std::vector<float>& out, std::vector<double>& values) const {
    const int64_t words = query.count, dim = plan_.dim, first = part.starts[row];
    const auto vectors = static_cast<int64_t>(held.size());
    out.resize(vectors * words);
    for (int64_t i = 0, next; i < vectors; i = next) {  // those that follow each other at once
        for (next = i + 1; next < vectors && held[next] == held[next - 1] + 1;) ++next;
        const int64_t at = (first + held[i]) * dim;
        if (part.form == Fine::float16)
            plan_.kernels->half_products(static_cast<const uint16_t*>(part.fine) + at, next - i, dim,
                                         query.vectors.data(), words, query.padded, &out[i * words]);
        else
            plan_.kernels->products(in_float32(part, row, first + held[i], next - i), next - i, dim,
                                    query.vectors.data(), words, query.padded, &out[i * words]);
    }
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
