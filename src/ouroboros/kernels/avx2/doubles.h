// Eight doubles and eight whole numbers of 64 bits, in AVX2.
#pragma once

struct Doubles {
    __m256d low, high;
};
struct Longs {
    __m256i low, high;
};

static inline Doubles operator+(Doubles a, Doubles b) { return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)}; }
static inline Doubles operator-(Doubles a, Doubles b) { return {_mm256_sub_pd(a.low, b.low), _mm256_sub_pd(a.high, b.high)}; }
static inline Doubles operator*(Doubles a, Doubles b) { return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)}; }
static inline Doubles operator/(Doubles a, Doubles b) { return {_mm256_div_pd(a.low, b.low), _mm256_div_pd(a.high, b.high)}; }
static inline Doubles all8(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
static inline Doubles fma(Doubles a, Doubles b, Doubles c) {
    return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
}
static inline Doubles fms(Doubles a, Doubles b, Doubles c) {  // a * b - c
    return {_mm256_fmsub_pd(a.low, b.low, c.low), _mm256_fmsub_pd(a.high, b.high, c.high)};
}
static inline __m256 floats(Doubles x) { return _mm256_set_m128(_mm256_cvtpd_ps(x.high), _mm256_cvtpd_ps(x.low)); }

static inline double sum16_double(Vec v) {
    const auto wide = [](__m256 x) {
        return Doubles{_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
    };
    const Doubles eight = wide(v.low) + wide(v.high);
    const __m256d four = _mm256_add_pd(eight.low, eight.high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_pd(two, _mm_unpackhi_pd(two, two)));
}

// What is set in the lower 52 bits of 2^52 is added to it.
static inline __m256d small_double(__m256i x) {
    const __m256d base = _mm256_set1_pd(0x1p52);
    return _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(x), base), base);
}
static inline Doubles doubles(Longs x) { return {small_double(x.low), small_double(x.high)}; }  // of numbers below 2^52

// x = m * 2^k for positive normal numbers, m from 1 to below 2, halved where it is above sqrt(2).
static inline void split(__m256d x, __m256d& m, __m256d& k) {
    const __m256i bits = _mm256_castpd_si256(x);
    const __m256d one = _mm256_set1_pd(1), mantissa = _mm256_castsi256_pd(_mm256_set1_epi64x((1ll << 52) - 1));
    m = _mm256_or_pd(_mm256_and_pd(x, mantissa), one);
    k = _mm256_sub_pd(small_double(_mm256_srli_epi64(bits, 52)), _mm256_set1_pd(1023));
    const __m256d large = _mm256_cmp_pd(m, _mm256_set1_pd(1.4142135623730951), _CMP_GT_OQ);
    m = _mm256_blendv_pd(m, _mm256_mul_pd(m, _mm256_set1_pd(0.5)), large);
    k = _mm256_add_pd(k, _mm256_and_pd(large, one));
}
static inline void split(Doubles x, Doubles& m, Doubles& k) { split(x.low, m.low, k.low), split(x.high, m.high, k.high); }

static inline Longs all_longs(uint64_t x) { return {_mm256_set1_epi64x((long long)x), _mm256_set1_epi64x((long long)x)}; }
static inline Longs longs(__m256i x) {
    return {_mm256_cvtepi32_epi64(_mm256_castsi256_si128(x)), _mm256_cvtepi32_epi64(_mm256_extracti128_si256(x, 1))};
}
static inline Longs add(Longs a, Longs b) { return {_mm256_add_epi64(a.low, b.low), _mm256_add_epi64(a.high, b.high)}; }
static inline Longs exclusive_or(Longs a, Longs b) { return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)}; }
template <int BITS>
static inline Longs shift_right(Longs x) { return {_mm256_srli_epi64(x.low, BITS), _mm256_srli_epi64(x.high, BITS)}; }
static inline __m256i times(__m256i a, __m256i b) {  // from products of 32 bits
    const __m256i crossed = _mm256_mullo_epi32(a, _mm256_shuffle_epi32(b, 0xb1));
    const __m256i both = _mm256_add_epi32(crossed, _mm256_srli_epi64(crossed, 32));
    return _mm256_add_epi64(_mm256_mul_epu32(a, b), _mm256_slli_epi64(both, 32));
}
static inline Longs times(Longs a, Longs b) { return {times(a.low, b.low), times(a.high, b.high)}; }

// Up to eight numbers of 32 bits; those from `count` on are zeros, or stay what they were.
static inline __m256 load8(const float* p, int count) { return _mm256_maskload_ps(p, Mask{count}.half(0)); }
static inline __m256i load8(const int* p, int count) { return _mm256_maskload_epi32(p, Mask{count}.half(0)); }
static inline void store8(float* p, int count, __m256 v) { _mm256_maskstore_ps(p, Mask{count}.half(0), v); }
