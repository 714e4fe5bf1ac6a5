// Threads of one OpenMP region that go through many short phases together.
//
// OpenMP itself only lends the threads, which PyTorch's operators use too (a second pool would fight them for the
// cores). A phase ends when its items are done, not when every thread has come: a thread that another program has
// pushed off its core holds up the others only if it was in the middle of an item. Which thread does an item never
// changes its result.
#pragma once
#include <immintrin.h>
#include <linux/futex.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <vector>

class Team {
  public:
    Team(int threads, int phases) : next_(size_t(phases) * threads), done_(phases), width_(threads), threads_(threads) {}

    void resize(int threads) { threads_ = threads; }  // OpenMP may grant fewer than asked for

    // Does items 0 ... count-1 of a phase: a contiguous share each, then what others have left. Returns when all are
    // done. Threads go through the same phases in order. Items are claimed a quarter of what is left at a time: a claim
    // waits until all that was written before it has reached the caches.
    template <class F>
    void share(int phase, int thread, int count, F&& item) {
        if (!count) return;
        int mine = 0;
        for (int i = 0; i < threads_; ++i) {
            const int owner = (thread + i) % threads_;
            const int begin = int(int64_t(count) * owner / threads_), end = int(int64_t(count) * (owner + 1) / threads_);
            std::atomic<int>& next = next_[size_t(phase) * width_ + owner].value;
            for (int at = next.load(std::memory_order_relaxed), size; (size = end - begin - at) > 0;) {
                const int until = at + (size + 3) / 4;
                if (!next.compare_exchange_weak(at, until, std::memory_order_relaxed)) continue;
                for (; at < until; ++at, ++mine) item(begin + at);
                at = next.load(std::memory_order_relaxed);
            }
        }
        if (threads_ == 1) return;
        if (mine && done_[phase].value.fetch_add(mine, std::memory_order_acq_rel) + mine == count) {
            completed_.store(phase + 1);
            if (sleepers_.load()) syscall(SYS_futex, &completed_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
        }
        wait(phase);
    }

  private:
    struct alignas(64) Counter {
        std::atomic<int> value{0};
    };

    // Spins for as long as threads of a quiet machine are apart, then sleeps: who sleeps is the first to be woken when
    // other programs want the cores as well.
    void wait(int phase) {
        for (int spins = 0; spins < 2000; ++spins) {
            if (completed_.load(std::memory_order_acquire) > phase) return;
            _mm_pause();
        }
        ++sleepers_;
        for (int now; (now = completed_.load()) <= phase;)
            syscall(SYS_futex, &completed_, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
        --sleepers_;
    }

    std::vector<Counter> next_, done_;
    int width_, threads_;
    alignas(64) std::atomic<int> completed_{0};
    alignas(64) std::atomic<int> sleepers_{0};
};
