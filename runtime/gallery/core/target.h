// The instructions that a file is compiled for: CHAN_TARGET("avx2,fma") before its functions and the header of
// instructions, or CHAN_TARGET_ARM("dotprod"), and CHAN_TARGET_END after them.
#pragma once

#define CHAN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define CHAN_TARGET(names) CHAN_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define CHAN_TARGET_ARM(name) CHAN_TARGET(name)
#define CHAN_TARGET_END CHAN_PRAGMA(clang attribute pop)
#else
#define CHAN_TARGET(names) CHAN_PRAGMA(GCC push_options) CHAN_PRAGMA(GCC target(names))
#define CHAN_TARGET_ARM(name) CHAN_TARGET("arch=armv8.2-a+" name)
#define CHAN_TARGET_END CHAN_PRAGMA(GCC pop_options)
#endif
