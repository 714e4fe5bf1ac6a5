// A thread's memory for forwards, and the norm that they take of rows.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>

#include "vectors.h"

// One thread's grow-only memory for the forwards that it calls for.
static char* workspace(size_t bytes) {
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<char, Free> held;
    thread_local size_t size = 0;
    if (size < bytes) {
        held.reset();
        size = 0;
        held.reset((char*)std::aligned_alloc(64, bytes));
        if (!held) throw std::bad_alloc();
        size = bytes;
    }
    return held.get();
}

constexpr size_t round64(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Root mean square norm (Zhang & Sennrich 2019), 16 lanes over the row. x(i), out(i): where element i and 15 more are.
template <class Out, class X, class To>
void rms_norm(X&& x, const float* weight, int size, float eps, To&& out) {
    Vec squares = zero();
    for (int i = 0; i < size; i += LANES) {
        const Vec v = Fp32::load(x(i), first(size - i));
        squares = fma(v, v, squares);
    }
    const Vec factor = all(1.f / std::sqrt(sum16(squares) / size + eps));
    for (int i = 0; i < size; i += LANES) {
        const Mask some = first(size - i);
        Out::store(out(i), some, Fp32::load(x(i), some) * factor * Fp32::load(weight + i, some));
    }
}
