// What tells whether files were touched, asked of the file system for many at once.

#pragma once

#include <cstdint>
#include <vector>

namespace chan {

// What store/files.py knows a file by; all zero of one that is not there.
struct Identity {
    uint64_t device = 0, inode = 0, size = 0, modified = 0, changed = 0;  // size in bytes, times in nanoseconds
};

// Those of files of one folder by their names, links not followed.
std::vector<Identity> identities(const char* folder, const std::vector<const char*>& names);

}  // namespace chan
