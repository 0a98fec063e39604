// Threads that calls share: each call does its own work, and idle threads help.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace chan {

class Threads {
  public:
    // count: the caller's thread included; count - 1 threads are started.
    explicit Threads(int count);
    ~Threads();

    int count() const { return static_cast<int>(workers_.size()) + 1; }

    // work(0), ..., work(count - 1), in any order, on the caller's thread and on idle ones; returns when all are done.
    // What `work` throws is thrown here once no thread is at it any more; the rest is not begun then. Calls may come from
    // several threads at once.
    void run(int64_t count, const std::function<void(int64_t)>& work);

  private:
    struct Job {
        const std::function<void(int64_t)>* work;
        int64_t count;
        std::atomic<int64_t> next{0};
        std::atomic<int> helpers{0};
        std::mutex mutex;
        std::exception_ptr error;
    };

    void help();
    static void take(Job& job);

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job*> jobs_;
    std::atomic<int> waiting_jobs_{0};
    bool ends_ = false;
    std::vector<std::thread> workers_;
};

}  // namespace chan
