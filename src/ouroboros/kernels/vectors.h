// Sixteen floats at a time: the number formats, loads and stores with a count, exp and sums in a fixed order.
//
// A "word" is 32 bits of activations, the unit that a matrix product broadcasts: one float, or two neighbouring bf16.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

using Vec = __m512;
constexpr int LANES = 16;

static inline __mmask16 first(int count) { return count >= LANES ? 0xFFFF : count <= 0 ? 0 : (1u << count) - 1; }

// Activations, cache rows and logits of one type. `load` and `store` take up to 16 elements as floats.
struct Fp32 {
    using Element = float;
    static constexpr int PER_WORD = 1;

    static Vec load(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
    static Vec load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, __mmask16 m, Vec v) { _mm512_mask_storeu_ps(p, m, v); }
    static Vec step(Vec sum, __m512i weights, __m512i word) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_castsi512_ps(word), sum);
    }
};

#ifdef __AVX512BF16__
struct Bf16 {
    using Element = uint16_t;
    static constexpr int PER_WORD = 2;

    static Vec widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
    static Vec load(const uint16_t* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
    static Vec load(const uint16_t* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
    static void store(uint16_t* p, __mmask16 m, Vec v) {
        _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v));  // to the nearest, ties to even
    }
    static Vec step(Vec sum, __m512i weights, __m512i word) {
        return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)word);
    }
};
#endif

static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec all(float x) { return _mm512_set1_ps(x); }

// exp to about 1 ulp; 0 below -87.
static inline Vec exp16(Vec x) {
    x = _mm512_max_ps(x, all(-104.f));
    x = _mm512_min_ps(x, all(88.f));
    const Vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Vec r = _mm512_fnmadd_ps(n, all(0.693145752f), x);
    r = _mm512_fnmadd_ps(n, all(1.42860677e-6f), r);
    Vec p = all(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, all(c));
    return _mm512_scalef_ps(p, n);
}

// Lanes are added in a fixed tree, so that equal lanes give equal sums.
static inline float sum16(Vec v) { return _mm512_reduce_add_ps(v); }
static inline float max16(Vec v) { return _mm512_reduce_max_ps(v); }

// Words of 16 rows, turned: out[w] holds word w of all 16.
static inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}
