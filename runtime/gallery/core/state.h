// What a search knows while it runs: of a query, and of the rows that may be among its best.

#pragma once

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <utility>
#include <vector>

#include "pooling.h"
#include "search.h"

namespace chan {

constexpr int DIGIT = 7;          // bits of an integer's low digit
constexpr int64_t TOGETHER = 8;  // pairs of a query and a row that a thread brings closer bounds of at a time

// Integers of some vectors, [vectors][width], as digits, and the program that multiplies them.
struct Packed {
    std::vector<Step> program;
    int64_t high = 0;  // steps of high digits, which come first
    std::vector<int8_t> digits;
};

// A query at one level: word w's similarity is at most scale[w] * sum + offset[w] (at the int8 level: about that, times
// the row's scale).
struct Coded {
    Packed packed;
    std::vector<double> scale, offset;
    std::vector<float> scale32, offset32;  // for kernels that take the maximum over words; the offset is rounded up
    std::vector<double> loss;              // what these lose at most

    void finish_float(const std::vector<double>& total) {
        const size_t words = scale.size(), places = (words + LANES - 1) / LANES * LANES;
        for (size_t place = 0; place < places; ++place) {
            const size_t w = std::min(place, words - 1);
            const double lost = 8 * UNIT32 * (scale[w] * total[w] * 255 + std::abs(offset[w])) + FLT_MIN;
            if (place == w) loss.push_back(lost);
            scale32.push_back(static_cast<float>(scale[w]));
            offset32.push_back(static_cast<float>(offset[w] + lost));
        }
    }
};

constexpr int64_t LINE = 64;  // bytes, of a cache

// One, so that no register is loaded from two of them.
struct alignas(LINE) Line {
    int8_t bytes[LINE];
};

// What integers at the int8 level lose of a query's vectors.
struct Lost {
    std::vector<double> norm;   // ||dq||
    std::vector<double> along;  // ||B_j'dq|| [count][E]; empty where it would hardly matter
};

struct Search::Query {
    int64_t count = 0, padded = 0;
    std::vector<float> vectors;  // [count][padded], zero from dim on
    std::vector<double> norm;    // no less than ||q||
    double largest = 0;
    Coded first, second, codes;
    int64_t blocks = 0;                          // E: of axes at the int8 level
    std::vector<double> along, rest;             // ||B_j'q|| [count][E], R(q), of the leading axes
    Lost lost, lost_high;                        // with all digits, and with the high ones alone
    int64_t digit_count = 1;                     // of an integer at the int8 level
    int64_t digit_lines = 0;                     // of a vector's
    std::vector<Line> digits;                    // there, the high ones first: [digit_count][count][digit_lines]
    std::vector<double> offset_high;             // as in `codes`, of the high digits alone; empty where they do not serve
    const int8_t* digits_of(int64_t word, int64_t digit) const {
        return digits[(digit * count + word) * digit_lines].bytes;
    }
    int8_t* digits_of(int64_t word, int64_t digit) { return digits[(digit * count + word) * digit_lines].bytes; }
    std::atomic<int64_t> second_read{0}, codes_read{0};  // rows of which these were read
};

// What a thread knows of a row while it narrows the row's bounds.
struct Search::Work {
    Pending* pending = nullptr;
    const Part* part = nullptr;
    int64_t row = 0;               // in its part
    bool levels = false;           // whether `second` bounds the row's similarities
    std::vector<int32_t> second;   // sums of the second level, [vectors][places]; INT32_MIN of pairs in `pairs`
    std::vector<int32_t> highest, leader;  // of each word's sums: the largest, and the vector that has it
    std::vector<Pair> pairs;       // that are multiplied
    size_t multiplied = 0;         // how many of them were
    std::vector<int32_t> products;  // by their int8 codes
    int64_t digit = 0;             // of the query, that the others are multiplied with first
    bool top = false;              // whether `products` are of the high digits of the query alone
    double upper = 0;              // of the row's score, by `high`
    std::vector<const uint8_t*> codes;
    std::vector<const int8_t*> digits;
    std::vector<int32_t> sums;     // of all int8 codes [vectors][places], or of pairs that are multiplied together
    std::vector<float> similarities;  // by the fine copy, of pairs that are multiplied together
    std::vector<const uint8_t*> pointers;
    std::vector<float> best;
    std::vector<double> values, change;  // similarities by the codes, and how far off they can be
    std::vector<double> low, high;       // bounds of what is pooled

    int64_t vectors() const { return part->starts[row + 1] - part->starts[row]; }
    const uint8_t* codes_of(int64_t vector) const { return part->codes + (part->starts[row] + vector) * part->stride; }
};

// The similarity with a word that a sum of products with its digits stands for.
inline double Search::similarity(const Query& query, const Work& work, int64_t word, int32_t sum) const {
    const double digit = work.top ? 1 << DIGIT : 1;
    const double offset = work.top ? query.offset_high[word] : query.codes.offset[word];
    return work.part->scale[work.row] * (digit * query.codes.scale[word] * sum + offset);
}

// A query and a row that may be among its best.
struct Search::Pending {
    Pending(Query& query, int64_t row, double upper, double needed)
        : query(&query), row(row), needed(needed), upper(upper) {}

    Query* query;
    int64_t row;
    double needed;                               // what its upper bound must reach
    double lower = -INFINITE, upper;             // by its codes
    double low = -INFINITE, high = INFINITE;     // by its fine copy in float32

    // Whether bounds by its fine copy leave no doubt on which side of two limits its score is.
    bool decided(double mine, double its) const {
        return (low > mine || high < mine) && (low > its || high < its);
    }
    std::vector<Pair> pairs;                     // that can hold a maximum, vectors in rising order; none: all of them
    std::vector<float> similarities;             // of these by the fine copy in float32; empty until it is scored
};

// A query whose best rows are looked for.
struct Search::Contest {
    Query* query = nullptr;
    std::vector<Pending> pending;
    double threshold = -INFINITE;  // at most the larger of the floor and the k-th largest true score
    int64_t fine = 0;              // rows whose fine copy was read
};

}  // namespace chan
