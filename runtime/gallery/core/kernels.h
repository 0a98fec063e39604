// What a search multiplies, once for each instruction set; every version gives the same results to the bit.
//
// Codes are unsigned bytes, in groups of GROUP. A query's vector is multiplied digit by digit: its integers n are
// `128 high + low`, and a program names, for each step, the group of codes that a row of GROUP digits meets. Before a
// step with a shift the sums so far are shifted left by it (Horner's rule), so groups whose integers fit one digit
// cost one step and the others two, and one set of accumulators serves all.

#pragma once

#include <cstddef>
#include <cstdint>

namespace chan {

constexpr int GROUP = 16;  // codes of a vector that a step multiplies
constexpr int LANES = 16;  // gallery rows side by side in a block, or query vectors side by side in a tile
constexpr int NEXT = 30;   // vectors that `row_sums` is told come next
constexpr int PAIRS_AT_ONCE = 4;  // vectors that `pair_sums` multiplies at a time
constexpr int FOUR = 4;    // bytes that one instruction multiplies for each 32-bit sum

struct Step {
    int32_t group;  // which GROUP of codes
    int32_t shift;  // bits that the sums are shifted left by before this step
};

enum class Pooling { max, mean, sum, lse, softmax };

struct Kernels {
    const char* name;

    // A block of LANES gallery rows: codes [vectors][width / FOUR][LANES][FOUR], digits [words][steps][GROUP].
    // out [words][LANES]: the largest sum over the vectors of each row.
    void (*block_over_row)(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                           const int8_t* digits, int64_t words, int32_t* out);
    // out [vectors][LANES]: the largest `scale[word] * sum + offset[word]` over the words.
    void (*block_over_query)(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                             const int8_t* digits, int64_t words, const float* scale, const float* offset, float* out);

    // Vectors of one gallery row: codes [vectors + NEXT], of `width` bytes each, of which the last are not multiplied but
    // may be fetched; digits [tiles][steps][GROUP / FOUR][LANES][FOUR], LANES words a tile. out [vectors][tiles][LANES]:
    // all sums; highest [tiles][LANES] is raised to the largest.
    void (*row_sums)(const uint8_t* const* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                     const int8_t* digits, int64_t tiles, int32_t* highest, int32_t* out);
    // One gallery row: codes [vectors][width]. out [vectors]: the largest `scale[word] * sum + offset[word]` over the words
    // of all tiles.
    void (*row_over_query)(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                           const int8_t* digits, int64_t tiles, const float* scale, const float* offset, float* out);

    // Inner products of single vectors: codes [pairs] and digits [pairs], of `width` bytes each, a multiple of GROUP and so
    // small that 255 * 128 * width stays below 2^31. out [pairs].
    void (*pair_sums)(const uint8_t* const* codes, const int8_t* const* digits, int64_t pairs, int64_t width,
                      int32_t* out);
    // Each place's largest sum, and the first vector that has it: sums [vectors][places]; highest, leader [places].
    void (*lead)(const int32_t* sums, int64_t vectors, int64_t places, int32_t* highest, int32_t* leader);

    // Inner products in float32, out [vectors][words]: sixteen partial sums, lane l of elements l, l + 16, ..., each
    // with fused multiply-adds, then halves of the lanes added. query [words][padded], zero from dim on.
    void (*products)(const float* vectors, int64_t count, int64_t dim, const float* query, int64_t words,
                     int64_t padded, float* out);
    void (*half_products)(const uint16_t* vectors, int64_t count, int64_t dim, const float* query, int64_t words,
                          int64_t padded, float* out);

    // The same of single vectors: left [pairs][dim], right [pairs][padded], out [pairs].
    void (*pair_products)(const float* const* left, const float* const* right, int64_t pairs, int64_t dim, float* out);

    // An inner product in float64: eight partial sums, lane l of elements l, l + 8, ..., then halves of them added.
    double (*dot)(const float* left, const float* right, int64_t dim);

    // float16 to float32, exactly.
    void (*widen)(const uint16_t* half, int64_t count, float* out);
    // float32 to the nearest float16, of two the one whose last bit is 0; too large ones become infinite.
    void (*narrow)(const float* values, int64_t count, uint16_t* half);
    // The same of fixed-point numbers of 16 bits, in units of `unit`. See widen_fixed.h.
    void (*widen_fixed)(const uint8_t* codes, const uint8_t* low, int64_t count, float unit, float* out);

    // Upper bounds of LANES scores, given upper bounds of what is pooled: values [count][LANES], of which lane l has the
    // first counts[l]. See pool_lanes.h.
    void (*pool_lanes)(const float* values, int64_t count, const int32_t* counts, Pooling pooling, float temperature,
                       float* out);
};

// Null where the CPU or the compiler lacks the instructions; the generic ones are always there.
const Kernels* avx512_kernels();   // AVX-512 VNNI
const Kernels* amx_kernels();      // AMX for bytes, and AVX-512 VNNI
const Kernels* avxvnni_kernels();  // AVX-VNNI
const Kernels* avx2_kernels();     // AVX2, FMA and F16C
const Kernels* i8mm_kernels();     // Arm's 8-bit matrix multiplication: products of unsigned by signed bytes
const Kernels* dotprod_kernels();  // Arm's dot products of signed bytes
const Kernels* generic_kernels();

const Kernels* const* usable_kernels();  // those that are there, the best first, and a null at the end

}  // namespace chan
