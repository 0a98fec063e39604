#include "threads.h"

#include <algorithm>
#include <chrono>

namespace chan {
namespace {

constexpr auto PATIENCE = std::chrono::microseconds(40);  // that a thread looks for more work before it sleeps

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

Threads::Threads(int count) {
    for (int i = 1; i < count; ++i) workers_.emplace_back([this] { help(); });
}

Threads::~Threads() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        ends_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Threads::take(Job& job) {
    try {
        for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) (*job.work)(i);
    } catch (...) {
        job.next.store(job.count, std::memory_order_relaxed);
        std::lock_guard<std::mutex> lock(job.mutex);
        job.error = std::current_exception();
    }
}

void Threads::run(int64_t count, const std::function<void(int64_t)>& work) {
    if (count <= 1 || workers_.empty()) {
        for (int64_t i = 0; i < count; ++i) work(i);
        return;
    }
    Job job;
    job.work = &work;
    job.count = count;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        jobs_.push_back(&job);
        waiting_jobs_.fetch_add(1, std::memory_order_release);
    }
    if (count == 2)
        wake_.notify_one();
    else
        wake_.notify_all();
    take(job);
    {
        std::lock_guard<std::mutex> lock(mutex_);  // nobody begins to help from here on
        const auto mine = std::find(jobs_.begin(), jobs_.end(), &job);
        if (mine != jobs_.end()) {
            jobs_.erase(mine);
            waiting_jobs_.fetch_sub(1, std::memory_order_relaxed);
        }
    }
    for (int spins = 0; job.helpers.load(std::memory_order_acquire); ++spins) {
        if (spins < 2000)
            pause();
        else
            std::this_thread::yield();
    }
    if (job.error) std::rethrow_exception(job.error);
}

void Threads::help() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        while (!jobs_.empty()) {
            Job* job = jobs_.front();
            if (job->next.load(std::memory_order_relaxed) >= job->count) {  // its caller is about to find it done
                jobs_.pop_front();
                waiting_jobs_.fetch_sub(1, std::memory_order_relaxed);
                continue;
            }
            job->helpers.fetch_add(1, std::memory_order_relaxed);
            lock.unlock();
            take(*job);
            job->helpers.fetch_sub(1, std::memory_order_release);
            lock.lock();
        }
        if (ends_) return;
        lock.unlock();
        const auto until = std::chrono::steady_clock::now() + PATIENCE;
        while (!waiting_jobs_.load(std::memory_order_acquire) && std::chrono::steady_clock::now() < until) pause();
        lock.lock();
        if (jobs_.empty() && !ends_) wake_.wait(lock);
    }
}

}  // namespace chan
