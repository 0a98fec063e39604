// A multiprocessor on the CPU, as far as PTX describes it, for kernels that were compiled to that.
//
// It computes, and it ends with an error where results need not show that something is wrong: an address that is not
// aligned or outside of what was allocated, shared memory that two warps use between two barriers and one of them
// writes, copies and products that nobody waited for, and lanes that part where an instruction wants them together.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr int LANES = 32, END = std::numeric_limits<int>::max();
constexpr uint32_t ALL = 0xffffffff;

using Register = uint64_t[LANES];  // of smaller values the low bytes, and zeros

template <typename To, typename From>
To as(From from) {  // the low bytes
    static_assert(sizeof(To) <= sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename Value>
void set(uint64_t& to, Value value) {
    to = 0;
    std::memcpy(&to, &value, sizeof value);
}

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

inline std::string hex(uint64_t value) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

// What is allocated of global memory: [begin, end) of each, in rising order.
struct Allocated {
    const uint64_t* edges;
    int64_t count;

    void check(uint64_t address, uint64_t size) const {
        if (address % size) fail("global memory at " + hex(address) + ", not aligned to " + std::to_string(size));
        reach(address, size);
    }
    void reach(uint64_t address, uint64_t size) const {
        const uint64_t* end = edges + 2 * count;
        const int64_t place = std::upper_bound(edges, end, address) - edges;  // odd: within one
        if (place % 2 == 0 || address + size > edges[place])
            fail("global memory at " + hex(address) + ", " + std::to_string(size) + " bytes, outside of what is allocated");
    }
};

struct Block;

struct Copy {
    uint32_t to;
    uint64_t from, bytes, size;  // bytes from `size` on become 0
};

// Lanes of a warp that are at a basic block, until they join others at one that all of their ways lead to.
struct Path {
    int at, join;
    uint32_t lanes;
};

struct Warp {
    Block* block;
    uint32_t index;
    std::vector<Path> paths{{0, END, ALL}};  // the last one goes on
    bool waits = false;
    uint64_t fenced = 0;
    std::vector<Copy> copies;
    std::deque<std::vector<Copy>> copy_groups;
    std::vector<std::function<void()>> products;
    std::deque<std::vector<std::function<void()>>> product_groups;

    bool ended() const { return paths.empty(); }
    static void together(uint32_t mask, uint32_t wanted) {
        if (mask != wanted) fail("lanes " + hex(mask) + " where " + hex(wanted) + " belong together");
    }
    void copy_async(uint32_t to, uint64_t from, uint64_t bytes, uint64_t size);
    void commit_copies() { copy_groups.push_back(std::move(copies)), copies.clear(); }
    void wait_copies(size_t left);
    void commit_products() { product_groups.push_back(std::move(products)), products.clear(); }
    void wait_products(size_t left) {
        for (; product_groups.size() > left; product_groups.pop_front())
            for (const auto& product : product_groups.front()) product();
    }
    void fence();
};

// A byte of shared memory, and who used it since when.
struct Byte {
    uint8_t value = 0xcd;
    uint8_t copied = 0;           // copies that are on their way
    uint8_t multiplied = 0;       // products on their way that read it
    uint32_t written = 0, read = 0;  // the last turn between barriers, from 1 on
    uint32_t writer = 0, readers = 0;  // a warp; a mask of warps
    uint64_t time = 0;            // of the last write
};

struct Block {
    Block(uint32_t number, int64_t count, int64_t shared, const uint64_t* params, const Allocated& allocated)
        : number(number), params(params), allocated(allocated), bytes(shared), warps(count) {
        for (uint32_t i = 0; i < warps.size(); ++i) warps[i].block = this, warps[i].index = i;
    }

    uint32_t number;
    const uint64_t* params;
    const Allocated& allocated;
    std::vector<Byte> bytes;
    std::vector<Warp> warps;
    uint32_t turn = 1;
    uint64_t time = 1;

    void global(uint64_t address, uint64_t size) const { allocated.check(address, size); }
    uint32_t add_global(uint64_t address, uint32_t value) const {
        global(address, sizeof value);
        uint32_t* const place = reinterpret_cast<uint32_t*>(address);
        const uint32_t before = *place;
        *place = before + value;
        return before;
    }

    Byte* shared(uint32_t address, uint64_t size) {
        if (address % size) fail("shared memory at " + hex(address) + ", not aligned to " + std::to_string(size));
        if (address + size > bytes.size()) fail("shared memory at " + hex(address) + ", beyond its end");
        return &bytes[address];
    }
    void read_shared(const Warp& warp, uint32_t address, void* to, uint64_t size) {
        Byte* const first = shared(address, size);
        for (uint64_t i = 0; i < size; ++i) static_cast<uint8_t*>(to)[i] = read(warp, first[i], address + i);
    }
    void write_shared(const Warp& warp, uint32_t address, const void* from, uint64_t size) {
        Byte* const first = shared(address, size);
        for (uint64_t i = 0; i < size; ++i) {
            const uint8_t value = static_cast<const uint8_t*>(from)[i];
            may_write(warp, first[i], address + i, first[i].value == value);
            write(warp, first[i], value);
        }
    }
    uint8_t read(const Warp& warp, Byte& byte, uint32_t address) {
        if (byte.copied) fail("shared memory at " + hex(address) + " is read before its copy was waited for");
        if (byte.written == turn && byte.writer != warp.index)
            fail("shared memory at " + hex(address) + ": one warp wrote it, another reads it, and no barrier is between");
        if (byte.read != turn) byte.read = turn, byte.readers = 0;
        byte.readers |= 1u << warp.index;
        return byte.value;
    }
    void may_write(const Warp& warp, const Byte& byte, uint32_t address, bool same) const {
        if (byte.copied || byte.multiplied)
            fail("shared memory at " + hex(address) + " is written before a copy or a product was waited for");
        if (same && byte.written == turn) return;  // several warps may write the same
        const bool others = (byte.written == turn && byte.writer != warp.index) ||
                            (byte.read == turn && (byte.readers & ~(1u << warp.index)));
        if (others) fail("shared memory at " + hex(address) + ": two warps use it, one writes, and no barrier is between");
    }
    void write(const Warp& warp, Byte& byte, uint8_t value) {
        byte.value = value, byte.written = turn, byte.writer = warp.index, byte.time = time++;
    }

    template <typename Run>
    void run(uint32_t seed, const Run& run_warp) {
        std::mt19937 random(seed);
        std::vector<uint32_t> order(warps.size());
        for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
        while (true) {
            std::shuffle(order.begin(), order.end(), random);
            size_t ended = 0;
            for (const uint32_t i : order) {
                run_warp(warps[i]);
                ended += warps[i].ended();
                warps[i].waits = false;
            }
            if (ended == warps.size()) return;
            if (ended) fail("some warps ended, and others wait at a barrier");
            ++turn;
        }
    }
};

inline void Warp::copy_async(uint32_t to, uint64_t from, uint64_t bytes, uint64_t size) {
    Byte* const first = block->shared(to, bytes);
    if (from % bytes) fail("global memory at " + hex(from) + ", not aligned to " + std::to_string(bytes));
    if (size) block->allocated.reach(from, size);
    for (uint64_t i = 0; i < bytes; ++i) {
        block->may_write(*this, first[i], to + i, false);
        ++first[i].copied;
    }
    copies.push_back({to, from, bytes, size});
}

inline void Warp::wait_copies(size_t left) {
    for (; copy_groups.size() > left; copy_groups.pop_front())
        for (const Copy& copy : copy_groups.front()) {
            uint8_t data[16] = {};
            std::memcpy(data, reinterpret_cast<const void*>(copy.from), copy.size);
            Byte* const first = block->shared(copy.to, copy.bytes);
            for (uint64_t i = 0; i < copy.bytes; ++i) {
                --first[i].copied;
                block->may_write(*this, first[i], copy.to + i, false);
                block->write(*this, first[i], data[i]);
            }
        }
}

// What this warp wrote, and what it could see, is there for the tensor cores.
inline void Warp::fence() { fenced = block->time++; }

// Warp-wide exchanges.

enum class Shuffle { up, down, bfly, idx };

template <Shuffle MODE>
void shuffle(uint32_t mask, Register& to, const Register& from, const Register& by, uint32_t clamp, uint32_t members) {
    Warp::together(mask, members);
    uint64_t found[LANES];
    const int segment = clamp >> 8 & 31, last = clamp & 31;
    for (int l = 0; l < LANES; ++l) {
        const int distance = by[l] & 31, largest = (l & segment) | (last & ~segment), least = l & segment;
        int source = 0;
        bool inside = false;
        if (MODE == Shuffle::up) source = l - distance, inside = source >= largest;
        if (MODE == Shuffle::down) source = l + distance, inside = source <= largest;
        if (MODE == Shuffle::bfly) source = l ^ distance, inside = source <= largest;
        if (MODE == Shuffle::idx) source = least | (distance & ~segment), inside = source <= largest;
        found[l] = from[inside ? source : l];
    }
    std::copy(found, found + LANES, to);
}

template <typename Value, typename Combine>
void reduce(uint32_t mask, Register& to, const Register& from, uint32_t members, const Combine& combine) {
    Warp::together(mask, members);
    Value result = as<Value>(from[0]);
    for (int l = 1; l < LANES; ++l) result = combine(result, as<Value>(from[l]));
    for (int l = 0; l < LANES; ++l) set(to[l], result);
}

// Tensor cores. Fragments are laid out as the PTX ISA has them: a lane's group is lane / 4, its place in that lane % 4.

template <size_t COUNT>
using Fragment = std::array<uint64_t*, COUNT>;

inline int8_t byte_of(uint64_t value, int place) { return static_cast<int8_t>(value >> (8 * place)); }

inline void mma_m16n8k32_s8(uint32_t mask, Fragment<4> d, Fragment<4> a, Fragment<2> b, Fragment<4> c) {
    Warp::together(mask, ALL);
    int8_t left[16][32], right[32][8];
    for (int l = 0; l < LANES; ++l)
        for (int i = 0; i < 4; ++i) {
            for (int r = 0; r < 4; ++r) left[l / 4 + r % 2 * 8][l % 4 * 4 + i + r / 2 * 16] = byte_of(a[r][l], i);
            for (int r = 0; r < 2; ++r) right[l % 4 * 4 + i + r * 16][l / 4] = byte_of(b[r][l], i);
        }
    for (int l = 0; l < LANES; ++l)
        for (int r = 0; r < 4; ++r) {
            int64_t sum = static_cast<int32_t>(c[r][l]);
            for (int k = 0; k < 32; ++k) sum += left[l / 4 + r / 2 * 8][k] * right[k][l % 4 * 2 + r % 2];
            set(d[r][l], static_cast<int32_t>(std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX)));
        }
}

inline void mma_m16n8k16_f16(uint32_t mask, Fragment<4> d, Fragment<4> a, Fragment<2> b, Fragment<4> c) {
    Warp::together(mask, ALL);
    float left[16][16], right[16][8];
    const auto half = [](uint64_t value, int place) { return float(as<_Float16>(uint16_t(value >> (16 * place)))); };
    for (int l = 0; l < LANES; ++l)
        for (int i = 0; i < 2; ++i) {
            for (int r = 0; r < 4; ++r) left[l / 4 + r % 2 * 8][l % 4 * 2 + i + r / 2 * 8] = half(a[r][l], i);
            for (int r = 0; r < 2; ++r) right[l % 4 * 2 + i + r * 8][l / 4] = half(b[r][l], i);
        }
    for (int l = 0; l < LANES; ++l)
        for (int r = 0; r < 4; ++r) {
            float sum = as<float>(c[r][l]);
            for (int k = 0; k < 16; ++k) sum += left[l / 4 + r / 2 * 8][k] * right[k][l % 4 * 2 + r % 2];
            set(d[r][l], sum);
        }
}

// Of ROWS x 8 x DEPTH: a lane holds each eighth row, and each fourth value of a row and of a column.
template <int ROWS, int DEPTH>
void mma_f64(uint32_t mask, Fragment<ROWS / 4> d, Fragment<ROWS * DEPTH / 32> a, Fragment<DEPTH / 4> b,
             Fragment<ROWS / 4> c) {
    constexpr int HIGH = ROWS / 8;
    Warp::together(mask, ALL);
    double left[ROWS][DEPTH], right[DEPTH][8];
    for (int l = 0; l < LANES; ++l) {
        for (size_t r = 0; r < a.size(); ++r) left[l / 4 + r % HIGH * 8][l % 4 + r / HIGH * 4] = as<double>(a[r][l]);
        for (size_t r = 0; r < b.size(); ++r) right[l % 4 + r * 4][l / 4] = as<double>(b[r][l]);
    }
    for (int l = 0; l < LANES; ++l)
        for (size_t r = 0; r < d.size(); ++r) {
            double sum = as<double>(c[r][l]);
            for (int k = 0; k < DEPTH; ++k) sum = std::fma(left[l / 4 + r / 2 * 8][k], right[k][l % 4 * 2 + r % 2], sum);
            set(d[r][l], sum);
        }
}

template <size_t COUNT>
void ldmatrix(Warp& warp, uint32_t mask, Fragment<COUNT> to, const Register& address, int64_t offset) {
    Warp::together(mask, ALL);
    uint32_t found[COUNT][LANES];
    for (size_t j = 0; j < COUNT; ++j)
        for (int row = 0; row < 8; ++row)
            warp.block->read_shared(warp, static_cast<uint32_t>(address[8 * j + row] + offset), &found[j][4 * row], 16);
    for (size_t j = 0; j < COUNT; ++j)
        for (int l = 0; l < LANES; ++l) to[j][l] = found[j][l];
}

template <size_t COUNT>
void stmatrix(Warp& warp, uint32_t mask, Fragment<COUNT> from, const Register& address, int64_t offset) {
    Warp::together(mask, ALL);
    for (size_t j = 0; j < COUNT; ++j)
        for (int row = 0; row < 8; ++row) {
            uint32_t line[4];
            for (int i = 0; i < 4; ++i) line[i] = static_cast<uint32_t>(from[j][4 * row + i]);
            warp.block->write_shared(warp, static_cast<uint32_t>(address[8 * j + row] + offset), line, 16);
        }
}

// A matrix in shared memory of which a row's bytes lie in one swizzled line, as a descriptor has it.
struct Tile {
    explicit Tile(uint64_t descriptor)
        : start((descriptor & 0x3fff) << 4), stride((descriptor >> 32 & 0x3fff) << 4) {
        const int mode = descriptor >> 62;
        if (mode == 0 || (descriptor >> 49 & 7)) fail("a descriptor without swizzling, or with a base offset");
        line = 256 >> mode;  // 128, 64 or 32 bytes
    }
    uint32_t start, stride, line;
    uint32_t place(int row, int byte) const {
        const uint32_t address = start + row / 8 * stride + row % 8 * line + byte;
        return address ^ ((address >> 7 & (line / 16 - 1)) << 4);
    }
};

// D[64][N] of a warp group, of which this warp has 16 rows. It reads shared memory, and writes D, when it is waited for.
template <typename Value, typename Sum, size_t REGISTERS>
void wgmma(Warp& warp, uint32_t mask, Fragment<REGISTERS> d, uint64_t left, uint64_t right, bool adds) {
    constexpr int COLUMNS = REGISTERS * 2, DEPTH = 32 / sizeof(Value);
    Warp::together(mask, ALL);
    Block& block = *warp.block;
    const Tile a(left), b(right);
    const int first = warp.index % 4 * 16;
    std::vector<uint32_t> places;
    for (int byte = 0; byte < 32; ++byte) {
        for (int row = first; row < first + 16; ++row) places.push_back(a.place(row, byte));
        for (int row = 0; row < COLUMNS; ++row) places.push_back(b.place(row, byte));
    }
    for (const uint32_t place : places) {
        Byte& held = *block.shared(place, 1);
        block.read(warp, held, place);
        if (held.time >= std::max(warp.fenced, block.warps[held.writer].fenced))
            fail("shared memory at " + hex(place) + " is multiplied, and no fence follows its writing");
        ++held.multiplied;
    }
    warp.products.push_back([=, &block] {
        const auto value = [&](uint32_t place) {
            uint8_t raw[sizeof(Value)];
            for (size_t i = 0; i < sizeof raw; ++i) raw[i] = block.bytes[place + i].value;
            Value found;
            std::memcpy(&found, raw, sizeof found);
            return Sum(found);
        };
        std::vector<Sum> rows(16 * DEPTH), columns(COLUMNS * DEPTH);
        for (int k = 0; k < DEPTH; ++k) {
            for (int row = 0; row < 16; ++row) rows[row * DEPTH + k] = value(a.place(first + row, k * sizeof(Value)));
            for (int column = 0; column < COLUMNS; ++column)
                columns[column * DEPTH + k] = value(b.place(column, k * sizeof(Value)));
        }
        for (int l = 0; l < LANES; ++l)
            for (size_t r = 0; r < REGISTERS; ++r) {
                const Sum* const row = &rows[(l / 4 + r / 2 % 2 * 8) * DEPTH];
                const Sum* const column = &columns[(r / 4 * 8 + l % 4 * 2 + r % 2) * DEPTH];
                Sum sum = adds ? as<Sum>(d[r][l]) : Sum(0);
                for (int k = 0; k < DEPTH; ++k) sum += row[k] * column[k];
                set(d[r][l], sum);
            }
        for (const uint32_t place : places) --block.bytes[place].multiplied;
    });
}

// Scalar instructions.

inline float flushed(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

template <typename Value>
Value larger(Value one, Value other) {  // of NaN and a number, the number
    if (one != one) return other;
    return one > other || other != other || (one == other && std::signbit(other)) ? one : other;
}
template <typename Value>
Value smaller(Value one, Value other) {
    if (one != one) return other;
    return one < other || other != other || (one == other && std::signbit(one)) ? one : other;
}

inline double reciprocal(double value) {  // approximate: of the result only the upper half is there
    return as<double>(as<uint64_t>(1 / value) & 0xffffffff00000000);
}

template <typename To, typename From>
To whole(From value) {  // towards zero, within the range
    if (value != value) return 0;
    if (value <= From(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    if (value >= From(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    return static_cast<To>(value);
}

template <typename Value>
Value shifted_left(Value value, uint32_t by) {
    return by >= 8 * sizeof value ? 0 : Value(value << by);
}
template <typename Value>
Value shifted_right(Value value, uint32_t by) {
    if (by >= 8 * sizeof value) return value < 0 ? Value(-1) : Value(0);
    return Value(value >> by);
}

template <typename Value>
Value field(Value value, uint32_t first, uint32_t length) {
    constexpr uint32_t BITS = 8 * sizeof value;
    first &= 255, length &= 255;
    if (!length) return 0;
    if (first >= BITS) return value < 0 ? Value(-1) : Value(0);
    const Value moved = Value(value >> first);
    if (length >= BITS - first) return moved;
    const uint32_t unused = BITS - length;
    return Value(Value(std::make_unsigned_t<Value>(moved) << unused) >> unused);
}

inline uint32_t permuted(uint32_t one, uint32_t other, uint32_t selector) {
    const uint64_t both = uint64_t(other) << 32 | one;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t mode = selector >> (4 * i) & 15;
        uint8_t byte = static_cast<uint8_t>(both >> (8 * (mode & 7)));
        if (mode & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= uint32_t(byte) << (8 * i);
    }
    return result;
}

// What program.py makes of a kernel.
struct Instruction {
    int32_t what, guard, negated, operands, line;
};
enum { BRANCH = -1, RETURN = -2, BARRIER = -3 };
enum { TID = 0, CTAID = 1, NCTAID = 2 };

struct Program {
    const Instruction* code;
    const int64_t* operands;
    const int32_t* blocks;
    const int32_t* joins;  // of each block, the first one that all ways from it lead to
    int64_t registers;
    const uint64_t* constants;
    int64_t constant_count;
};

using Function = void (*)(Block&, Warp&, Register*, uint32_t, const int64_t*);

// Run a warp until it waits at a barrier or ends. Lanes that part at a branch meet where all ways from there lead to.
inline void run_warp(const Program& program, const Function* functions, Block& block, Warp& warp, Register* registers,
                     int& line) {
    while (!warp.waits && !warp.ended()) {
        const Path path = warp.paths.back();
        if (path.at == path.join) {
            warp.paths.pop_back();
            continue;
        }
        warp.paths.back().at = path.at + 1;
        for (int32_t i = program.blocks[path.at]; i < program.blocks[path.at + 1]; ++i) {
            const Instruction& instruction = program.code[i];
            line = instruction.line;
            uint32_t lanes = path.lanes;
            if (instruction.guard >= 0)
                for (int l = 0; l < LANES; ++l)
                    if ((registers[instruction.guard][l] != 0) == (instruction.negated != 0)) lanes &= ~(1u << l);
            if (!lanes) continue;
            const int64_t* const operands = program.operands + instruction.operands;
            if (instruction.what >= 0) {
                functions[instruction.what](block, warp, registers, lanes, operands);
            } else if (instruction.what == BARRIER) {
                Warp::together(lanes, ALL);
                warp.waits = true;
            } else {
                const int to = instruction.what == RETURN ? END : static_cast<int>(operands[0]);
                if (lanes == path.lanes) {
                    warp.paths.back().at = to;
                    continue;
                }
                const int join = program.joins[path.at];
                warp.paths.back().at = join;
                warp.paths.push_back({path.at + 1, join, path.lanes & ~lanes});
                warp.paths.push_back({to, join, lanes});
            }
        }
    }
}

struct Launch {
    int64_t blocks, warps, shared;
    const uint64_t* params;
    const uint64_t* edges;  // of what is allocated
    int64_t allocated;
    uint32_t seed;
};

// Run a kernel's blocks in some order; false, and a message, where one does what it may not.
inline bool run_blocks(const Program& program, const Function* functions, const Launch& launch, char* message,
                       int64_t size) {
    const Allocated memory{launch.edges, launch.allocated};
    std::vector<uint32_t> order(launch.blocks);
    for (int64_t i = 0; i < launch.blocks; ++i) order[i] = static_cast<uint32_t>(i);
    std::mt19937 random(launch.seed);
    std::shuffle(order.begin(), order.end(), random);
    const auto fill = [](uint64_t(&to)[LANES], uint64_t value) { std::fill(to, to + LANES, value); };
    std::vector<uint64_t> memory_of_registers(launch.warps * program.registers * LANES);
    const auto all = reinterpret_cast<Register*>(memory_of_registers.data());
    for (const uint32_t number : order) {
        int line = 0;
        for (int64_t warp = 0; warp < launch.warps; ++warp) {
            Register* const own = all + warp * program.registers;
            for (int64_t i = 0; i < program.registers; ++i) fill(own[i], 0xcdcdcdcdcdcdcdcd);
            for (int64_t i = 0; i < program.constant_count; ++i)
                fill(own[program.constants[2 * i]], program.constants[2 * i + 1]);
            fill(own[CTAID], number), fill(own[NCTAID], launch.blocks);
            for (int l = 0; l < LANES; ++l) own[TID][l] = warp * LANES + l;
        }
        try {
            Block block(number, launch.warps, launch.shared, launch.params, memory);
            block.run(launch.seed + number, [&](Warp& warp) {
                run_warp(program, functions, block, warp, all + warp.index * program.registers, line);
            });
        } catch (const std::exception& fault) {
            std::snprintf(message, size, "block %u, line %d of its PTX: %s", number, line, fault.what());
            return false;
        }
    }
    return true;
}

}  // namespace ptx
