// Numbers of 16 bits whose upper byte is an int8 code, as float32: exact, so the same for each instruction set. A plain
// loop, which the compiler makes vectors of. proof/fixed16.py writes them.

void widen_fixed(const uint8_t* codes, const uint8_t* low, int64_t count, float unit, float* out) {
    constexpr int32_t ZERO = 128 * 256 + 128;  // both bytes are stored with 128 added
    for (int64_t at = 0; at < count; ++at)
        out[at] = static_cast<float>(int32_t(codes[at]) * 256 + int32_t(low[at]) - ZERO) * unit;
}
