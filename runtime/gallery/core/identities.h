// What tells whether a gallery was touched, asked of the file system for all its files at once.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace chan {

// What store/files.py knows a file by; all zero of one that is not there.
struct Identity {
    uint64_t device = 0, inode = 0, size = 0, modified = 0, changed = 0;  // size in bytes, times in nanoseconds
};

// Files of one folder, and what they were known by when they were last checked.
struct Watched {
    const char* folder;
    std::vector<const char*> names;
    const Identity* seen;
};

// Whether the files are as they were seen, links not followed.
bool untouched(const Watched& watched);

// Whether a regular file, no link, begins with some bytes.
bool begins_with(const char* path, const std::string& bytes);

// Whether there is neither a file nor anything else of this name.
bool is_absent(const char* path);

}  // namespace chan
