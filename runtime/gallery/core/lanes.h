// The kernels once more, for instruction sets whose registers hold fewer than 16 sums.
//
// A file includes this after it has chosen its instruction set, and gives a struct `Isa`:
//   WIDTH, Int, Float      how many 32-bit lanes a register has, and vectors of so many
//   ROW_VECTORS            how many vectors of one row are multiplied at a time, as far as registers reach
//   Codes, Digits          what one register of codes and one of digits become before they are multiplied
//   codes, digits          load one from 4 WIDTH bytes
//   four_codes             load four codes into every lane
//   four_digits            load the four digits at a place of what `spread` wrote into every lane
//   SPREAD, spread         how many bytes four digits become, and the function that writes them
//   add_products           the sums, and in each lane its four codes by its four digits
//   SIGNED                 whether `codes` and `four_codes` take 128 off, because the instruction takes signed bytes
//   widened, multiply_add  float32 or float16 values as float32, and a fused multiply-add
//   narrow                 write float32 values as float16
//   folded                 the sum of a register's lanes: halves are added to each other until one is left
// Sums of products are then the same integers, and float32 arithmetic is done in the order that kernels.h says.
//
// All functions here belong to one file only, and none of the standard library's templates is used: the linker keeps
// one copy of such a function for all files, and it might hold instructions that this CPU lacks.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace chan {
namespace {

#include "pool_lanes.h"
#include "widen_fixed.h"

#define CHAN_INLINE inline __attribute__((always_inline))

constexpr int FOURS = GROUP / FOUR;
constexpr int WORDS_AT_ONCE = 6;
constexpr int64_t AHEAD = 4 << 10, ROW_AHEAD = 256;  // bytes from what is multiplied to what is fetched

template <typename Vector>
CHAN_INLINE Vector larger(Vector one, Vector other) {
    return one > other ? one : other;
}

template <typename Vector, typename Scalar>
CHAN_INLINE Vector loaded(const Scalar* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <typename Vector, typename Scalar>
CHAN_INLINE void store(Scalar* to, Vector vector) {
    std::memcpy(to, &vector, sizeof vector);
}

// Memory of one thread, kept for its next call.
class Scratch {
  public:
    ~Scratch() { std::free(memory_); }
    int8_t* at_least(int64_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            memory_ = static_cast<int8_t*>(std::malloc(static_cast<size_t>(bytes)));
            if (memory_ == nullptr) std::abort();
            size_ = bytes;
        }
        return memory_;
    }

  private:
    int8_t* memory_ = nullptr;
    int64_t size_ = 0;
};

template <class Isa>
struct Lanes {
    using Int = typename Isa::Int;
    using Float = typename Isa::Float;
    static constexpr int WIDTH = Isa::WIDTH;
    static constexpr int PARTS = LANES / WIDTH;  // registers of a block's sums

    // A place in a scan: what the functions below are given, with the digits as `four_digits` reads them.
    struct Scan {
        const uint8_t* codes;
        const uint8_t* const* pointers;  // to vectors of a row; null where they follow each other
        int64_t vectors, stride;         // bytes from a vector to the next
        const Step* program;
        int64_t steps;
        const int8_t* digits;
        int64_t digit_stride;  // bytes from a word or tile to the next
    };

    static constexpr uint8_t ZEROS[WIDTH * FOUR] = {};

    // What signed codes take from the sums with each word: 128 times its digits.
    template <int WORDS>
    static CHAN_INLINE void block_corrections(const Scan& scan, int32_t (&corrections)[WORDS]) {
        static_assert(!Isa::SIGNED || WIDTH * FOUR == GROUP, "a register holds a group of digits");
        for (int w = 0; Isa::SIGNED && w < WORDS; ++w) {
            const int8_t* digits = scan.digits + w * scan.digit_stride;
            Int sums{};
            for (int64_t step = 0; step < scan.steps; ++step) {
                sums <<= scan.program[step].shift;
                sums = Isa::add_products(sums, Isa::codes(ZEROS), Isa::digits(digits + step * GROUP));
            }
            corrections[w] = 0;
            for (int lane = 0; lane < WIDTH; ++lane) corrections[w] -= sums[lane];
        }
    }

    // The same for a tile of words, one a lane.
    static CHAN_INLINE void tile_corrections(const Scan& scan, Int (&corrections)[PARTS]) {
        for (int part = 0; Isa::SIGNED && part < PARTS; ++part) {
            Int sums{};
            for (int64_t step = 0; step < scan.steps; ++step) {
                sums <<= scan.program[step].shift;
                for (int four = 0; four < FOURS; ++four)
                    sums = Isa::add_products(
                        sums, Isa::codes(ZEROS),
                        Isa::digits(scan.digits + ((step * FOURS + four) * PARTS + part) * (WIDTH * FOUR)));
            }
            corrections[part] = -sums;
        }
    }

    // The sums of VECTORS vectors of a block, from `vector` on, with WORDS words.
    template <int VECTORS, int WORDS>
    static CHAN_INLINE void block_sums(const Scan& scan, int64_t vector, const int32_t (&corrections)[WORDS],
                                       Int (&sums)[VECTORS][WORDS][PARTS]) {
        const uint8_t* codes = scan.codes + vector * scan.stride;
        for (int v = 0; v < VECTORS; ++v)
            for (int w = 0; w < WORDS; ++w)
                for (int part = 0; part < PARTS; ++part) sums[v][w][part] = Int{};
        for (int64_t step = 0; step < scan.steps; ++step) {
            if (const int32_t bits = scan.program[step].shift)
                for (int v = 0; v < VECTORS; ++v)
                    for (int w = 0; w < WORDS; ++w)
                        for (int part = 0; part < PARTS; ++part) sums[v][w][part] <<= bits;
            const uint8_t* group = codes + int64_t(scan.program[step].group) * (GROUP * LANES);
            const int8_t* digits = scan.digits + step * (FOURS * Isa::SPREAD);
            for (int v = 0; v < VECTORS; ++v)
                for (int line = 0; line < GROUP * LANES; line += 64)
                    __builtin_prefetch(group + v * scan.stride + AHEAD + line);
#pragma GCC unroll 4
            for (int four = 0; four < FOURS; ++four)
                for (int v = 0; v < VECTORS; ++v) {
                    const uint8_t* here = group + v * scan.stride + four * (LANES * FOUR);
#pragma GCC unroll 4
                    for (int part = 0; part < PARTS; ++part) {
                        const typename Isa::Codes held = Isa::codes(here + part * (WIDTH * FOUR));
#pragma GCC unroll 6
                        for (int w = 0; w < WORDS; ++w)
                            sums[v][w][part] = Isa::add_products(
                                sums[v][w][part], held,
                                Isa::four_digits(digits + w * scan.digit_stride + four * Isa::SPREAD));
                    }
                }
        }
        for (int v = 0; Isa::SIGNED && v < VECTORS; ++v)
            for (int w = 0; w < WORDS; ++w)
                for (int part = 0; part < PARTS; ++part) sums[v][w][part] += corrections[w];
    }

    template <int VECTORS, int WORDS>
    static CHAN_INLINE void largest_of_block(const Scan& scan, int64_t vector, const int32_t (&corrections)[WORDS],
                                             Int (&best)[WORDS][PARTS]) {
        Int sums[VECTORS][WORDS][PARTS];
        block_sums<VECTORS, WORDS>(scan, vector, corrections, sums);
        for (int v = 0; v < VECTORS; ++v)
            for (int w = 0; w < WORDS; ++w)
                for (int part = 0; part < PARTS; ++part) best[w][part] = larger(sums[v][w][part], best[w][part]);
    }

    template <int WORDS>
    static void words_over_row(const Scan& scan, int32_t* out) {
        constexpr int VECTORS = WORDS >= 4 ? 1 : WORDS == 3 ? 2 : WORDS == 2 ? 3 : 4;
        Int best[WORDS][PARTS];
        int32_t corrections[WORDS];
        block_corrections(scan, corrections);
        for (int w = 0; w < WORDS; ++w)
            for (int part = 0; part < PARTS; ++part) best[w][part] = Int{} + INT32_MIN;
        int64_t vector = 0;
        for (; vector + VECTORS <= scan.vectors; vector += VECTORS)
            largest_of_block<VECTORS, WORDS>(scan, vector, corrections, best);
        if (VECTORS > 1)
            for (; vector < scan.vectors; ++vector) largest_of_block<1, WORDS>(scan, vector, corrections, best);
        for (int w = 0; w < WORDS; ++w)
            for (int part = 0; part < PARTS; ++part) store(out + w * LANES + part * WIDTH, best[w][part]);
    }

    template <int WORDS>
    static void words_over_query(const Scan& scan, const float* scale, const float* offset, float* out) {
        int32_t corrections[WORDS];
        block_corrections(scan, corrections);
        for (int64_t vector = 0; vector < scan.vectors; ++vector) {
            Int sums[1][WORDS][PARTS];
            block_sums<1, WORDS>(scan, vector, corrections, sums);
            for (int part = 0; part < PARTS; ++part) {
                float* place = out + vector * LANES + part * WIDTH;
                Float best = loaded<Float>(place);
                for (int w = 0; w < WORDS; ++w)
                    best = larger(scale[w] * __builtin_convertvector(sums[0][w][part], Float) + offset[w], best);
                store(place, best);
            }
        }
    }

    static Scan block_scan(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                           const int8_t* digits, int64_t words) {
        const int64_t each = steps * FOURS * Isa::SPREAD;
        return {codes, nullptr, vectors, width * LANES, program, steps, Isa::spread(digits, words * steps * FOURS), each};
    }

    static void block_over_row(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program,
                               int64_t steps, const int8_t* digits, int64_t words, int32_t* out) {
        Scan scan = block_scan(codes, vectors, width, program, steps, digits, words);
        const int64_t tiles = (words + WORDS_AT_ONCE - 1) / WORDS_AT_ONCE;
        for (int64_t tile = 0; tile < tiles; ++tile) {  // as even as can be
            const int64_t first = words * tile / tiles, count = words * (tile + 1) / tiles - first;
            switch (count) {
                case 1: words_over_row<1>(scan, out); break;
                case 2: words_over_row<2>(scan, out); break;
                case 3: words_over_row<3>(scan, out); break;
                case 4: words_over_row<4>(scan, out); break;
                case 5: words_over_row<5>(scan, out); break;
                default: words_over_row<6>(scan, out);
            }
            scan.digits += count * scan.digit_stride;
            out += count * LANES;
        }
    }

    static void block_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program,
                                 int64_t steps, const int8_t* digits, int64_t words, const float* scale,
                                 const float* offset, float* out) {
        Scan scan = block_scan(codes, vectors, width, program, steps, digits, words);
        for (int64_t i = 0; i < vectors * LANES; ++i) out[i] = -__builtin_inff();
        const int64_t tiles = (words + WORDS_AT_ONCE - 1) / WORDS_AT_ONCE;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t first = words * tile / tiles, count = words * (tile + 1) / tiles - first;
            switch (count) {
                case 1: words_over_query<1>(scan, scale, offset, out); break;
                case 2: words_over_query<2>(scan, scale, offset, out); break;
                case 3: words_over_query<3>(scan, scale, offset, out); break;
                case 4: words_over_query<4>(scan, scale, offset, out); break;
                case 5: words_over_query<5>(scan, scale, offset, out); break;
                default: words_over_query<6>(scan, scale, offset, out);
            }
            scan.digits += count * scan.digit_stride;
            scale += count;
            offset += count;
        }
    }

    // The sums of VECTORS vectors of a row with one tile of words.
    template <int VECTORS>
    static CHAN_INLINE void tile_sums(const Scan& scan, int64_t vector, const Int (&corrections)[PARTS],
                                      Int (&sums)[VECTORS][PARTS]) {
        const uint8_t* codes[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            codes[v] = scan.pointers ? scan.pointers[vector + v] : scan.codes + (vector + v) * scan.stride;
            for (int part = 0; part < PARTS; ++part) sums[v][part] = Int{};
        }
        for (int64_t step = 0; step < scan.steps; ++step) {
            const int32_t number = scan.program[step].group;
            if (const int32_t bits = scan.program[step].shift)
                for (int v = 0; v < VECTORS; ++v)
                    for (int part = 0; part < PARTS; ++part) sums[v][part] <<= bits;
            const int64_t at = int64_t(number) * GROUP;
            const int8_t* digits = scan.digits + step * (GROUP * LANES);
            if ((number & 3) == 0)  // a cache line of each
                for (int v = 0; v < VECTORS; ++v) __builtin_prefetch(codes[v] + at + ROW_AHEAD);
#pragma GCC unroll 4
            for (int four = 0; four < FOURS; ++four) {
                typename Isa::Digits held[PARTS];
#pragma GCC unroll 4
                for (int part = 0; part < PARTS; ++part)
                    held[part] = Isa::digits(digits + (four * PARTS + part) * (WIDTH * FOUR));
#pragma GCC unroll 6
                for (int v = 0; v < VECTORS; ++v) {
                    const typename Isa::Codes code = Isa::four_codes(codes[v] + at + four * FOUR);
#pragma GCC unroll 4
                    for (int part = 0; part < PARTS; ++part)
                        sums[v][part] = Isa::add_products(sums[v][part], code, held[part]);
                }
            }
        }
        for (int v = 0; Isa::SIGNED && v < VECTORS; ++v)
            for (int part = 0; part < PARTS; ++part) sums[v][part] += corrections[part];
    }

    template <int VECTORS>
    static CHAN_INLINE void store_sums(const Scan& scan, int64_t vector, const Int (&corrections)[PARTS],
                                       int64_t places, Int (&highest)[PARTS], int32_t* out) {
        Int sums[VECTORS][PARTS];
        tile_sums<VECTORS>(scan, vector, corrections, sums);
        for (int v = 0; v < VECTORS; ++v)
            for (int part = 0; part < PARTS; ++part) {
                highest[part] = larger(sums[v][part], highest[part]);
                store(out + (vector + v) * places + part * WIDTH, sums[v][part]);
            }
    }

    static void row_sums(const uint8_t* const* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                         const int8_t* digits, int64_t tiles, int32_t* highest, int32_t* out) {
        Scan scan = {nullptr, codes, vectors, width, program, steps, digits, steps * GROUP * LANES};
        for (int64_t tile = 0; tile < tiles; ++tile, scan.digits += scan.digit_stride, out += LANES, highest += LANES) {
            Int corrections[PARTS], most[PARTS];
            tile_corrections(scan, corrections);
            for (int part = 0; part < PARTS; ++part) most[part] = loaded<Int>(highest + part * WIDTH);
            int64_t vector = 0;
            for (; vector + Isa::ROW_VECTORS <= vectors; vector += Isa::ROW_VECTORS)
                store_sums<Isa::ROW_VECTORS>(scan, vector, corrections, tiles * LANES, most, out);
            for (; vector < vectors; ++vector) store_sums<1>(scan, vector, corrections, tiles * LANES, most, out);
            for (int part = 0; part < PARTS; ++part) store(highest + part * WIDTH, most[part]);
        }
    }

    template <int VECTORS>
    static CHAN_INLINE void largest_of_tile(const Scan& scan, int64_t vector, const Int (&corrections)[PARTS],
                                            const float* scale, const float* offset, float* out) {
        Int sums[VECTORS][PARTS];
        tile_sums<VECTORS>(scan, vector, corrections, sums);
        for (int v = 0; v < VECTORS; ++v)
            for (int part = 0; part < PARTS; ++part) {
                const Float values = loaded<Float>(scale + part * WIDTH) *
                                         __builtin_convertvector(sums[v][part], Float) +
                                     loaded<Float>(offset + part * WIDTH);
                for (int lane = 0; lane < WIDTH; ++lane) out[v] = values[lane] > out[v] ? values[lane] : out[v];
            }
    }

    static void row_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program,
                               int64_t steps, const int8_t* digits, int64_t tiles, const float* scale,
                               const float* offset, float* out) {
        Scan scan = {codes, nullptr, vectors, width, program, steps, digits, steps * GROUP * LANES};
        for (int64_t i = 0; i < vectors; ++i) out[i] = -__builtin_inff();
        for (int64_t tile = 0; tile < tiles; ++tile, scan.digits += scan.digit_stride) {
            Int corrections[PARTS];
            tile_corrections(scan, corrections);
            int64_t vector = 0;
            for (; vector + Isa::ROW_VECTORS <= vectors; vector += Isa::ROW_VECTORS)
                largest_of_tile<Isa::ROW_VECTORS>(scan, vector, corrections, scale, offset, out + vector);
            for (; vector < vectors; ++vector)
                largest_of_tile<1>(scan, vector, corrections, scale, offset, out + vector);
            scale += LANES;
            offset += LANES;
        }
    }

    template <int COUNT>
    static CHAN_INLINE void some_pairs(const uint8_t* const* codes, const int8_t* const* digits, int64_t width,
                                       int32_t* out) {
        constexpr int64_t BYTES = WIDTH * FOUR;
        Int sums[COUNT] = {};
        const auto add = [&](int i, const uint8_t* code, const int8_t* digit) {
            const typename Isa::Digits held = Isa::digits(digit);
            sums[i] = Isa::add_products(sums[i], Isa::codes(code), held);
            if (Isa::SIGNED) sums[i] -= Isa::add_products(Int{}, Isa::codes(ZEROS), held);
        };
        int64_t at = 0;
        for (; at + BYTES <= width; at += BYTES)
            for (int i = 0; i < COUNT; ++i) add(i, codes[i] + at, digits[i] + at);
        for (int i = 0; i < COUNT && at < width; ++i) {
            uint8_t code[BYTES] = {};
            int8_t digit[BYTES] = {};
            std::memcpy(code, codes[i] + at, static_cast<size_t>(width - at));
            std::memcpy(digit, digits[i] + at, static_cast<size_t>(width - at));
            add(i, code, digit);
        }
        for (int i = 0; i < COUNT; ++i) {
            out[i] = 0;
            for (int lane = 0; lane < WIDTH; ++lane) out[i] += sums[i][lane];
        }
    }

    static void pair_sums(const uint8_t* const* codes, const int8_t* const* digits, int64_t pairs, int64_t width,
                          int32_t* out) {
        int64_t i = 0;
        for (; i + PAIRS_AT_ONCE <= pairs; i += PAIRS_AT_ONCE)
            some_pairs<PAIRS_AT_ONCE>(codes + i, digits + i, width, out + i);
        for (; i < pairs; ++i) some_pairs<1>(codes + i, digits + i, width, out + i);
    }

    static void lead(const int32_t* sums, int64_t vectors, int64_t places, int32_t* highest, int32_t* leader) {
        for (int64_t place = 0; place < places; place += WIDTH) {
            Int most = loaded<Int>(sums + place), at = {};
            for (int64_t v = 1; v < vectors; ++v) {
                const Int mine = loaded<Int>(sums + v * places + place);
                at = mine > most ? Int{} + static_cast<int32_t>(v) : at;
                most = larger(mine, most);
            }
            store(highest + place, most);
            store(leader + place, at);
        }
    }

    // Sixteen partial sums of an inner product, of VECTORS vectors with WORDS words.
    template <int VECTORS, int WORDS, typename Value>
    static void some_products(const Value* vectors, int64_t dim, const float* query, int64_t padded, int64_t words,
                              float* out) {
        Float sums[VECTORS][WORDS][PARTS] = {};
        for (int64_t at = 0; at < dim; at += 16) {
            Value last[VECTORS][16];  // the vectors' last elements, and zeros
            const Value* from = vectors + at;
            int64_t stride = dim;
            if (at + 16 > dim) {
                std::memset(last, 0, sizeof last);
                for (int v = 0; v < VECTORS; ++v)
                    std::memcpy(last[v], from + v * dim, static_cast<size_t>(dim - at) * sizeof(Value));
                from = last[0];
                stride = 16;
            }
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; ++part)
                for (int v = 0; v < VECTORS; ++v) {
                    const Float held = Isa::widened(from + v * stride + part * WIDTH);
                    for (int w = 0; w < WORDS; ++w)
                        sums[v][w][part] = Isa::multiply_add(
                            held, loaded<Float>(query + w * padded + at + part * WIDTH), sums[v][w][part]);
                }
        }
        for (int v = 0; v < VECTORS; ++v)
            for (int w = 0; w < WORDS; ++w) {
                for (int half = PARTS / 2; half; half /= 2)
                    for (int part = 0; part < half; ++part) sums[v][w][part] += sums[v][w][part + half];
                out[v * words + w] = Isa::folded(sums[v][w][0]);
            }
    }

    template <typename Value>
    static void products(const Value* vectors, int64_t count, int64_t dim, const float* query, int64_t words,
                         int64_t padded, float* out) {
        for (int64_t vector = 0; vector < count;) {
            const bool pair = count - vector >= 2;
            const Value* mine = vectors + vector * dim;
            float* here = out + vector * words;
            const int64_t tiles = (words + 2) / 3;
            for (int64_t tile = 0; tile < tiles; ++tile) {  // as even as can be
                const int64_t word = words * tile / tiles, some = words * (tile + 1) / tiles - word;
                const float* theirs = query + word * padded;
                if (some == 3)
                    pair ? some_products<2, 3>(mine, dim, theirs, padded, words, here + word)
                         : some_products<1, 3>(mine, dim, theirs, padded, words, here + word);
                else if (some == 2)
                    pair ? some_products<2, 2>(mine, dim, theirs, padded, words, here + word)
                         : some_products<1, 2>(mine, dim, theirs, padded, words, here + word);
                else
                    pair ? some_products<2, 1>(mine, dim, theirs, padded, words, here + word)
                         : some_products<1, 1>(mine, dim, theirs, padded, words, here + word);
            }
            vector += pair ? 2 : 1;
        }
    }

    static void pair_products(const float* const* left, const float* const* right, int64_t pairs, int64_t dim,
                              float* out) {
        for (int64_t i = 0; i < pairs; ++i) some_products<1, 1>(left[i], dim, right[i], 0, 1, out + i);
    }

    static double dot(const float* left, const float* right, int64_t dim) {
        double lanes[8] = {};  // products of two float32 are exact in float64
        int64_t at = 0;
        for (; at + 8 <= dim; at += 8)
            for (int lane = 0; lane < 8; ++lane) lanes[lane] += double(left[at + lane]) * double(right[at + lane]);
        for (; at < dim; ++at) lanes[at % 8] += double(left[at]) * double(right[at]);
        for (int half = 4; half; half /= 2)
            for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
        return lanes[0];
    }

    static void widen(const uint16_t* half, int64_t count, float* out) {
        int64_t at = 0;
        for (; at + WIDTH <= count; at += WIDTH) store(out + at, Isa::widened(half + at));
        if (at < count) {
            uint16_t last[WIDTH] = {};
            std::memcpy(last, half + at, static_cast<size_t>(count - at) * sizeof *last);
            const Float values = Isa::widened(last);
            std::memcpy(out + at, &values, static_cast<size_t>(count - at) * sizeof *out);
        }
    }

    static void narrow(const float* values, int64_t count, uint16_t* half) {
        int64_t at = 0;
        for (; at + WIDTH <= count; at += WIDTH) Isa::narrow(Isa::widened(values + at), half + at);
        if (at < count) {
            float last[WIDTH] = {};
            uint16_t halves[WIDTH];
            std::memcpy(last, values + at, static_cast<size_t>(count - at) * sizeof *last);
            Isa::narrow(Isa::widened(last), halves);
            std::memcpy(half + at, halves, static_cast<size_t>(count - at) * sizeof *half);
        }
    }

    static constexpr Kernels kernels(const char* name) {
        return {name,           block_over_row, block_over_query, row_sums,
                row_over_query, pair_sums,      lead,             products<float>, products<uint16_t>,
                pair_products,  dot,            widen,            narrow,          widen_fixed,
                Pool<WIDTH>::lanes};
    }
};

}  // namespace
}  // namespace chan
