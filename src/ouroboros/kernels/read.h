// Reading memory as a forward reads its weights, to see how fast it is.
#pragma once
#include <atomic>
#include <cstdint>

#include "vectors.h"

// Reads `size` bytes once, in pieces for whichever thread comes for the next: who has been pushed off his core holds up
// the others for a piece, not for half of all. What is read passes by the caches. The sum keeps the compiler honest.
inline float read_once(const float* words, int64_t size, int threads) {
    constexpr int64_t PIECE = (1 << 20) / sizeof(float), AHEAD = 4096 / sizeof(float), WIDTH = 16, SUMS = 4;
    const int64_t count = size / int64_t(sizeof(float)) / (SUMS * WIDTH) * (SUMS * WIDTH);
    std::atomic<int64_t> next{0};
    std::atomic<float> found{0};
#pragma omp parallel num_threads(threads)
    {
        Vec sums[SUMS] = {};
        for (int64_t begin; (begin = next.fetch_add(PIECE)) < count;)
            for (int64_t i = begin; i < begin + PIECE && i < count; i += SUMS * WIDTH)
                for (int j = 0; j < SUMS; ++j) {
                    _mm_prefetch((const char*)(words + i + j * WIDTH + AHEAD), _MM_HINT_NTA);
                    sums[j] = sums[j] + load(words + i + j * WIDTH);
                }
        for (int j = 1; j < SUMS; ++j) sums[0] = sums[0] + sums[j];
        found.store(sum16(sums[0]), std::memory_order_relaxed);
    }
    return found.load();
}
