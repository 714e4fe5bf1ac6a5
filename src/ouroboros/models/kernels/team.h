// Threads of one OpenMP region that go through many short phases together.
//
// OpenMP itself is only used to borrow the threads, which PyTorch's operators use too (a second pool would fight them
// for the cores). Which thread does an item never changes its result.
#pragma once
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <vector>

class Team {
  public:
    explicit Team(int threads, int phases) : next_(size_t(phases) * threads), width_(threads) {}

    void resize(int threads) { threads_ = threads; }  // OpenMP may grant fewer than asked for

    void barrier() {
        if (threads_ == 1) return;
        const int now = generation_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            generation_.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; generation_.load(std::memory_order_acquire) == now; ++spins)
            spins < 20000 ? _mm_pause() : (void)sched_yield();  // somebody else may need this core to let us go on
    }

    // Does items 0 ... count-1 of a phase: a contiguous share each, then what others have left. Ends with a barrier.
    template <class F>
    void share(int phase, int thread, int count, F&& item) {
        for (int i = 0; i < threads_; ++i) {
            const int owner = (thread + i) % threads_;
            const int begin = int(int64_t(count) * owner / threads_), end = int(int64_t(count) * (owner + 1) / threads_);
            std::atomic<int>& next = next_[size_t(phase) * width_ + owner].value;
            for (int at; (at = begin + next.fetch_add(1, std::memory_order_relaxed)) < end;) item(at);
        }
        barrier();
    }

  private:
    struct alignas(64) Counter {
        std::atomic<int> value{0};
    };
    std::vector<Counter> next_;
    int width_, threads_ = 1;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> generation_{0};
};
