// One search: from a query's vectors to the rows that could be the best, decided in float64. See proof/bounds.py for
// the theorem; every number below that enters a bound is named as it is there.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace chan {

// A coding of rows along the gallery's axes: the first coordinates at int8, what that leaves of the first few of them at
// int8 once more, and norms of what is lost.
struct Level {
    int64_t norms = 0;            // J: of each block of axes, R of (3), and of the codes themselves
    int64_t coordinates = 0;      // P
    int64_t codes = 0;            // P + K: those of the coordinates, and second ones of the first K
    int64_t width = 0;            // bytes of a vector: norms, then codes, then zeros up to a multiple of GROUP
    std::vector<int64_t> edges;   // where blocks of axes begin, and the number of axes at the end: J - 1 of them
    const float* steps = nullptr;  // [P + K], of each code
    const float* norm_step = nullptr;     // [J], of each norm's codes
    const float* norm_typical = nullptr;  // [J], of the gallery: decides how finely a query is coded, and nothing else
};

// What all rows share.
struct Plan {
    const Kernels* kernels = nullptr;
    int64_t dim = 0;
    bool pools_query = true;  // the maximum runs over a row's vectors; otherwise over the query's
    Pooling pooling = Pooling::lse;
    double temperature = 1;
    int digits = 2;               // of a query's integers at the int8 level
    int64_t axes = 0;             // M; 0 where the gallery was not prepared
    const float* mean = nullptr;  // [D]
    const float* basis = nullptr;  // [M][D]: B, transposed
    double deviation = 0;         // no less than the norm of B'B - 1
    std::vector<int64_t> edges;   // of blocks of the leading axes, along which int8 codes are measured, and their number
    Level first, second;          // first.coordinates is 0 where every row's int8 codes are scanned
};

enum class Fine { float32, float16, fixed16 };  // compiled.py has the same numbers

// Consecutive rows.
struct Part {
    int64_t rows = 0;
    const int64_t* starts = nullptr;  // [rows + 1]
    const uint8_t* codes = nullptr;   // [vectors][stride]
    int64_t stride = 0;
    const float *scale = nullptr, *error = nullptr, *norm = nullptr;  // [rows]
    Fine form = Fine::float32;        // of the fine copy
    const void* fine = nullptr;       // [vectors][D]; of fixed16 the lower bytes, whose upper ones are the codes
    uint8_t* checked = nullptr;       // [rows], bits of Touch whose bytes were checked
    // where the part was prepared:
    const uint8_t* first = nullptr;   // blocks of LANES rows
    const int64_t* order = nullptr;   // [rows], the rows in the order in which they lie in blocks
    const uint8_t* second = nullptr;  // [vectors][second.width]
    const uint8_t* loose = nullptr;   // [rows], 1 where a norm did not fit its code
    const float* blocks = nullptr;    // [rows][edges - 1]
    int64_t base = 0;                 // number of its first row in the gallery
    std::vector<int64_t> block_starts;  // where each block's vectors begin, in LANES vectors
};

enum Touch : uint8_t { SECOND = 1, CODES = 2, FINE = 4 };

// One of a query's best rows.
struct Found {
    int64_t row;
    int64_t first;  // of its values in `maxima` and `winners`
    int64_t count;
};

struct Answer {
    std::vector<Found> rows;  // all that could be among the best k
    std::vector<double> maxima;    // the pooled similarities in float64
    std::vector<int32_t> winners;  // the vector that reached each
    int64_t second = 0, codes = 0, fine = 0;  // rows whose second level, int8 codes, fine copy were read
    int64_t contradiction = -1;    // a row whose codes and fine copy have no score in common
};

// A vector of a row, and one of a query.
struct Pair {
    int32_t vector, word;
};

// A row and its score with a query.
struct Scored {
    int64_t row;
    double score;
};

class Search {
  public:
    // touch(part, row, what): checks bytes before they are first read; false where that raised an error.
    using TouchFunction = std::function<bool(int64_t, int64_t, uint8_t)>;

    Search(Plan plan, std::vector<Part> parts);

    int64_t rows() const { return rows_; }
    const Plan& plan() const { return plan_; }

    // The best k rows of each query among those whose score is no less than the query's floor; false where `touch`
    // failed. queries [vectors][dim], query i being starts[i] to starts[i + 1]; allowed [rows] or null where all are;
    // floors [count]. Rows that score less than the floor may be in the answer, too.
    bool best(const float* queries, const int64_t* starts, int64_t count, int64_t k, const uint8_t* allowed,
              const double* floors, const TouchFunction& touch, Threads& threads, std::vector<Answer>& answers) const;

    // The same among some rows of each query's own: listed[edges[i]] to listed[edges[i + 1]] are query i's.
    bool best_listed(const float* queries, const int64_t* starts, int64_t count, int64_t k, const int64_t* listed,
                     const int64_t* edges, const double* floors, const TouchFunction& touch, Threads& threads,
                     std::vector<Answer>& answers) const;

    // Every row whose score with a query is no less than the query's threshold, or than the row's own; false where
    // `touch` failed. A score is exact where it could equal one of the two; otherwise it is some number on the same side
    // of both as the score.
    bool above(const float* queries, const int64_t* starts, int64_t count, const double* query_thresholds,
               const double* row_thresholds, const TouchFunction& touch, Threads& threads,
               std::vector<std::vector<Scored>>& found) const;

    // out [count]: the float64 score of each query with one row; false where `touch` failed.
    bool scores(const float* queries, const int64_t* starts, int64_t count, const int64_t* rows,
                const TouchFunction& touch, Threads& threads, double* out) const;

    // out [rows][count]: the score of each query with each row, pooled from similarities in float32; false where `touch`
    // failed. Only the rows' fine copies are used.
    bool all_scores(const float* queries, const int64_t* starts, int64_t count, const TouchFunction& touch,
                    Threads& threads, float* out) const;

  private:
    friend struct BoundCheck;  // tests/runtime/gallery/core_bounds.cpp
    struct Query;
    struct Work;
    struct Pending;
    struct Contest;

    void place(Query& query, const float* vectors, int64_t count) const;
    void prepare(Query& query, const float* vectors, int64_t count, Threads* threads) const;
    void bound_blocks(const Query& query, const Part& part, int64_t first, int64_t last, const uint8_t* allowed,
                      float* upper) const;
    void pool_lanes(const float* values, int64_t count, const int32_t* counts, float* scores) const;
    void pool_above(Work* const* works, int64_t count) const;
    bool bound_second(const Query& query, Work& work, const uint8_t* next) const;
    void changes(const Query& query, Work& work) const;
    void open_pairs(const Query& query, Work& work, bool fetch) const;
    void begin_pairs(const Query& query, double threshold, Work& work) const;
    void multiply(const Query& query, Work& work) const;
    void keep_low_digits(const Query& query, Work& work) const;
    bool goes_on(const Query& query, double threshold, Work& work) const;
    void multiply_fine_pairs(const Query& query, Work& work) const;
    double similarity(const Query& query, const Work& work, int64_t word, int32_t sum) const;
    void multiply_all(const Query& query, Work& work) const;
    void bound_codes(const Query& query, double threshold, Work& work, double* lower, double* upper) const;
    void hold(const Query& query, Work& work, std::vector<Pair>& pairs) const;
    bool narrow(Pending* const* rows, int64_t count, const TouchFunction& touch) const;
    bool narrow_all(const std::vector<Pending*>& pairs, const TouchFunction& touch, Threads& threads,
                    const std::function<bool(Pending&)>& each) const;
    bool for_pairs(std::vector<Query>& queries, const float* upper,
                   const std::function<double(int64_t, int64_t)>& needed,
                   const std::function<bool(const std::vector<Pending*>&)>& each) const;
    bool narrow_fine(Pending& pair, double mine, double its, bool second, const Pending& next,
                     const TouchFunction& touch) const;
    static double kth_lower_bound(const std::vector<Pending>& rows, int64_t k);
    const float* in_float32(const Part& part, int64_t row, int64_t first, int64_t count) const;
    void widen_vector(const Part& part, int64_t row, int64_t at, float* out) const;
    void multiply_row(const Query& query, const Part& part, int64_t row, float* out) const;
    void multiply_pairs(const Query& query, const Part& part, int64_t row, const Pair* pairs, int64_t count,
                        float* out) const;
    double pool_fine(const Query& query, const Part& part, int64_t row, const std::vector<Pair>& pairs,
                     std::vector<float>& out, std::vector<double>& values) const;
    void score_fine(const Query& query, const Part& part, int64_t row, const std::vector<Pair>& pairs,
                    std::vector<float>& out, double* low, double* high) const;
    double float_error(const Query& query, const Part& part, int64_t row) const;
    bool score(Pending& row, const TouchFunction& touch) const;
    bool score_some(Contest& contest, const std::vector<Pending*>& some, const TouchFunction& touch,
                    Threads& threads) const;
    bool begin(Contest& contest, float* upper, int64_t k, const uint8_t* allowed, const TouchFunction& touch,
               Threads& threads) const;
    bool raise_threshold(Contest& contest, int64_t k, const TouchFunction& touch, Threads& threads) const;
    bool finish(Contest& contest, int64_t k, const TouchFunction& touch, Threads& threads, Answer& answer) const;
    void decide(const Query& query, const Part& part, int64_t row, const std::vector<Pair>& pairs,
                const float* similarities, std::vector<double>& maxima, std::vector<int32_t>& winners) const;
    double exact_score(const Pending& row) const;
    bool in_turns(const float* queries, const int64_t* starts, int64_t count, const uint8_t* allowed, Threads& threads,
                  const std::function<bool(int64_t, std::vector<Query>&, float*)>& each) const;
    const Part& part_of(int64_t row, int64_t* local) const;
    bool ready(const Part& part, int64_t local, uint8_t what, const TouchFunction& touch) const;

    Plan plan_;
    std::vector<Part> parts_;
    int64_t rows_ = 0;
    int64_t longest_ = 0;  // vectors of a row
    double largest_ = 0;   // no less than the norm of any vector, nor of what its codes stand for
    mutable std::mutex mutex_;
    mutable std::vector<std::unique_ptr<std::vector<float>>> spare_;  // memory of searches that ended
};

}  // namespace chan
