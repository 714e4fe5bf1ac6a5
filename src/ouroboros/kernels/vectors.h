// Sixteen floats at a time: the number formats, loads and stores with a count, exp and sums in a fixed order.
//
// There are two sets of instructions, AVX-512 (with bf16 and vnni) and AVX2 (with FMA); a build has one of them. What a set
// calls a Vec (16 floats), Bits (16 words of 32 bits), a Mask (the first so many lanes), Doubles and Longs (8 each) is all
// that the other files know, but for multiply.h, which each set has for itself. A "word" is 32 bits of weights, of keys or
// of queries: one float, or two neighbouring bf16.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

constexpr int LANES = 16;
constexpr int TILE = 2 * LANES;  // outputs of a product that are computed together

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define KERNELS_AVX512
#include "avx512/vectors.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "avx2/vectors.h"
#else
#error "neither AVX-512 with bf16 and vnni nor AVX2 with FMA"
#endif

// exp to about 1 ulp; 0 below -87.
static inline Vec exp16(Vec x) {
    x = larger(x, all(-104.f));
    x = smaller(x, all(88.f));
    const Vec n = nearest(x * all(1.44269504f));
    Vec r = fnma(n, all(0.693145752f), x);
    r = fnma(n, all(1.42860677e-6f), r);
    Vec p = all(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, all(c));
    return times_power(p, n);
}

// cap * tanh(x / cap), to about cap * 1e-7.
static inline Vec capped(Vec x, float cap) {
    return all(cap) - all(2 * cap) / (all(1.f) + exp16(x * all(2 / cap)));
}
