#include "kernels.h"

namespace chan {
namespace {

// AVX-512 VNNI comes before AMX, which pays only where every row's int8 codes are read (compiled.py).
constexpr const Kernels* (*ALL[])() = {avx512_kernels, amx_kernels,     avxvnni_kernels, avx2_kernels,
                                       i8mm_kernels,   dotprod_kernels, generic_kernels};

struct Usable {
    const Kernels* kernels[sizeof ALL / sizeof *ALL + 1] = {};
    Usable() {
        const Kernels** next = kernels;
        for (const auto find : ALL)
            if (const Kernels* found = find()) *next++ = found;
    }
};

}  // namespace

const Kernels* const* usable_kernels() {
    static const Usable USABLE;
    return USABLE.kernels;
}

}  // namespace chan
