// AVX-512 VNNI: vpdpbusd multiplies 64 bytes by 64 bytes and adds fours of them into 16 sums.
//
// In a block a register of codes holds four codes of each of 16 gallery rows, and four digits of a word are broadcast to
// all of them: every lane is used, whatever the number of words, and what follows (maxima, pooling) is vertical. In a
// single row a register of digits holds 16 words, and four codes are broadcast. Of a pair of single vectors two registers
// hold 64 codes and 64 digits.

#include "kernels.h"
#include "target.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 9)

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC's own header does it on purpose
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
CHAN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace chan {
namespace {

#include "pool_lanes.h"
#include "widen_fixed.h"

// Registers of sums at a time: vpdpbusd takes 4 or 5 cycles, and one or two start in each.
constexpr int SUMS = 14;
constexpr int AHEAD = 4 << 10;  // bytes from what is multiplied to what is fetched

__m512i broadcast_four(const void* four) {
    int32_t value;
    std::memcpy(&value, four, sizeof value);
    return _mm512_set1_epi32(value);
}

// The sums of VECTORS vectors of a block, `width * LANES` bytes apart, with WORDS words.
template <int VECTORS, int WORDS>
inline __attribute__((always_inline)) void block_sums(const uint8_t* codes, int64_t stride, const Step* program,
                                                      int64_t steps, const int8_t* digits,
                                                      __m512i (&sums)[VECTORS][WORDS]) {
    for (int v = 0; v < VECTORS; ++v)
        for (int w = 0; w < WORDS; ++w) sums[v][w] = _mm512_setzero_si512();
    for (int64_t step = 0; step < steps; ++step) {
        if (program[step].shift) {
            const __m128i bits = _mm_cvtsi32_si128(program[step].shift);
            for (int v = 0; v < VECTORS; ++v)
                for (int w = 0; w < WORDS; ++w) sums[v][w] = _mm512_sll_epi32(sums[v][w], bits);
        }
        const uint8_t* group = codes + int64_t(program[step].group) * (GROUP * LANES);
        const int8_t* mine = digits + step * GROUP;
        for (int v = 0; v < VECTORS; ++v)
            for (int line = 0; line < GROUP * LANES; line += 64)
                _mm_prefetch(reinterpret_cast<const char*>(group + v * stride + AHEAD + line), _MM_HINT_T0);
#pragma GCC unroll 4
        for (int four = 0; four < GROUP / FOUR; ++four) {
            __m512i held[VECTORS];
            for (int v = 0; v < VECTORS; ++v)
                held[v] = _mm512_loadu_si512(group + v * stride + four * (LANES * FOUR));
            for (int w = 0; w < WORDS; ++w) {
                const __m512i digit = broadcast_four(mine + w * steps * GROUP + four * FOUR);
                for (int v = 0; v < VECTORS; ++v) sums[v][w] = _mm512_dpbusd_epi32(sums[v][w], held[v], digit);
            }
        }
    }
}

template <int WORDS>
void block_tile_over_row(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                         const int8_t* digits, int32_t* out) {
    constexpr int VECTORS = std::max(1, std::min(4, SUMS / WORDS));
    __m512i best[WORDS], sums[VECTORS][WORDS], last[1][WORDS];
    for (int w = 0; w < WORDS; ++w) best[w] = _mm512_set1_epi32(std::numeric_limits<int32_t>::min());
    int64_t vector = 0;
    for (; vector + VECTORS <= vectors; vector += VECTORS) {
        block_sums<VECTORS, WORDS>(codes + vector * width * LANES, width * LANES, program, steps, digits, sums);
        for (int v = 0; v < VECTORS; ++v)
            for (int w = 0; w < WORDS; ++w) best[w] = _mm512_max_epi32(best[w], sums[v][w]);
    }
    for (; vector < vectors; ++vector) {
        block_sums<1, WORDS>(codes + vector * width * LANES, width * LANES, program, steps, digits, last);
        for (int w = 0; w < WORDS; ++w) best[w] = _mm512_max_epi32(best[w], last[0][w]);
    }
    for (int w = 0; w < WORDS; ++w) _mm512_storeu_si512(out + w * LANES, best[w]);
}

template <int WORDS>
void block_tile_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                           const int8_t* digits, const float* scale, const float* offset, float* out) {
    __m512i sums[1][WORDS];
    for (int64_t vector = 0; vector < vectors; ++vector) {
        block_sums<1, WORDS>(codes + vector * width * LANES, width * LANES, program, steps, digits, sums);
        __m512 best = _mm512_loadu_ps(out + vector * LANES);
        for (int w = 0; w < WORDS; ++w) {
            const __m512 scaled = _mm512_mul_ps(_mm512_set1_ps(scale[w]), _mm512_cvtepi32_ps(sums[0][w]));
            best = _mm512_max_ps(best, _mm512_add_ps(scaled, _mm512_set1_ps(offset[w])));
        }
        _mm512_storeu_ps(out + vector * LANES, best);
    }
}

// Call `function.run<N>()` for the N in 1..MOST that is `count`.
template <int MOST, typename Function>
void with_count(int64_t count, const Function& function) {
    if constexpr (MOST > 0) {
        if (count == MOST)
            function.template run<MOST>();
        else
            with_count<MOST - 1>(count, function);
    }
}

// Split the words evenly into as few tiles of at most MOST as there can be: `each(first, count)`.
template <int MOST, typename Each>
void in_tiles(int64_t words, const Each& each) {
    const int64_t tiles = (words + MOST - 1) / MOST;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = words * tile / tiles;
        each(first, words * (tile + 1) / tiles - first);
    }
}

struct OverRow {
    const uint8_t* codes;
    int64_t vectors, width;
    const Step* program;
    int64_t steps;
    const int8_t* digits;
    int32_t* out;
    template <int WORDS>
    void run() const {
        block_tile_over_row<WORDS>(codes, vectors, width, program, steps, digits, out);
    }
};

void block_over_row(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                    const int8_t* digits, int64_t words, int32_t* out) {
    in_tiles<SUMS>(words, [&](int64_t first, int64_t count) {
        with_count<SUMS>(count, OverRow{codes, vectors, width, program, steps, digits + first * steps * GROUP,
                                  out + first * LANES});
    });
}

struct OverQuery {
    const uint8_t* codes;
    int64_t vectors, width;
    const Step* program;
    int64_t steps;
    const int8_t* digits;
    const float *scale, *offset;
    float* out;
    template <int WORDS>
    void run() const {
        block_tile_over_query<WORDS>(codes, vectors, width, program, steps, digits, scale, offset, out);
    }
};

void block_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                      const int8_t* digits, int64_t words, const float* scale, const float* offset, float* out) {
    std::fill(out, out + vectors * LANES, -std::numeric_limits<float>::infinity());
    in_tiles<SUMS>(words, [&](int64_t first, int64_t count) {
        with_count<SUMS>(count, OverQuery{codes, vectors, width, program, steps, digits + first * steps * GROUP,
                                    scale + first, offset + first, out});
    });
}

constexpr int ROW_VECTORS = 10;         // of a row at a time, as far as pointers to them fit into registers
constexpr int64_t ROW_AHEAD = 3 << 10;  // bytes of all of them from what is multiplied to what is fetched
constexpr int TURNS_AHEAD = 3;          // where vectors are not much longer than that: those of so many turns later

// The sums of VECTORS vectors of a row with one tile of words. TURNS_AHEAD * VECTORS pointers after `codes` are to those
// that are multiplied next.
template <int VECTORS>
inline __attribute__((always_inline)) void tile_sums(const uint8_t* const* codes, int64_t width, const Step* program,
                                                     int64_t steps, const int8_t* digits, __m512i (&sums)[VECTORS]) {
    constexpr int64_t FAR = ROW_AHEAD / VECTORS / 64 * 64;
    const bool is_long = 2 * FAR < width;
    const int64_t ahead = is_long ? FAR : width;
    const uint8_t* const* later = codes + (is_long ? 1 : TURNS_AHEAD) * VECTORS;
    const uint8_t* mine_of[VECTORS];
    for (int v = 0; v < VECTORS; ++v) mine_of[v] = codes[v];
    for (int v = 0; v < VECTORS; ++v) sums[v] = _mm512_setzero_si512();
    for (int64_t step = 0; step < steps; ++step) {
        if (program[step].shift) {
            const __m128i bits = _mm_cvtsi32_si128(program[step].shift);
            for (int v = 0; v < VECTORS; ++v) sums[v] = _mm512_sll_epi32(sums[v], bits);
        }
        const int64_t at = int64_t(program[step].group) * GROUP;
        const int8_t* mine = digits + step * (GROUP * LANES);
        if ((program[step].group & 3) == 0) {  // a cache line of each, and at the end of those that come later
            if (at + ahead < width)
                for (int v = 0; v < VECTORS; ++v)
                    _mm_prefetch(reinterpret_cast<const char*>(mine_of[v] + at + ahead), _MM_HINT_T1);
            else
                for (int v = 0; v < VECTORS; ++v)
                    _mm_prefetch(reinterpret_cast<const char*>(later[v] + at + ahead - width), _MM_HINT_T1);
        }
#pragma GCC unroll 4
        for (int four = 0; four < GROUP / FOUR; ++four) {
            const __m512i digit = _mm512_loadu_si512(mine + four * (LANES * FOUR));
            for (int v = 0; v < VECTORS; ++v)
                sums[v] = _mm512_dpbusd_epi32(sums[v], broadcast_four(mine_of[v] + at + four * FOUR), digit);
        }
    }
}

struct RowSums {
    const uint8_t* const* codes;
    int64_t width;
    const Step* program;
    int64_t steps;
    const int8_t* digits;
    int64_t places;
    int32_t *highest, *out;
    template <int VECTORS>
    void run() const {
        __m512i sums[VECTORS], most = _mm512_loadu_si512(highest);
        tile_sums<VECTORS>(codes, width, program, steps, digits, sums);
        for (int v = 0; v < VECTORS; ++v) {
            most = _mm512_max_epi32(most, sums[v]);
            _mm512_storeu_si512(out + v * places, sums[v]);
        }
        _mm512_storeu_si512(highest, most);
    }
};

void row_sums(const uint8_t* const* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
              const int8_t* digits, int64_t tiles, int32_t* highest, int32_t* out) {
    static_assert(TURNS_AHEAD * ROW_VECTORS <= NEXT);
    const int64_t places = tiles * LANES, pieces = (vectors + ROW_VECTORS - 1) / ROW_VECTORS;
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t first = vectors * piece / pieces, count = vectors * (piece + 1) / pieces - first;
            with_count<ROW_VECTORS>(count, RowSums{codes + first, width, program, steps,
                                                   digits + tile * steps * GROUP * LANES, places,
                                                   highest + tile * LANES, out + first * places + tile * LANES});
        }
}

template <int VECTORS>
inline void largest_of_tile(const uint8_t* codes, int64_t width, const Step* program, int64_t steps,
                            const int8_t* digits, __m512 scale, __m512 offset, float* out) {
    const uint8_t* at[(TURNS_AHEAD + 1) * VECTORS];
    for (int v = 0; v < (TURNS_AHEAD + 1) * VECTORS; ++v) at[v] = codes + v * width;
    __m512i sums[VECTORS];
    tile_sums<VECTORS>(at, width, program, steps, digits, sums);
    for (int v = 0; v < VECTORS; ++v) {
        const __m512 values = _mm512_add_ps(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(sums[v])), offset);
        out[v] = std::max(out[v], _mm512_reduce_max_ps(values));
    }
}

void row_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                    const int8_t* digits, int64_t tiles, const float* scale, const float* offset, float* out) {
    std::fill(out, out + vectors, -std::numeric_limits<float>::infinity());
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int8_t* mine = digits + tile * steps * GROUP * LANES;
        const __m512 scales = _mm512_loadu_ps(scale + tile * LANES), offsets = _mm512_loadu_ps(offset + tile * LANES);
        int64_t vector = 0;
        for (; vector + ROW_VECTORS <= vectors; vector += ROW_VECTORS)
            largest_of_tile<ROW_VECTORS>(codes + vector * width, width, program, steps, mine, scales, offsets,
                                         out + vector);
        for (; vector < vectors; ++vector)
            largest_of_tile<1>(codes + vector * width, width, program, steps, mine, scales, offsets, out + vector);
    }
}

struct PairSums {
    const uint8_t* const* codes;
    const int8_t* const* digits;
    int64_t width;
    int32_t* out;
    template <int COUNT>
    void run() const {
        __m512i sums[COUNT];
        for (int i = 0; i < COUNT; ++i) sums[i] = _mm512_setzero_si512();
        int64_t at = 0;
        for (; at + 64 <= width; at += 64)
            for (int i = 0; i < COUNT; ++i)
                sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_loadu_si512(codes[i] + at),
                                              _mm512_loadu_si512(digits[i] + at));
        const __mmask64 left = (__mmask64(1) << (width - at)) - 1;
        for (int i = 0; i < COUNT && left; ++i)
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_maskz_loadu_epi8(left, codes[i] + at),
                                          _mm512_maskz_loadu_epi8(left, digits[i] + at));
        for (int i = 0; i < COUNT; ++i) out[i] = _mm512_reduce_add_epi32(sums[i]);
    }
};

void pair_sums(const uint8_t* const* codes, const int8_t* const* digits, int64_t pairs, int64_t width, int32_t* out) {
    in_tiles<PAIRS_AT_ONCE>(pairs, [&](int64_t first, int64_t count) {
        with_count<PAIRS_AT_ONCE>(count, PairSums{codes + first, digits + first, width, out + first});
    });
}

void lead(const int32_t* sums, int64_t vectors, int64_t places, int32_t* highest, int32_t* leader) {
    for (int64_t tile = 0; tile < places; tile += LANES) {
        __m512i most = _mm512_loadu_si512(sums + tile), at = _mm512_setzero_si512();
        for (int64_t v = 1; v < vectors; ++v) {
            const __m512i mine = _mm512_loadu_si512(sums + v * places + tile);
            at = _mm512_mask_set1_epi32(at, _mm512_cmpgt_epi32_mask(mine, most), static_cast<int32_t>(v));
            most = _mm512_max_epi32(most, mine);
        }
        _mm512_storeu_si512(highest + tile, most);
        _mm512_storeu_si512(leader + tile, at);
    }
}

__m512 load(const float* values) { return _mm512_loadu_ps(values); }
__m512 load(const uint16_t* values) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}
__m512 load_some(const float* values, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, values); }
__m512 load_some(const uint16_t* values, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, values));
}

float folded(__m512 lanes) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

template <int VECTORS, int WORDS>
inline __attribute__((always_inline)) void add_products(const __m512 (&held)[VECTORS], const float* query,
                                                        int64_t padded, __m512 (&sums)[VECTORS][WORDS]) {
    for (int w = 0; w < WORDS; ++w) {
        const __m512 other = _mm512_loadu_ps(query + w * padded);
        for (int v = 0; v < VECTORS; ++v) sums[v][w] = _mm512_fmadd_ps(held[v], other, sums[v][w]);
    }
}

template <int VECTORS, int WORDS, typename Value>
void some_products(const Value* vectors, int64_t dim, const float* query, int64_t padded, int64_t words, float* out) {
    __m512 sums[VECTORS][WORDS];
    for (auto& row : sums)
        for (auto& sum : row) sum = _mm512_setzero_ps();
    const int64_t whole = dim / 16 * 16;
    __m512 held[VECTORS];
    for (int64_t at = 0; at < whole; at += 16) {
        for (int v = 0; v < VECTORS; ++v) {
            held[v] = load(vectors + v * dim + at);
            _mm_prefetch(reinterpret_cast<const char*>(vectors + (v + 2 * VECTORS) * dim + at), _MM_HINT_T1);
        }
        add_products<VECTORS, WORDS>(held, query + at, padded, sums);
    }
    if (whole < dim) {
        const __mmask16 mask = static_cast<__mmask16>((1u << (dim - whole)) - 1);
        for (int v = 0; v < VECTORS; ++v) held[v] = load_some(vectors + v * dim + whole, mask);
        add_products<VECTORS, WORDS>(held, query + whole, padded, sums);
    }
    for (int v = 0; v < VECTORS; ++v)
        for (int w = 0; w < WORDS; ++w) out[v * words + w] = folded(sums[v][w]);
}

constexpr int PRODUCT_VECTORS = 4, PRODUCT_WORDS = 6;  // their sums fill 24 registers

template <typename Value>
struct WordProducts {
    const Value* vectors;
    int64_t count, dim;
    const float* query;
    int64_t padded, words;
    float* out;
    template <int WORDS>
    void run() const {
        int64_t vector = 0;
        for (; vector + PRODUCT_VECTORS <= count; vector += PRODUCT_VECTORS)
            some_products<PRODUCT_VECTORS, WORDS>(vectors + vector * dim, dim, query, padded, words, out + vector * words);
        for (; vector < count; ++vector)
            some_products<1, WORDS>(vectors + vector * dim, dim, query, padded, words, out + vector * words);
    }
};

template <typename Value>
void all_products(const Value* vectors, int64_t count, int64_t dim, const float* query, int64_t words, int64_t padded,
                  float* out) {
    in_tiles<PRODUCT_WORDS>(words, [&](int64_t first, int64_t some) {
        with_count<PRODUCT_WORDS>(
            some, WordProducts<Value>{vectors, count, dim, query + first * padded, padded, words, out + first});
    });
}

struct PairProducts {
    const float *const *left, *const *right;
    int64_t dim;
    float* out;
    template <int COUNT>
    void run() const {
        __m512 sums[COUNT];
        for (int i = 0; i < COUNT; ++i) sums[i] = _mm512_setzero_ps();
        const int64_t whole = dim / 16 * 16;
        for (int64_t at = 0; at < whole; at += 16)
            for (int i = 0; i < COUNT; ++i)
                sums[i] = _mm512_fmadd_ps(_mm512_loadu_ps(left[i] + at), _mm512_loadu_ps(right[i] + at), sums[i]);
        const __mmask16 rest = static_cast<__mmask16>((1u << (dim - whole)) - 1);
        for (int i = 0; i < COUNT && rest; ++i)
            sums[i] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, left[i] + whole),
                                      _mm512_maskz_loadu_ps(rest, right[i] + whole), sums[i]);
        for (int i = 0; i < COUNT; ++i) out[i] = folded(sums[i]);
    }
};

void pair_products(const float* const* left, const float* const* right, int64_t pairs, int64_t dim, float* out) {
    in_tiles<PAIRS_AT_ONCE>(pairs, [&](int64_t first, int64_t count) {
        with_count<PAIRS_AT_ONCE>(count, PairProducts{left + first, right + first, dim, out + first});
    });
}

double dot(const float* left, const float* right, int64_t dim) {
    __m512d sum = _mm512_setzero_pd();
    int64_t at = 0;
    for (; at + 8 <= dim; at += 8)
        sum = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(left + at)), _mm512_cvtps_pd(_mm256_loadu_ps(right + at)),
                              sum);
    if (at < dim) {
        const __mmask8 mask = static_cast<__mmask8>((1u << (dim - at)) - 1);
        sum = _mm512_mask3_fmadd_pd(_mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, left + at)),
                                    _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, right + at)), sum, mask);
    }
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(sum), _mm512_extractf64x4_pd(sum, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

void widen(const uint16_t* half, int64_t count, float* out) {
    int64_t at = 0;
    for (; at + 16 <= count; at += 16) _mm512_storeu_ps(out + at, load(half + at));
    if (at < count) {
        const __mmask16 mask = static_cast<__mmask16>((1u << (count - at)) - 1);
        _mm512_mask_storeu_ps(out + at, mask, load_some(half + at, mask));
    }
}

void narrow(const float* values, int64_t count, uint16_t* half) {
    int64_t at = 0;
    for (; at + 16 <= count; at += 16) {
        const __m256i halves = _mm512_cvtps_ph(load(values + at), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(half + at), halves);
    }
    if (at < count) {
        const __mmask16 mask = static_cast<__mmask16>((1u << (count - at)) - 1);
        const __m512 last = load_some(values + at, mask);
        _mm256_mask_storeu_epi16(half + at, mask, _mm512_cvtps_ph(last, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

const Kernels KERNELS = {"avx512_vnni",  block_over_row, block_over_query,     row_sums,
                         row_over_query, pair_sums,      lead,                 all_products<float>,
                         all_products<uint16_t>, pair_products, dot, widen, narrow, widen_fixed, Pool<LANES>::lanes};

}  // namespace

const Kernels* avx512_kernels() {
    const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    return there ? &KERNELS : nullptr;
}

}  // namespace chan

CHAN_TARGET_END

#else

namespace chan {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace chan

#endif
