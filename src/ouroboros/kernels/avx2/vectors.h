// What vectors.h promises, in AVX2 with FMA: two registers each. There is no arithmetic in bf16: it is widened.
#pragma once
#include <algorithm>

constexpr const char* INSTRUCTIONS = "avx2";
constexpr size_t SLICE = 512;  // bytes of a row that lie together (weights.h): a product's 128 floats
constexpr int SIDE = 1;        // vectors that attention computes side by side for each of its rows

struct Vec {
    __m256 low, high;
};
struct Bits {
    __m256i low, high;
};
struct Mask {
    int count;  // of lanes, the first ones
    bool whole() const { return count == LANES; }
    __m256i half(int lane) const {  // of lanes lane ... lane+7
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count - lane), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
};

static inline Mask first(int count) { return {std::min(std::max(count, 0), LANES)}; }

static inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline Vec all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline Vec load_line(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }  // aligned to 64 bytes
static inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v.low), _mm256_storeu_ps(p + 8, v.high); }
static inline void store_line(float* p, Vec v) { _mm256_store_ps(p, v.low), _mm256_store_ps(p + 8, v.high); }

static inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
static inline Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline Vec fnma(Vec a, Vec b, Vec c) {  // c - a * b
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
static inline Vec larger(Vec a, Vec b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
static inline Vec smaller(Vec a, Vec b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
static inline Vec size_of(Vec v) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.f), v.low), _mm256_andnot_ps(_mm256_set1_ps(-0.f), v.high)}; }
static inline Vec nearest(Vec v) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(v.low, how), _mm256_round_ps(v.high, how)};
}
static inline Bits whole(Vec v) { return {_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high)}; }
static inline Vec times_power(Vec v, Vec n) {  // v * 2^n; 0 for n below -126
    const auto power = [](__m256 x) {
        const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_max_epi32(biased, _mm256_setzero_si256()), 23));
    };
    return v * Vec{power(n.low), power(n.high)};
}

// With a mask: other lanes are zero, or stay what they were.
static inline Vec blend(Mask m, Vec yes, Vec no) {
    return {_mm256_blendv_ps(no.low, yes.low, _mm256_castsi256_ps(m.half(0))),
            _mm256_blendv_ps(no.high, yes.high, _mm256_castsi256_ps(m.half(8)))};
}
static inline Vec only(Mask m, Vec v) { return m.whole() ? v : blend(m, v, zero()); }
static inline Vec larger(Mask m, Vec old, Vec v) { return m.whole() ? larger(old, v) : blend(m, larger(old, v), old); }
static inline Vec add(Mask m, Vec old, Vec v) { return m.whole() ? old + v : blend(m, old + v, old); }
static inline unsigned greater(Mask m, Vec a, Vec b) {  // a bit a lane
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ));
    return unsigned(low | high << 8) & ((1u << m.count) - 1);
}

// Lanes are added in a fixed tree, so that equal lanes give equal sums.
template <class F>
static inline float fold16(Vec v, F&& f) {
    const __m256 eight = f(v.low, v.high);
    const __m256 four = f(eight, _mm256_permute2f128_ps(eight, eight, 1));
    const __m256 two = f(four, _mm256_permute_ps(four, 0x4e));
    return _mm256_cvtss_f32(f(two, _mm256_permute_ps(two, 0xb1)));
}
static inline float sum16(Vec v) { return fold16(v, [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); }); }
static inline float max16(Vec v) { return fold16(v, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); }); }
static inline float min16(Vec v) { return fold16(v, [](__m256 a, __m256 b) { return _mm256_min_ps(a, b); }); }
static inline float lane0(Vec v) { return _mm256_cvtss_f32(v.low); }

static inline Bits no_bits() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline Bits all_bits(uint32_t x) { return {_mm256_set1_epi32(int(x)), _mm256_set1_epi32(int(x))}; }
static inline Bits load_line(const uint32_t* p) { return {_mm256_load_si256((const __m256i*)p), _mm256_load_si256((const __m256i*)p + 1)}; }
static inline Bits load_bits(const uint32_t* p, Mask m) {
    return {_mm256_maskload_epi32((const int*)p, m.half(0)), _mm256_maskload_epi32((const int*)p + 8, m.half(8))};
}
static inline void store_bits(uint32_t* p, Bits v) {
    _mm256_storeu_si256((__m256i*)p, v.low), _mm256_storeu_si256((__m256i*)p + 1, v.high);
}
static inline void store_whole(int* p, Vec v) { store_bits((uint32_t*)p, whole(v)); }

// The two bf16 of each word, as floats.
static inline __m256 even(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
static inline __m256 odd(__m256i words) { return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000)))); }

// Activations, cache rows and logits of one type. `load` and `store` take up to 16 elements as floats; `step` adds words'
// products to sums. Row: how elements of this type lie in a row that enters a product.
struct Fp32 {
    using Element = float;
    using Row = Fp32;
    static constexpr int PER_WORD = 1;

    static Vec load(const float* p) { return ::load(p); }
    static Vec load(const float* p, Mask m) {
        return m.whole() ? load(p) : Vec{_mm256_maskload_ps(p, m.half(0)), _mm256_maskload_ps(p + 8, m.half(8))};
    }
    static void store(float* p, Mask m, Vec v) {
        if (m.whole()) return ::store(p, v);
        _mm256_maskstore_ps(p, m.half(0), v.low), _mm256_maskstore_ps(p + 8, m.half(8), v.high);
    }
    static Vec step(Vec sum, Bits weights, Bits word) {
        return fma({_mm256_castsi256_ps(weights.low), _mm256_castsi256_ps(weights.high)},
                   {_mm256_castsi256_ps(word.low), _mm256_castsi256_ps(word.high)}, sum);
    }
};

struct Bf16 {
    using Element = uint16_t;
    static constexpr int PER_WORD = 2;

    // To the nearest, ties to even; the lower half of each lane is then zero.
    static __m256i round(__m256 v) {
        const __m256i bits = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
        const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
        const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
        const __m256 none = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);  // stays none
        const __m256 found = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_set1_ps(NAN), none);
        return _mm256_and_si256(_mm256_castps_si256(found), _mm256_set1_epi32(int(0xffff0000)));
    }

    // A row of them that enters a product is widened once, not for each tile.
    struct Row : Fp32 {
        static void store(float* p, Mask m, Vec v) {
            Fp32::store(p, m, {_mm256_castsi256_ps(round(v.low)), _mm256_castsi256_ps(round(v.high))});
        }
    };

    static Vec load(const uint16_t* p) {
        const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
        const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p + 1));
        return {even(low), even(high)};
    }
    static Vec load(const uint16_t* p, Mask m) {
        if (m.whole()) return load(p);
        uint16_t some[LANES] = {};
        std::memcpy(some, p, m.count * sizeof(uint16_t));
        return load(some);
    }
    static void store(uint16_t* p, Mask m, Vec v) {
        const __m256i low = _mm256_srli_epi32(round(v.low), 16), high = _mm256_srli_epi32(round(v.high), 16);
        const __m256i rounded = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
        if (m.whole()) return _mm256_storeu_si256((__m256i*)p, rounded);
        uint16_t some[LANES];
        _mm256_storeu_si256((__m256i*)some, rounded);
        std::memcpy(p, some, m.count * sizeof(uint16_t));
    }
    static Vec step(Vec sum, Bits weights, Bits word) {
        sum = fma({even(weights.low), even(weights.high)}, {even(word.low), even(word.high)}, sum);
        return fma({odd(weights.low), odd(weights.high)}, {odd(word.low), odd(word.high)}, sum);
    }
};

// Words of 16 rows, turned: out[w] holds word w of all 16.
static inline void transpose8(__m256i r[8]) {
    __m256i t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            u[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
            u[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int j = 0; j < 4; ++j) {
        r[j] = _mm256_permute2x128_si256(u[j], u[j + 4], 0x20);
        r[j + 4] = _mm256_permute2x128_si256(u[j], u[j + 4], 0x31);
    }
}
static inline void transpose16(Bits r[16]) {
    for (int right = 0; right < 2; ++right) {
        __m256i top[8], bottom[8];
        for (int i = 0; i < 8; ++i) top[i] = right ? r[i].high : r[i].low, bottom[i] = right ? r[8 + i].high : r[8 + i].low;
        transpose8(top), transpose8(bottom);
        for (int i = 0; i < 8; ++i) (right ? r[i].high : r[i].low) = top[i], (right ? r[8 + i].high : r[8 + i].low) = bottom[i];
    }
    for (int i = 0; i < 8; ++i) std::swap(r[i].high, r[8 + i].low);
}
#include "doubles.h"
