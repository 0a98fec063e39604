#include "identities.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace chan {
namespace {

// Without the bits above 64, which the years before 1678 and after 2261 have.
uint64_t nanoseconds(const timespec& time) { return uint64_t(time.tv_sec) * 1'000'000'000 + uint64_t(time.tv_nsec); }

}  // namespace

bool untouched(const Watched& watched) {
    if (watched.names.empty()) return true;
    const int descriptor = open(watched.folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return false;
    bool same = true;
    for (size_t i = 0; same && i < watched.names.size(); ++i) {
        struct stat facts;
        const Identity& seen = watched.seen[i];
        same = fstatat(descriptor, watched.names[i], &facts, AT_SYMLINK_NOFOLLOW) == 0 && facts.st_dev == seen.device &&
               facts.st_ino == seen.inode && uint64_t(facts.st_size) == seen.size &&
               nanoseconds(facts.st_mtim) == seen.modified && nanoseconds(facts.st_ctim) == seen.changed;
    }
    close(descriptor);
    return same;
}

bool begins_with(const char* path, const std::string& bytes) {
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0) return false;
    struct stat facts;
    std::string found(bytes.size(), '\0');
    const bool same = fstat(descriptor, &facts) == 0 && S_ISREG(facts.st_mode) &&
                      read(descriptor, &found[0], found.size()) == ssize_t(found.size()) && found == bytes;
    close(descriptor);
    return same;
}

bool is_absent(const char* path) {
    struct stat facts;
    return lstat(path, &facts) != 0 && errno == ENOENT;
}

}  // namespace chan
