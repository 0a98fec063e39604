// Four callers at once give one pool of threads work of 0 to 16 pieces. Every piece must be done exactly once.

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "threads.h"

int main() {
    for (int pools = 0; pools < 20; ++pools) {
        chan::Threads threads(3);
        std::vector<std::thread> callers;
        for (int caller = 0; caller < 4; ++caller)
            callers.emplace_back([&threads] {
                for (int64_t turn = 0; turn < 200; ++turn) {
                    std::vector<int> done(static_cast<size_t>(turn % 17));
                    threads.run(turn % 17, [&done](int64_t piece) { ++done[static_cast<size_t>(piece)]; });
                    for (const int times : done)
                        if (times != 1) {
                            std::printf("a piece was done %d times\n", times);
                            std::exit(1);
                        }
                }
            });
        for (std::thread& caller : callers) caller.join();
    }
}
