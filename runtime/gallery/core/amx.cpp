// AMX: a tile holds 16 rows of 64 bytes, and tdpbsud or tdpbusd multiplies two of them into 16 x 16 sums.
//
// Codes of a block, and digits of a tile of words, lie just as the second operand wants them: four steps of a program
// are its 16 rows, where their groups follow each other. The first operand's rows are the words' digits of a block, or
// the vectors of one gallery row. What is left of four steps is multiplied step by step, by tiles a quarter as deep.
//
// It ran on one Xeon, by hand, with AVX-512's results; the tests run all but the instructions (CHAN_EMULATED_TILES). So
// it is used only after it gave AVX-512's results for a small block.

#include "kernels.h"
#include "target.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 9)

CHAN_TARGET("avx512f")

#include <immintrin.h>

#include <cstdlib>
#include <cstring>

namespace chan {
namespace {

constexpr int ROWS = 16, DEEP = 64;  // of a tile; a shallow one has GROUP bytes a row
constexpr int64_t STEPS = DEEP / GROUP;
// Numbers of tiles: 0 to 3 hold sums, 4 and 5 the deep operands, 6 and 7 the shallow ones.
constexpr int SUMS = 4;

struct alignas(64) Shape {  // what ldtilecfg reads
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

#ifdef CHAN_EMULATED_TILES
struct Emulated {
    Shape shape;
    uint8_t tiles[8][ROWS][DEEP];
};
thread_local Emulated emulated;

void configure(const Shape& shape) {
    emulated.shape = shape;
    std::memset(emulated.tiles, 0, sizeof emulated.tiles);
}
void emulate_load(int tile, const void* from, int64_t stride) {
    for (int row = 0; row < emulated.shape.rows[tile]; ++row)
        std::memcpy(emulated.tiles[tile][row], static_cast<const char*>(from) + row * stride,
                    emulated.shape.bytes[tile]);
}
void emulate_store(int tile, void* to, int64_t stride) {
    for (int row = 0; row < emulated.shape.rows[tile]; ++row)
        std::memcpy(static_cast<char*>(to) + row * stride, emulated.tiles[tile][row], emulated.shape.bytes[tile]);
}
template <typename Left, typename Right>
void emulate_products(int sums, int left, int right) {
    const Shape& shape = emulated.shape;
    if (shape.rows[sums] != shape.rows[left] || shape.bytes[left] != shape.rows[right] * FOUR) std::abort();
    for (int row = 0; row < shape.rows[sums]; ++row)
        for (int lane = 0; lane < LANES; ++lane) {
            int32_t sum;
            std::memcpy(&sum, emulated.tiles[sums][row] + lane * FOUR, sizeof sum);
            for (int at = 0; at < shape.bytes[left]; ++at)
                sum += static_cast<Left>(emulated.tiles[left][row][at]) *
                       static_cast<Right>(emulated.tiles[right][at / FOUR][lane * FOUR + at % FOUR]);
            std::memcpy(emulated.tiles[sums][row] + lane * FOUR, &sum, sizeof sum);
        }
}
#define TILE_ZERO(tile) std::memset(emulated.tiles[tile], 0, sizeof emulated.tiles[tile])
#define TILE_LOAD(tile, from, stride) emulate_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) emulate_store(tile, to, stride)
#define TILE_SIGNED_BY_UNSIGNED(sums, left, right) emulate_products<int8_t, uint8_t>(sums, left, right)
#define TILE_UNSIGNED_BY_SIGNED(sums, left, right) emulate_products<uint8_t, int8_t>(sums, left, right)
void release() {}
#else
void configure(const Shape& shape) { asm volatile("ldtilecfg %0" ::"m"(shape)); }
void release() { asm volatile("tilerelease"); }
#define TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::)
#define TILE_LOAD(tile, from, stride) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(int64_t(stride)) : "memory")
#define TILE_STORE(tile, to, stride) \
    asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#define TILE_SIGNED_BY_UNSIGNED(sums, left, right) \
    asm volatile("tdpbsud %%tmm" #right ", %%tmm" #left ", %%tmm" #sums ::)
#define TILE_UNSIGNED_BY_SIGNED(sums, left, right) \
    asm volatile("tdpbusd %%tmm" #right ", %%tmm" #left ", %%tmm" #sums ::)
#endif

void configure_rows(int64_t rows) {
    Shape shape;
    for (int tile = 0; tile < 8; ++tile) {
        const bool right = tile == 5 || tile == 7;
        shape.rows[tile] = static_cast<uint8_t>(!right ? rows : tile == 5 ? DEEP / FOUR : GROUP / FOUR);
        shape.bytes[tile] = tile == 6 ? GROUP : DEEP;
    }
    configure(shape);
}

struct Sums {
    alignas(64) int32_t values[SUMS][ROWS][LANES];
};

// The operands of up to four products: one of each pair is the same for all.
struct Operands {
    bool block;  // digits are on the left, and codes on the right; otherwise the other way round
    const Step* program;
    int64_t steps;
    const int8_t* digits;
    int64_t digit_row, digit_step;  // bytes to the next row of a tile, and to the next step
    const uint8_t* codes[SUMS];
    int64_t code_row, code_group;
};

#define EACH_TILE(DO, ...)                \
    DO(0, __VA_ARGS__)                    \
    if (tiles > 1) { DO(1, __VA_ARGS__) } \
    if (tiles > 2) { DO(2, __VA_ARGS__) } \
    if (tiles > 3) { DO(3, __VA_ARGS__) }
#define CLEAR(tile, ...) TILE_ZERO(tile);
#define STORE(tile, ...) TILE_STORE(tile, sums.values[tile], LANES * FOUR);
#define RELOAD(tile, ...) TILE_LOAD(tile, sums.values[tile], LANES * FOUR);
#define BLOCK_PRODUCT(tile, left, right)                                              \
    TILE_LOAD(right, operands.codes[tile] + at, operands.code_row);                   \
    TILE_SIGNED_BY_UNSIGNED(tile, left, right);
#define ROW_PRODUCT(tile, left, right)                                                \
    TILE_LOAD(left, operands.codes[tile] + at, operands.code_row);                    \
    TILE_UNSIGNED_BY_SIGNED(tile, left, right);
#define PRODUCTS(left, right)                                                         \
    if (operands.block) {                                                             \
        TILE_LOAD(left, digits, operands.digit_row);                                  \
        EACH_TILE(BLOCK_PRODUCT, left, right)                                         \
    } else {                                                                          \
        TILE_LOAD(right, digits, operands.digit_row);                                 \
        EACH_TILE(ROW_PRODUCT, left, right)                                           \
    }

void multiply(const Operands& operands, int tiles, Sums& sums) {
    EACH_TILE(CLEAR, )
    for (int64_t step = 0; step < operands.steps;) {
        const Step* const program = operands.program + step;
        if (program->shift) {  // a tile cannot be shifted: its sums take the way over memory
            EACH_TILE(STORE, )
            for (int tile = 0; tile < tiles; ++tile)
                for (auto& row : sums.values[tile])
                    for (int32_t& sum : row) sum = static_cast<int32_t>(static_cast<uint32_t>(sum) << program->shift);
            EACH_TILE(RELOAD, )
        }
        const int64_t at = program->group * operands.code_group;
        const int8_t* const digits = operands.digits + step * operands.digit_step;
        int64_t run = 1;
        while (run < STEPS && step + run < operands.steps && !program[run].shift &&
               program[run].group == program->group + run)
            ++run;
        if (run == STEPS) {
            PRODUCTS(4, 5)
            step += STEPS;
        } else {
            PRODUCTS(6, 7)
            ++step;
        }
    }
    EACH_TILE(STORE, )
}

int64_t smaller(int64_t one, int64_t other) { return one < other ? one : other; }

// Up to 16 words with all vectors of a block: `each(vector, sums)`, sums [words][LANES].
template <typename Each>
void words_of_block(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                    const int8_t* digits, int64_t words, Each& each) {
    Sums sums;
    Operands operands = {true, program, steps, digits, steps * GROUP, GROUP, {}, LANES * FOUR, GROUP * LANES};
    configure_rows(words);
    for (int64_t vector = 0; vector < vectors; vector += SUMS) {
        const int tiles = static_cast<int>(smaller(SUMS, vectors - vector));
        for (int tile = 0; tile < tiles; ++tile) operands.codes[tile] = codes + (vector + tile) * width * LANES;
        multiply(operands, tiles, sums);
        for (int tile = 0; tile < tiles; ++tile) each.take(vector + tile, sums.values[tile]);
    }
    release();
}

struct LargestOfBlock {
    int64_t words;
    int32_t* out;
    void take(int64_t, const int32_t (*sums)[LANES]) {
        for (int64_t word = 0; word < words; ++word)
            for (int lane = 0; lane < LANES; ++lane) {
                int32_t& best = out[word * LANES + lane];
                best = sums[word][lane] > best ? sums[word][lane] : best;
            }
    }
};

void block_over_row(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                    const int8_t* digits, int64_t words, int32_t* out) {
    for (int64_t i = 0; i < words * LANES; ++i) out[i] = INT32_MIN;
    for (int64_t word = 0; word < words; word += ROWS) {
        LargestOfBlock each = {smaller(ROWS, words - word), out + word * LANES};
        words_of_block(codes, vectors, width, program, steps, digits + word * steps * GROUP, each.words, each);
    }
}

struct LargestOfWords {
    int64_t words;
    const float *scale, *offset;
    float* out;
    void take(int64_t vector, const int32_t (*sums)[LANES]) {
        float* const mine = out + vector * LANES;
        for (int64_t word = 0; word < words; ++word)
            for (int lane = 0; lane < LANES; ++lane) {
                const float value = scale[word] * static_cast<float>(sums[word][lane]) + offset[word];
                mine[lane] = value > mine[lane] ? value : mine[lane];
            }
    }
};

void block_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                      const int8_t* digits, int64_t words, const float* scale, const float* offset, float* out) {
    for (int64_t i = 0; i < vectors * LANES; ++i) out[i] = -__builtin_inff();
    for (int64_t word = 0; word < words; word += ROWS) {
        LargestOfWords each = {smaller(ROWS, words - word), scale + word, offset + word, out};
        words_of_block(codes, vectors, width, program, steps, digits + word * steps * GROUP, each.words, each);
    }
}

// All vectors of a row with one tile of words: `each(vector, sums of LANES words)`.
template <typename Each>
void vectors_of_row(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                    const int8_t* digits, Each& each) {
    Sums sums;
    Operands operands = {false, program, steps, digits, LANES * FOUR, GROUP * LANES, {}, width, GROUP};
    const int64_t rows = smaller(ROWS, vectors);
    configure_rows(rows);
    for (int64_t vector = 0; vector < vectors; vector += SUMS * ROWS) {
        const int tiles = static_cast<int>(smaller(SUMS, (vectors - vector + ROWS - 1) / ROWS));
        int64_t first[SUMS];  // the last tile's vectors are the last ones of all, some of them for the second time
        for (int tile = 0; tile < tiles; ++tile) {
            first[tile] = smaller(vector + tile * ROWS, vectors - rows);
            operands.codes[tile] = codes + first[tile] * width;
        }
        multiply(operands, tiles, sums);
        for (int tile = 0; tile < tiles; ++tile)
            for (int64_t row = 0; row < rows; ++row) each.take(first[tile] + row, sums.values[tile][row]);
    }
    release();
}

struct SumsOfRow {
    int64_t places;
    int32_t *highest, *out;
    void take(int64_t vector, const int32_t* sums) {
        for (int lane = 0; lane < LANES; ++lane) {
            highest[lane] = sums[lane] > highest[lane] ? sums[lane] : highest[lane];
            out[vector * places + lane] = sums[lane];
        }
    }
};

void row_sums(const uint8_t* const* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
              const int8_t* digits, int64_t tiles, int32_t* highest, int32_t* out) {
    bool apart = false;  // a tile's rows must be evenly apart
    for (int64_t v = 1; v < vectors; ++v) apart |= codes[v] != codes[v - 1] + width;
    if (apart) return avx512_kernels()->row_sums(codes, vectors, width, program, steps, digits, tiles, highest, out);
    for (int64_t tile = 0; tile < tiles; ++tile) {
        SumsOfRow each = {tiles * LANES, highest + tile * LANES, out + tile * LANES};
        vectors_of_row(codes[0], vectors, width, program, steps, digits + tile * steps * GROUP * LANES, each);
    }
}

struct LargestOfTile {
    const float *scale, *offset;
    float* out;
    void take(int64_t vector, const int32_t* sums) {
        for (int lane = 0; lane < LANES; ++lane) {
            const float value = scale[lane] * static_cast<float>(sums[lane]) + offset[lane];
            out[vector] = value > out[vector] ? value : out[vector];
        }
    }
};

void row_over_query(const uint8_t* codes, int64_t vectors, int64_t width, const Step* program, int64_t steps,
                    const int8_t* digits, int64_t tiles, const float* scale, const float* offset, float* out) {
    for (int64_t i = 0; i < vectors; ++i) out[i] = -__builtin_inff();
    for (int64_t tile = 0; tile < tiles; ++tile) {
        LargestOfTile each = {scale + tile * LANES, offset + tile * LANES, out};
        vectors_of_row(codes, vectors, width, program, steps, digits + tile * steps * GROUP * LANES, each);
    }
}

}  // namespace
}  // namespace chan

CHAN_TARGET_END

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace chan {
namespace {

// Whether CPU and system have AMX for bytes, and the system lets this process use it.
bool permitted() {
#ifdef CHAN_EMULATED_TILES
    return true;
#else
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // the system saves more than SSE's registers
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;
    unsigned saved, high;
    asm volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved >> 17 & 3) != 3) return false;
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#endif
}

// Whether a block and a row give what AVX-512 gives.
bool right(const Kernels& other) {
    constexpr int64_t VECTORS = 21, GROUPS = 6, WIDTH = GROUPS * GROUP, STEP_COUNT = 8, WORDS = 19, TILES = 1;
    const Step program[STEP_COUNT] = {{0, 0}, {1, 0}, {0, 7}, {1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}};
    static uint8_t codes[VECTORS * WIDTH * LANES];
    static int8_t digits[WORDS * STEP_COUNT * GROUP];
    uint32_t value = 1;
    for (uint8_t& code : codes) code = static_cast<uint8_t>((value = value * 1664525 + 1013904223) >> 24);
    for (int8_t& digit : digits) digit = static_cast<int8_t>((value = value * 1664525 + 1013904223) >> 24);
    int32_t mine[VECTORS * LANES], theirs[VECTORS * LANES];
    static_assert(WORDS <= VECTORS && TILES == 1);
    block_over_row(codes, VECTORS, WIDTH, program, STEP_COUNT, digits, WORDS, mine);
    other.block_over_row(codes, VECTORS, WIDTH, program, STEP_COUNT, digits, WORDS, theirs);
    if (std::memcmp(mine, theirs, WORDS * LANES * sizeof *mine)) return false;
    const uint8_t* vectors[VECTORS + NEXT];
    for (int64_t v = 0; v < VECTORS + NEXT; ++v) vectors[v] = codes + v % VECTORS * WIDTH;
    int32_t my_highest[TILES * LANES] = {}, their_highest[TILES * LANES] = {};
    row_sums(vectors, VECTORS, WIDTH, program, STEP_COUNT, digits, TILES, my_highest, mine);
    other.row_sums(vectors, VECTORS, WIDTH, program, STEP_COUNT, digits, TILES, their_highest, theirs);
    return !std::memcmp(mine, theirs, VECTORS * TILES * LANES * sizeof *mine) &&
           !std::memcmp(my_highest, their_highest, sizeof my_highest);
}

}  // namespace

const Kernels* amx_kernels() {
    static Kernels kernels;
    const Kernels* const other = avx512_kernels();
    if (!other || !permitted() || !right(*other)) return nullptr;
    kernels = *other;
    kernels.name = "amx";
    kernels.block_over_row = block_over_row;
    kernels.block_over_query = block_over_query;
    kernels.row_sums = row_sums;
    kernels.row_over_query = row_over_query;
    return &kernels;
}

}  // namespace chan

#else

namespace chan {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace chan

#endif
