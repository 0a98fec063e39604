// Runs every function of the kernels that this CPU can run, on made-up inputs that are the same on every machine, and
// prints a line each: `instruction set, function, hash of all results`. test_core_instructions.py compares the lines.
//
// Inputs end where a page begins that cannot be read, so that reading past them is a crash.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "kernels.h"

namespace {

using namespace chan;

uint64_t state;

uint64_t random_bits() {  // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1Dull;
}
int64_t random_below(int64_t end) { return static_cast<int64_t>((random_bits() >> 33) % static_cast<uint64_t>(end)); }
float random_float() { return static_cast<float>(random_below(1 << 24) - (1 << 23)) / (1 << 20); }

template <typename Value>
class Guarded {
  public:
    explicit Guarded(int64_t count) : count_(count) {
        const int64_t page = sysconf(_SC_PAGESIZE), bytes = count * static_cast<int64_t>(sizeof(Value));
        pages_ = (bytes + page - 1) / page * page;
        void* place = mmap(nullptr, static_cast<size_t>(pages_ + page), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED || mprotect(static_cast<char*>(place) + pages_, static_cast<size_t>(page), PROT_NONE))
            std::abort();
        begin_ = static_cast<char*>(place);
        extra_ = page;
        values_ = reinterpret_cast<Value*>(begin_ + pages_ - bytes);
    }
    Guarded(const Guarded&) = delete;
    ~Guarded() { munmap(begin_, static_cast<size_t>(pages_ + extra_)); }
    Value* get() { return values_; }
    Value& operator[](int64_t i) { return values_[i]; }
    int64_t size() const { return count_; }

  private:
    int64_t count_, pages_, extra_;
    char* begin_;
    Value* values_;
};

uint64_t hash;

template <typename Value>
void add_to_hash(Guarded<Value>& values) {  // FNV-1a
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.get());
    for (int64_t i = 0; i < values.size() * static_cast<int64_t>(sizeof(Value)); ++i)
        hash = (hash ^ bytes[i]) * 0x100000001B3ull;
}

void begin() {
    state = 20260211;
    hash = 0xCBF29CE484222325ull;
}
void report(const char* set, const char* function) {
    std::printf("%s %s %016llx\n", set, function, static_cast<unsigned long long>(hash));
}

enum Extreme { NONE, LARGEST, LEAST, EXTREMES };

void fill_codes(Guarded<uint8_t>& codes, int extreme) {
    for (int64_t i = 0; i < codes.size(); ++i)
        codes[i] = extreme ? 255 : static_cast<uint8_t>(random_below(256));
}
void fill_digits(Guarded<int8_t>& digits, int extreme) {
    for (int64_t i = 0; i < digits.size(); ++i)
        digits[i] = extreme == LARGEST ? 127
                    : extreme == LEAST ? -128
                                       : static_cast<int8_t>(random_below(256) - 128);
}
void fill(Guarded<float>& values) {
    for (int64_t i = 0; i < values.size(); ++i) values[i] = random_float();
}
void fill(Guarded<uint16_t>& values) {  // finite ones, of every size
    for (int64_t i = 0; i < values.size(); ++i)
        while (((values[i] = static_cast<uint16_t>(random_bits() >> 48)) & 0x7c00) == 0x7c00) {
        }
}

// Groups in any order, some twice with a shift between, as a query's high and low digits are.
void fill_program(Guarded<Step>& program, int64_t groups) {
    for (int64_t i = 0; i < program.size(); ++i)
        program[i] = {static_cast<int32_t>(random_below(groups)),
                      random_below(3) ? 0 : static_cast<int32_t>(random_below(8))};
}

void integers(const Kernels& kernels, bool block) {
    Guarded<float> none(0);
    const int64_t LENGTHS[] = {1, 2, 3, 4, 5, 7, 12, 36}, WORDS[] = {1, 2, 3, 4, 5, 6, 7, 12, 15, 29},
                  TILES[] = {1, 2, 3};
    for (int query = 0; query < 2; ++query) {
        begin();
        int turn = 0;
        for (const int64_t vectors : LENGTHS)
            for (int64_t i = 0; i < (block ? 10 : 3); ++i)
                for (const int64_t groups : {1, 2, 5}) {
                    const int64_t steps = groups + random_below(groups + 1), width = groups * GROUP;
                    const int64_t count = block ? WORDS[i] : TILES[i], lanes = block ? 1 : LANES;
                    Guarded<uint8_t> codes(vectors * width * (block ? LANES : 1));
                    Guarded<int8_t> digits(count * steps * GROUP * lanes);
                    Guarded<Step> program(steps);
                    Guarded<float> scale(count * lanes), offset(count * lanes);
                    const int extreme = turn++ % EXTREMES;
                    fill_codes(codes, extreme), fill_digits(digits, extreme), fill_program(program, groups);
                    fill(scale), fill(offset);
                    Guarded<int32_t> sums((block ? 1 : vectors) * count * LANES), highest(count * LANES);
                    Guarded<float> best(vectors * (block ? LANES : 1));
                    if (query) {
                        (block ? kernels.block_over_query : kernels.row_over_query)(
                            codes.get(), vectors, width, program.get(), steps, digits.get(), count, scale.get(),
                            offset.get(), best.get());
                        add_to_hash(best);
                    } else if (block) {
                        kernels.block_over_row(codes.get(), vectors, width, program.get(), steps, digits.get(), count,
                                               sums.get());
                        add_to_hash(sums);
                    } else {
                        Guarded<const uint8_t*> places(vectors + NEXT);  // in any order, some twice
                        for (int64_t i = 0; i < places.size(); ++i)
                            places[i] = codes.get() + (turn % 2 ? i % vectors : random_below(vectors)) * width;
                        for (int64_t i = 0; i < highest.size(); ++i)
                            highest[i] = static_cast<int32_t>(random_below(1 << 20)) - (1 << 19);
                        kernels.row_sums(places.get(), vectors, width, program.get(), steps, digits.get(), count,
                                         highest.get(), sums.get());
                        add_to_hash(highest);
                        add_to_hash(sums);
                    }
                }
        report(kernels.name, block ? query ? "block_over_query" : "block_over_row"
                             : query ? "row_over_query"
                                     : "row_sums");
    }
}

void require(bool holds, const char* set, const char* function) {
    if (holds) return;
    std::fprintf(stderr, "%s %s: not what plain arithmetic gives\n", set, function);
    std::exit(1);
}

// Vectors in any order, some twice, which end in any part of a register, and widths of which the last codes meet zeros.
void pairs(const Kernels& kernels) {
    begin();
    constexpr int64_t VECTORS = 9, WORDS = 6;
    int turn = 0;
    for (const int64_t count : {0, 1, 2, 3, 4, 5, 7, 12, 29})
        for (const int64_t groups : {1, 2, 3, 4, 5, 7, 8, 19, 64}) {
            const int64_t width = groups * GROUP, dim = width - random_below(GROUP);
            Guarded<uint8_t> codes(VECTORS * width);
            Guarded<int8_t> digits(WORDS * width);
            const int extreme = turn++ % EXTREMES;
            fill_codes(codes, extreme), fill_digits(digits, extreme);
            for (int64_t word = 0; word < WORDS; ++word)
                for (int64_t at = dim; at < width; ++at) digits[word * width + at] = 0;
            Guarded<const uint8_t*> left(count);
            Guarded<const int8_t*> right(count);
            for (int64_t i = 0; i < count; ++i) {
                left[i] = codes.get() + random_below(VECTORS) * width;
                right[i] = digits.get() + random_below(WORDS) * width;
            }
            Guarded<int32_t> out(count);
            kernels.pair_sums(left.get(), right.get(), count, width, out.get());
            for (int64_t i = 0; i < count; ++i) {
                int64_t sum = 0;
                for (int64_t at = 0; at < width; ++at) sum += left[i][at] * right[i][at];
                require(out[i] == sum, kernels.name, "pair_sums");
            }
            add_to_hash(out);
        }
    report(kernels.name, "pair_sums");
}

void leads(const Kernels& kernels) {
    begin();
    for (const int64_t vectors : {1, 2, 5, 36})
        for (const int64_t places : {LANES, 3 * LANES})
            for (const int64_t values : {1, 3, 1 << 24}) {  // few of them: vectors tie
                Guarded<int32_t> sums(vectors * places), highest(places), leader(places);
                for (int64_t i = 0; i < sums.size(); ++i)
                    sums[i] = random_below(4) ? static_cast<int32_t>(random_below(values) - values / 2) : INT32_MIN;
                kernels.lead(sums.get(), vectors, places, highest.get(), leader.get());
                for (int64_t place = 0; place < places; ++place) {
                    int64_t best = 0;
                    for (int64_t v = 0; v < vectors; ++v)
                        if (sums[v * places + place] > sums[best * places + place]) best = v;
                    require(leader[place] == best && highest[place] == sums[best * places + place], kernels.name, "lead");
                }
                add_to_hash(highest), add_to_hash(leader);
            }
    report(kernels.name, "lead");
}

template <typename Value, typename Function>
void products(const Kernels& kernels, const char* name, Function function) {
    begin();
    for (const int64_t dim : {1, 2, 7, 8, 15, 16, 17, 31, 32, 48, 100, 256})
        for (const int64_t count : {1, 2, 3, 4, 5, 7, 9})
            for (const int64_t words : {1, 2, 3, 5, 6, 7, 13}) {
                const int64_t padded = (dim + 15) / 16 * 16;
                Guarded<Value> vectors(count * dim);
                Guarded<float> query(words * padded), out(count * words);
                fill(vectors), fill(query);
                for (int64_t word = 0; word < words; ++word)
                    for (int64_t at = dim; at < padded; ++at) query[word * padded + at] = 0;
                function(vectors.get(), count, dim, query.get(), words, padded, out.get());
                add_to_hash(out);
            }
    report(kernels.name, name);
}

void pair_products(const Kernels& kernels) {
    begin();
    for (const int64_t dim : {1, 2, 7, 8, 15, 16, 17, 31, 32, 48, 100, 256})
        for (const int64_t count : {1, 2, 3, 4, 5, 7, 9}) {
            const int64_t padded = (dim + 15) / 16 * 16;
            Guarded<float> vectors(count * dim), query(count * padded), out(count), alone(1);
            fill(vectors), fill(query);
            std::vector<const float*> left, right;
            for (int64_t i = 0; i < count; ++i) {
                for (int64_t at = dim; at < padded; ++at) query[i * padded + at] = 0;
                left.push_back(vectors.get() + random_below(count) * dim);
                right.push_back(query.get() + i * padded);
            }
            kernels.pair_products(left.data(), right.data(), count, dim, out.get());
            for (int64_t i = 0; i < count; ++i) {
                kernels.products(left[i], 1, dim, right[i], 1, padded, alone.get());
                require(out[i] == alone[0], kernels.name, "pair_products");
            }
            add_to_hash(out);
        }
    report(kernels.name, "pair_products");
}

void dots(const Kernels& kernels) {
    begin();
    for (int64_t dim = 0; dim < 70; ++dim) {
        Guarded<float> left(dim), right(dim);
        Guarded<double> out(1);
        fill(left), fill(right);
        out[0] = kernels.dot(left.get(), right.get(), dim);
        add_to_hash(out);
    }
    report(kernels.name, "dot");
}

void widenings(const Kernels& kernels) {
    begin();
    Guarded<uint16_t> half(1 << 16);
    Guarded<float> out(1 << 16);
    for (int64_t i = 0; i < half.size(); ++i)  // every value; of those that are no number, only the quiet ones
        half[i] = static_cast<uint16_t>((i & 0x7c00) == 0x7c00 && (i & 0x3ff) ? i | 0x200 : i);
    kernels.widen(half.get(), half.size(), out.get());
    add_to_hash(out);
    for (int64_t count = 0; count < 40; ++count) {
        Guarded<uint16_t> few(count);
        Guarded<float> wide(count);
        fill(few);
        kernels.widen(few.get(), count, wide.get());
        add_to_hash(wide);
    }
    report(kernels.name, "widen");
}

void narrowings(const Kernels& kernels) {
    begin();
    Guarded<float> values(1 << 20);
    Guarded<uint16_t> half(1 << 20);
    for (int64_t i = 0; i < values.size(); ++i) {  // every half number, what lies between two, and beside that
        const uint32_t bits = static_cast<uint32_t>(i & 0x8000) << 16 | static_cast<uint32_t>(i & 0x7fff) << 13;
        const uint32_t beside[] = {0, 1, 0xfff, 0x1000, 0x1001, 0x1fff};
        uint32_t size = (bits & 0x7fffffff) + 0x38000000 + beside[(i >> 16) % 6];
        if (i >> 16 >= 6) size = static_cast<uint32_t>(i * 2047) & 0x7fffffff;  // of every size, and what is no number
        if (size > 0x7f800000) size |= 0x00400000;                              // only the quiet ones
        const uint32_t both = (bits & 0x80000000) | size;
        std::memcpy(&values[i], &both, sizeof both);
    }
    kernels.narrow(values.get(), values.size(), half.get());
    add_to_hash(half);
    for (int64_t count = 0; count < 40; ++count) {
        Guarded<float> few(count);
        Guarded<uint16_t> narrow(count);
        fill(few);
        kernels.narrow(few.get(), count, narrow.get());
        add_to_hash(narrow);
    }
    report(kernels.name, "narrow");
}

void fixed(const Kernels& kernels) {
    begin();
    Guarded<uint8_t> codes(1 << 16), low(1 << 16);
    Guarded<float> out(1 << 16);
    for (int64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i >> 8), low[i] = static_cast<uint8_t>(i);
    for (const float unit : {1.0f, 0x1.02p-20f, 0x1.fep-108f}) {
        kernels.widen_fixed(codes.get(), low.get(), codes.size(), unit, out.get());
        add_to_hash(out);
    }
    for (int64_t count = 0; count < 40; ++count) {
        Guarded<uint8_t> upper(count), lower(count);
        Guarded<float> wide(count);
        fill_codes(upper, NONE), fill_codes(lower, NONE);
        kernels.widen_fixed(upper.get(), lower.get(), count, 0x1.8p-9f, wide.get());
        add_to_hash(wide);
    }
    report(kernels.name, "widen_fixed");
}

void poolings(const Kernels& kernels) {
    begin();
    for (const Pooling pooling : {Pooling::max, Pooling::mean, Pooling::sum, Pooling::lse, Pooling::softmax})
        for (const int64_t count : {1, 2, 5, 12, 60})
            for (const float temperature : {0.01f, 0.1f, 1.0f, 7.0f}) {
                Guarded<float> values(count * LANES), out(LANES);
                Guarded<int32_t> counts(LANES);
                fill(values);
                for (int lane = 0; lane < LANES; ++lane)
                    counts[lane] = 1 + static_cast<int32_t>(random_below(count));
                kernels.pool_lanes(values.get(), count, counts.get(), pooling, temperature, out.get());
                add_to_hash(out);
            }
    report(kernels.name, "pool_lanes");
}

}  // namespace

int main() {
    for (const Kernels* const* each = usable_kernels(); *each; ++each) {
        const Kernels& kernels = **each;
        integers(kernels, true);
        integers(kernels, false);
        pairs(kernels);
        leads(kernels);
        products<float>(kernels, "products", kernels.products);
        products<uint16_t>(kernels, "half_products", kernels.half_products);
        pair_products(kernels);
        dots(kernels);
        widenings(kernels);
        narrowings(kernels);
        fixed(kernels);
        poolings(kernels);
    }
}
