// Made-up rows and queries for core_bounds.cpp, by the definitions of proof/bounds.py.
//
// Rows are made for the query, so that bounds are tight: what codes lose points along the query's vector, codes point
// along what the query's integers lose, and vectors of a row nearly tie. The theorem is about any codes, so none need
// be the nearest ones. Errors and norms are the least that hold.

#pragma once

#include "state.h"

namespace chan {

using Exact = long double;
using Vector = std::vector<Exact>;

inline uint64_t state = 1;
inline uint64_t bits() {  // xorshift64*
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (state * 0x2545F4914F6CDD1Dull) >> 11;
}
inline int64_t below(int64_t end) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(end)); }
inline double real(double low, double high) { return low + (high - low) * double(bits()) / 9007199254740992.0; }
inline double normal() {
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += real(-1, 1);
    return sum / 1.41;
}
inline float up(Exact value) {  // the least float32 number that is no less
    const auto near = static_cast<float>(value);
    return Exact(near) < value ? std::nextafter(near, float(INFINITE)) : near;
}
template <typename A, typename B>
Exact inner(const A* a, const B* b, int64_t count) {
    Exact sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += Exact(a[i]) * b[i];
    return sum;
}
inline Exact length(const Vector& v) { return std::sqrt(inner(v.data(), v.data(), int64_t(v.size()))); }
inline int nearest_code(Exact value, int least = -127) {
    return static_cast<int>(std::clamp(std::round(value), Exact(least), Exact(127)));
}

inline Exact pool_exactly(const Vector& values, Pooling pooling, Exact temperature) {
    const Exact peak = *std::max_element(values.begin(), values.end());
    Exact total = 0, weights = 0, sum = 0;
    for (const Exact value : values) {
        const Exact weight = std::exp((value - peak) / temperature);
        weights += weight, total += weight * value, sum += value;
    }
    if (pooling == Pooling::max) return peak;
    if (pooling == Pooling::sum) return sum;
    if (pooling == Pooling::mean) return sum / Exact(values.size());
    return pooling == Pooling::lse ? peak / temperature + std::log(weights) : total / weights;
}

// Rows of one part and a query, with the memory of both.
struct Case {
    Plan plan;
    Part part;
    int64_t dim, words, rows, vectors = 0;
    bool flat = false;  // of which float32 loses a rounding in the same direction with each product
    bool flat_axis = false;  // the same of the query along the one axis, or of what its integers lose
    std::vector<float> query, mean, basis, steps[2], norm_step[2], typical[2], fine, scale, error, norm, blocks;
    std::vector<int64_t> starts{0}, order;
    std::vector<uint8_t> codes, low, coded[2], first, loose, checked;
    std::vector<uint16_t> half;
    Level& level(int which) { return which ? plan.second : plan.first; }
};

// ||B_j'v|| of the blocks that `edges` name, and R(v) of the axes before the last edge.
inline Vector along(const Case& c, const std::vector<int64_t>& edges, const Vector& v) {
    Vector found;
    Exact held = 0;
    for (size_t j = 0; j + 1 < edges.size(); ++j) {
        Exact square = 0;
        for (int64_t i = edges[j]; i < edges[j + 1]; ++i) {
            const Exact y = inner(&c.basis[i * c.dim], v.data(), c.dim);
            square += y * y;
        }
        held += square;
        found.push_back(std::sqrt(square));
    }
    const Exact f = std::max(0.0, 1 - c.plan.deviation);
    found.push_back(std::sqrt(std::max<Exact>(0, inner(v.data(), v.data(), c.dim) - f * held)));
    return found;
}
inline std::vector<int64_t> edges_of(int64_t axes) {
    std::vector<int64_t> edges;
    for (const int64_t edge : {0, 1, 4, 16, 64})
        if (edge < axes) edges.push_back(edge);
    edges.push_back(axes);
    return edges;
}

// A unit vector: in float32, its product with a multiple of itself loses all but the first one of each lane's terms.
inline Vector flat_axis(int64_t dim) {
    const Exact t = 0.7L * std::ldexp(1.0L, -14);
    Vector b(dim, t);
    b[0] = 0;
    for (int64_t i = 1; i <= 16; ++i) b[i] = std::sqrt((1 - t * t * (dim - 17)) / 16);
    return b;
}

inline void make_plan(Case& c) {
    c.dim = below(4) ? 1 + below(24) : 1 + below(300);
    c.words = below(3) ? 1 + below(5) : 1 + below(40);
    c.rows = below(4) ? 1 + below(2) : 17 + below(4);
    c.flat = below(12) == 0;
    if (c.flat) c.dim = below(2) ? 1000 : 16, c.words = c.rows = 1;
    c.flat_axis = !c.flat && below(40) == 0;
    if (c.flat_axis) c.dim = 1024, c.words = c.rows = 1;
    Plan& plan = c.plan;
    plan.kernels = generic_kernels(), plan.dim = c.dim, plan.pools_query = below(4) != 0;
    plan.pooling = Pooling(below(5)), plan.digits = 1 + int(below(2));
    plan.temperature = below(2) ? real(0.01, 1) : std::ldexp(1, -int(below(30)));
    plan.axes = 1 + below(std::min<int64_t>(c.dim, 24));
    if (c.flat_axis) plan.axes = plan.digits = 1;
    c.mean.assign(c.dim, 0);
    if (below(2))
        for (float& each : c.mean) each = float(0.2 * normal() / std::sqrt(double(c.dim)));
    std::vector<Vector> made;
    for (int64_t i = 0; i < plan.axes; ++i) {  // Gram and Schmidt, twice
        Vector b(c.dim);
        for (Exact& each : b) each = normal() + 1e-6;
        if (c.flat_axis) b = flat_axis(c.dim);
        for (int turn = 0; turn < 2; ++turn)
            for (const Vector& other : made) {
                const Exact share = inner(b.data(), other.data(), c.dim);
                for (int64_t at = 0; at < c.dim; ++at) b[at] -= share * other[at];
            }
        const Exact size = length(b);
        for (Exact& each : b) each /= size;
        made.push_back(b);
    }
    const double bent = c.flat_axis || below(4) ? 0 : 0.05;  // axes that are not orthonormal
    for (const Vector& b : made)
        for (const Exact each : b) c.basis.push_back(float(each * (1 + bent * real(-1, 1))));
    Exact square = 0;
    for (int64_t i = 0; i < plan.axes; ++i)
        for (int64_t j = 0; j < plan.axes; ++j) {
            const Exact off = inner(&c.basis[i * c.dim], &c.basis[j * c.dim], c.dim) - (i == j);
            square += off * off;
        }
    plan.deviation = up(std::sqrt(square));
    plan.mean = c.mean.data(), plan.basis = c.basis.data();
    plan.edges = edges_of(plan.axes);
    for (int which = 0; which < 2; ++which) {
        Level& level = c.level(which);
        level.coordinates = 1 + below(plan.axes), level.codes = level.coordinates + below(level.coordinates + 1);
        level.edges = edges_of(plan.axes), level.norms = int64_t(level.edges.size()) + 1;
        level.width = (level.norms + level.codes + GROUP - 1) / GROUP * GROUP;
        const double step = std::pow(10, real(-4, -1.7)), wide = std::pow(10, real(-4, -2));
        for (int64_t i = 0; i < level.codes; ++i)
            c.steps[which].push_back(float(i < level.coordinates ? step : step / 254));
        for (int64_t j = 0; j < level.norms; ++j) {
            c.norm_step[which].push_back(j + 1 == level.norms ? 9.0f : float(wide * real(0.5, 1)));
            c.typical[which].push_back(float(below(2) ? real(0, 1) : 0));
        }
        level.steps = c.steps[which].data(), level.norm_step = c.norm_step[which].data();
        level.norm_typical = c.typical[which].data();
    }
    const double size = c.flat || c.flat_axis || below(4) ? 1 : std::pow(10, real(-8, 8));
    for (int64_t w = 0; w < c.words; ++w) {
        const int64_t kind = below(7), whole = plan.digits == 1 ? 127 : 16319;
        for (int64_t i = 0; i < c.dim; ++i) {
            double value = normal();
            const double sign = below(2) ? 0.499 : -0.499;
            if (kind == 1) value = (i ? 1e-3 : 1) * value;
            if (kind == 2) value = i == w % c.dim ? 1 : 0;
            if (kind == 3) value = double(below(255) - 127) / 64;
            if (kind == 4) value = (double(i ? below(2 * whole) - whole : whole) + (i ? sign : 0)) / double(whole);
            if (kind == 5) value = (128.0 * double(i ? below(255) - 127 : 127) + 126 * (i ? sign : 0.499)) / 16319;
            if (kind == 6 && w) value = c.query[(w - 1) * c.dim + i] / size * (1 + (i ? 0 : 2.0 / (1 << 23)));
            if (c.flat) value = i < 16 ? 1 : std::ldexp(1, -12);
            if (c.flat_axis) value = i ? 1.6 * double(flat_axis(c.dim)[i]) : below(2) ? 127 : 0;  // or all integers are zeros
            c.query.push_back(float(value * size));
        }
    }
}

// Appends a vector as a level keeps it; whether a norm did not fit. y: of the word that it is made for.
inline bool code(Case& c, int which, const Vector& centered, const Vector& y) {
    const Level& level = c.level(which);
    Vector lost(c.plan.axes);
    for (int64_t a = 0; a < c.plan.axes; ++a) lost[a] = inner(&c.basis[a * c.dim], centered.data(), c.dim);
    std::vector<uint8_t> bytes(level.width, 0);
    Exact square = 0;
    const Exact size = std::sqrt(inner(y.data(), y.data(), c.plan.axes)) + 1e-30L;
    const Exact share = below(2) ? real(0, 1) * level.steps[0] / size : 0;
    for (int64_t i = 0; i < level.codes; ++i) {
        const int64_t axis = i < level.coordinates ? i : i - level.coordinates;
        const int code = nearest_code((lost[axis] - share * y[axis]) / level.steps[i]);
        lost[axis] -= Exact(level.steps[i]) * code, square += code * code;
        bytes[level.norms + i] = uint8_t(code + 128);
    }
    const Exact f = std::max(0.0, 1 - c.plan.deviation);
    bool loose = false;
    for (int64_t j = 0; j < level.norms; ++j) {
        Exact norm = std::sqrt(square);
        if (j + 2 < level.norms) {
            norm = std::sqrt(inner(&lost[level.edges[j]], &lost[level.edges[j]], level.edges[j + 1] - level.edges[j]));
        } else if (j + 2 == level.norms) {
            Exact held = 0;
            for (int64_t a = 0; a < c.plan.axes; ++a) {
                const Exact coordinate = inner(&c.basis[a * c.dim], centered.data(), c.dim);
                held += coordinate * coordinate;
            }
            norm = std::sqrt(std::max<Exact>(0, inner(centered.data(), centered.data(), c.dim) - f * held));
        }
        const Exact number = std::ceil(norm / level.norm_step[j]);
        loose |= number > 255;
        bytes[j] = uint8_t(std::min<Exact>(number, 255));
    }
    c.coded[which].insert(c.coded[which].end(), bytes.begin(), bytes.end());
    return loose;
}

// Rows for a query whose integers have these scales.
inline void make_rows(Case& c, const std::vector<double>& scales) {
    const Fine form = c.part.form = c.flat ? Fine::float32 : Fine(below(3));
    const int64_t stride = c.part.stride, axes = c.plan.axes;
    for (int64_t row = 0; row < c.rows; ++row) {
        const int64_t count = below(3) ? 1 + below(4) : 1 + below(40), mode = below(4);
        const Exact scale = Exact(128 + below(128)) / (128 << 10);
        const bool lossless = mode < 2 && below(3) == 0;  // so that roundings of float64 count
        const bool opposed = mode == 1 && !lossless && below(2);  // equal similarities, which high digits put far apart
        Vector tops(3 + 2 * c.plan.edges.size() - 1, 0);  // errors and norms, then blocks of both
        Exact error = 0, norm = 0, target = 0;
        Vector errors(c.plan.edges.size(), 0), norms(c.plan.edges.size(), 0);
        uint8_t loose = 0;
        for (int64_t v = 0; v < count; ++v) {
            const int64_t w = opposed ? row % c.words : v && below(4) ? 0 : below(c.words);
            const float* q = &c.query[w * c.dim];
            const Exact size = std::sqrt(inner(q, q, c.dim));
            std::vector<int> n(c.dim);
            Vector x(c.dim), dq(c.dim), y(axes);
            for (int64_t i = 0; i < axes; ++i) y[i] = inner(&c.basis[i * c.dim], q, c.dim);
            for (int64_t i = 0; i < c.dim; ++i) {
                const double t = scales[w];
                int64_t k = int64_t(std::nearbyint(q[i] / t));
                if ((opposed || below(2)) && c.plan.digits == 2) k = ((k + 64) >> 7) * 128;
                dq[i] = q[i] - Exact(t) * k;
            }
            const int sign = (opposed ? v % 2 : below(2)) ? 1 : -1;
            Exact most = 0;
            for (const Exact each : dq) most = std::max(most, std::abs(each));
            for (int64_t i = 0; i < c.dim; ++i)
                n[i] = mode && most > 0 ? nearest_code(sign * 127 * dq[i] / most) : int(below(255)) - 127;
            const Exact lost = lossless ? 0 : scale * real(0, form == Fine::fixed16 ? 0.45 : 3);
            Exact peak = 1e-30L;
            for (int64_t i = 0; i < c.dim; ++i) peak = std::max(peak, std::abs(Exact(q[i])));
            for (int64_t i = 0; i < c.dim; ++i) x[i] = scale * n[i] + sign * lost * q[i] / peak;
            const Exact codes_share = inner(q, n.data(), c.dim) * scale / std::max(size * size, 1e-60L);
            for (int64_t i = 0; i < c.dim && opposed; ++i) x[i] = scale * n[i] - codes_share * q[i];
            if (mode == 3) {  // along the axes: as the levels lose most
                const Level& level = c.level(int(below(2)));
                for (int64_t i = 0; i < c.dim; ++i) x[i] = c.mean[i];
                Vector out(q, q + c.dim);
                for (int64_t a = 0; a < axes; ++a)
                    for (int64_t i = 0; i < c.dim; ++i) out[i] -= y[a] * c.basis[a * c.dim + i];
                const Vector parts = along(c, level.edges, Vector(q, q + c.dim));
                for (size_t j = 0; j + 1 < level.edges.size(); ++j)
                    for (int64_t a = level.edges[j]; a < level.edges[j + 1]; ++a) {
                        const Exact code = a < level.coordinates ? level.steps[a] * Exact(below(255) - 127) : 0;
                        const Exact most = level.norm_step[j] * 0.9999L * Exact(below(255));
                        const Exact off = parts[j] > 0 ? most * y[a] / parts[j] : 0;
                        for (int64_t i = 0; i < c.dim; ++i) x[i] += (code + off) * c.basis[a * c.dim + i];
                    }
                const Exact rest = level.norm_step[level.norms - 2] * 0.999L * Exact(below(255));
                const Exact beyond = length(out);
                for (int64_t i = 0; i < c.dim && beyond > 1e-6L * size; ++i) x[i] += rest * out[i] / beyond;
                for (int64_t i = 0; i < c.dim; ++i) n[i] = nearest_code(x[i] / scale);
            }
            if (v && below(2) && size > 0 && !lossless && !opposed) {  // nearly as similar to the word as the row's first vector
                const Exact near = target + size * scale * std::pow(10, real(-9, -1)) * (below(2) ? 1 : -1);
                const Exact share = (near - inner(q, x.data(), c.dim)) / (size * size);
                if (std::abs(share) * size < 60 * scale)
                    for (int64_t i = 0; i < c.dim; ++i) x[i] += share * q[i];
            }
            if (c.flat)  // products of a little less or more than half a last place of the sum
                for (int64_t i = 0; i < c.dim; ++i) {
                    const Exact off = (v % 2 ? -1 : 1) * std::ldexp(1.0L, -20);
                    x[i] = i ? q[i] * (i < 16 ? 1 : 1 + off) : 1 + real(-1, 1) * std::ldexp(v ? 1 : 0, -18);
                    n[i] = nearest_code(x[i] / scale);
                }
            const bool again = v && !opposed && below(6) == 0;  // the last vector, but for a last bit
            for (int64_t i = 0; i < c.dim; ++i) {
                const int64_t last = int64_t(c.fine.size()) - c.dim;
                float value = float(x[i]);
                if (again) value = c.fine[last], n[i] = c.codes[(c.vectors - 1) * stride + i] - 128;
                if (again && i == 0 && form == Fine::float32) value = std::nextafter(value, 9.0f);
                if (form == Fine::float16) {  // of the numbers around it
                    int exponent;
                    std::frexp(value, &exponent);
                    const double unit = std::ldexp(1, std::max(exponent - 11, -24));
                    const double whole = std::round(value / unit);
                    value = float(whole * unit);
                    uint16_t h = 0;
                    for (int bit = 14; bit >= 0; --bit) {
                        const uint16_t tried = uint16_t(h | 1 << bit);
                        float wide;
                        c.plan.kernels->widen(&tried, 1, &wide);
                        if (wide <= std::abs(value)) h = tried;
                    }
                    c.half.push_back(uint16_t(h | (value < 0 ? 0x8000 : 0)));
                } else if (form == Fine::fixed16) {
                    const auto low = nearest_code((value - scale * n[i]) * 256 / scale, -128);
                    c.low.push_back(uint8_t(low + 128));
                    value = float((256 * n[i] + low) * scale / 256);
                }
                c.fine.push_back(value);
            }
            const float* kept = &c.fine[c.vectors * c.dim];
            if (!v) target = inner(q, kept, c.dim);
            Vector hat(c.dim), off(c.dim), centered(c.dim);
            for (int64_t i = 0; i < stride; ++i) c.codes.push_back(uint8_t(i < c.dim ? n[i] + 128 : 128));
            for (int64_t i = 0; i < c.dim; ++i)
                hat[i] = scale * n[i], off[i] = kept[i] - hat[i], centered[i] = Exact(kept[i]) - c.mean[i];
            error = std::max(error, length(off)), norm = std::max(norm, length(hat));
            const Vector e = along(c, c.plan.edges, off), h = along(c, c.plan.edges, hat);
            Vector left = hat;
            for (int64_t a = 0; a < axes; ++a) {
                const Exact share = inner(&c.basis[a * c.dim], hat.data(), c.dim);
                for (int64_t i = 0; i < c.dim; ++i) left[i] -= share * c.basis[a * c.dim + i];
            }
            for (size_t j = 0; j < e.size(); ++j) {
                errors[j] = std::max(errors[j], e[j]);
                norms[j] = std::max(norms[j], j + 1 < e.size() ? h[j] : length(left));
            }
            for (int which = 0; which < 2; ++which) loose |= uint8_t(code(c, which, centered, y) << which);
            ++c.vectors;
        }
        c.starts.push_back(c.vectors);
        c.scale.push_back(float(scale)), c.error.push_back(up(error)), c.norm.push_back(up(norm));
        for (size_t j = 0; j + 1 < errors.size(); ++j) c.blocks.push_back(up(errors[j]));
        for (const Exact each : norms) c.blocks.push_back(up(each));
        c.loose.push_back(loose), c.checked.push_back(7), c.order.push_back(row);
    }
}

inline void point(Case& c, bool levels) {
    Part& part = c.part;
    part.rows = int64_t(c.starts.size()) - 1;
    part.starts = c.starts.data(), part.codes = c.codes.data(), part.scale = c.scale.data();
    part.error = c.error.data(), part.norm = c.norm.data(), part.checked = c.checked.data();
    part.fine = part.form == Fine::float32   ? static_cast<const void*>(c.fine.data())
                : part.form == Fine::float16 ? static_cast<const void*>(c.half.data())
                                             : static_cast<const void*>(c.low.data());
    part.blocks = c.blocks.data(), part.loose = c.loose.data(), part.order = c.order.data();
    part.second = c.coded[1].data();
    const int64_t width = c.plan.first.width;
    for (int64_t place = 0; place < part.rows; place += LANES) {
        int64_t most = 0;
        for (int64_t row = place; row < std::min(part.rows, place + LANES); ++row)
            most = std::max(most, c.starts[row + 1] - c.starts[row]);
        for (int64_t v = 0; v < most; ++v)
            for (int64_t i = 0; i < width * LANES; ++i) {
                const int64_t row = std::min(part.rows - 1, place + i / FOUR % LANES);
                const int64_t at = std::min(c.starts[row] + v, c.starts[row + 1] - 1);
                c.first.push_back(c.coded[0][at * width + i / (FOUR * LANES) * FOUR + i % FOUR]);
            }
    }
    part.first = levels ? c.first.data() : nullptr;
}

}  // namespace chan
