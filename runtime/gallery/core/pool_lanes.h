// Upper bounds of pooled scores, LANES gallery rows side by side, WIDTH of them in a register: for each instruction set
// the same additions and products in the same order.
//
// Max, Mean, Sum and LSE grow with each similarity, so pooling upper bounds gives an upper bound. Softmax pooling is a
// weighted mean and does not, but is at most the largest similarity. What float32 loses is added: u = 2^-24, S the
// largest |value|, n the count. Max loses nothing. Sum and Mean: the partial sums lose (n + 2) (n - 1) / 2 u S at most,
// adding the allowance and dividing 2 n u S more; 2 n^2 u S in all (n = 1: rounding keeps the order of numbers).
//
// LSE with a temperature T: `exponential` is within 5 u of its value, relatively, and `logarithm` within 3 u of its
// own, or of 1 where that is less (test_core_instructions.py tries each float32). Of a value that is less than the peak
// by x T, the argument is off by 4 u x, and x exp(-x) < 0.37; x is cut off at 80, which only raises the sum. The peak's
// own exponential is 1 exactly, so with n - 1 additions the sum is off by a factor within 1 +- 2.5 (n + 1) u, and all
// that follows by less than 8 n u; for n = 1 by nothing. The peak's division, and adding it, lose 5 u S / T at most.

constexpr float UNIT = 1.0f / (1 << 24);

template <int WIDTH>
struct Register;
template <>
struct Register<4> {
    typedef float Float __attribute__((vector_size(16)));
    typedef int32_t Int __attribute__((vector_size(16)));
};
template <>
struct Register<8> {
    typedef float Float __attribute__((vector_size(32)));
    typedef int32_t Int __attribute__((vector_size(32)));
};
template <>
struct Register<16> {
    typedef float Float __attribute__((vector_size(64)));
    typedef int32_t Int __attribute__((vector_size(64)));
};

template <int WIDTH>
struct Pool {
    using Float = typename Register<WIDTH>::Float;
    using Int = typename Register<WIDTH>::Int;

    static inline __attribute__((always_inline)) Float exponential(Float x) {  // x <= 0
        x = x < -80.0f ? Float{} - 80.0f : x;
        const Float scaled = x * 1.44269504f;
        const Float whole = (scaled + 12582912.0f) - 12582912.0f;  // the nearest integer
        const Float f = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
        Float value = Float{} + 1.0f / 720.0f;
        value = value * f + 1.0f / 120.0f;
        value = value * f + 1.0f / 24.0f;
        value = value * f + 1.0f / 6.0f;
        value = value * f + 0.5f;
        value = value * f + 1.0f;
        value = value * f + 1.0f;
        const Int bits = (__builtin_convertvector(whole, Int) + 127) << 23;
        return value * (Float)bits;
    }

    static inline __attribute__((always_inline)) Float logarithm(Float x) {  // x >= 1
        Int bits = (Int)x;
        const Int exponent = (bits - 0x3f3504f3) >> 23;  // so that the rest lies between sqrt(1/2) and sqrt(2)
        bits -= exponent << 23;
        const Float rest = (Float)bits;
        const Float r = (rest - 1.0f) / (rest + 1.0f), square = r * r;
        Float value = Float{} + 1.0f / 9.0f;
        value = value * square + 1.0f / 7.0f;
        value = value * square + 1.0f / 5.0f;
        value = value * square + 1.0f / 3.0f;
        value = value * square + 1.0f;
        return __builtin_convertvector(exponent, Float) * 0.693147181f + 2.0f * r * value;
    }

    // WIDTH of the lanes.
    static inline __attribute__((always_inline)) void some(const float* values, int32_t count, const int32_t* counts,
                                                           Pooling pooling, float temperature, float* out) {
        const Float none = Float{} - std::numeric_limits<float>::infinity();
        Float peak = none, total{}, size{}, value, result;
        Int number;
        std::memcpy(&number, counts, sizeof number);
        const Float n = __builtin_convertvector(number, Float);
        for (int32_t i = 0; i < count; ++i) {
            std::memcpy(&value, values + int64_t(i) * LANES, sizeof value);
            const Float magnitude = number > i ? (Float)((Int)value & 0x7fffffff) : Float{};
            value = number > i ? value : none;
            peak = value > peak ? value : peak;
            size = magnitude > size ? magnitude : size;
        }
        if (pooling == Pooling::mean || pooling == Pooling::sum) {
            for (int32_t i = 0; i < count; ++i) {
                std::memcpy(&value, values + int64_t(i) * LANES, sizeof value);
                total += number > i ? value : Float{};
            }
            total += 2.0f * UNIT * n * n * size;
            result = pooling == Pooling::mean ? total / n : total;
        } else if (pooling == Pooling::lse) {
            const float inverse = 1.0f / temperature;
            for (int32_t i = 0; i < count; ++i) {
                std::memcpy(&value, values + int64_t(i) * LANES, sizeof value);
                const Float part = exponential((number > i ? value - peak : Float{}) * inverse);
                total += number > i ? part : Float{};
            }
            result = peak * inverse + logarithm(total) + 8.0f * UNIT * (size * inverse + n);
        } else {
            result = peak;
        }
        std::memcpy(out, &result, sizeof result);
    }

    static void lanes(const float* values, int64_t count, const int32_t* counts, Pooling pooling, float temperature,
                      float* out) {
        for (int lane = 0; lane < LANES; lane += WIDTH)
            some(values + lane, static_cast<int32_t>(count), counts + lane, pooling, temperature, out + lane);
    }
};
