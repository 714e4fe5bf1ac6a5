// What vectors.h promises, in AVX-512: one register each.
#pragma once

constexpr const char* INSTRUCTIONS = "avx512";
constexpr size_t SLICE = 128;  // bytes of a row that lie together (weights.h)
constexpr int SIDE = 4;        // vectors that attention computes side by side for each of its rows

using Vec = __m512;
using Bits = __m512i;
using Mask = __mmask16;

static inline Mask first(int count) { return count >= LANES ? 0xFFFF : count <= 0 ? 0 : (1u << count) - 1; }

static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec all(float x) { return _mm512_set1_ps(x); }
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline Vec load_line(const float* p) { return _mm512_load_ps(p); }  // aligned to 64 bytes
static inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
static inline void store_line(float* p, Vec v) { _mm512_store_ps(p, v); }

static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
static inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }
static inline Vec size_of(Vec v) { return _mm512_abs_ps(v); }
static inline Vec nearest(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Vec times_power(Vec v, Vec n) { return _mm512_scalef_ps(v, n); }  // v * 2^n
static inline void store_whole(int* p, Vec v) { _mm512_storeu_si512(p, _mm512_cvtps_epi32(v)); }

// With a mask: other lanes are zero, or stay what they were.
static inline Vec only(Mask m, Vec v) { return _mm512_maskz_mov_ps(m, v); }
static inline Vec larger(Mask m, Vec old, Vec v) { return _mm512_mask_max_ps(old, m, old, v); }
static inline Vec add(Mask m, Vec old, Vec v) { return _mm512_mask_add_ps(old, m, old, v); }
static inline unsigned greater(Mask m, Vec a, Vec b) { return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_GT_OQ); }  // a bit a lane

// Lanes are added in a fixed tree, so that equal lanes give equal sums.
static inline float sum16(Vec v) { return _mm512_reduce_add_ps(v); }
static inline float max16(Vec v) { return _mm512_reduce_max_ps(v); }
static inline float min16(Vec v) { return _mm512_reduce_min_ps(v); }
static inline float lane0(Vec v) { return _mm512_cvtss_f32(v); }
static inline double sum16_double(Vec v) {
    return _mm512_reduce_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(v)) + _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}

static inline Bits no_bits() { return _mm512_setzero_si512(); }
static inline Bits all_bits(uint32_t x) { return _mm512_set1_epi32(x); }
static inline Bits load_bits(const uint32_t* p, Mask m) { return _mm512_maskz_loadu_epi32(m, p); }
static inline Bits load_line(const uint32_t* p) { return _mm512_load_si512(p); }
static inline void store_bits(uint32_t* p, Bits v) { _mm512_storeu_si512(p, v); }

// Activations, cache rows and logits of one type. `load` and `store` take up to 16 elements as floats; `step` adds words'
// products to sums. Row: how elements of this type lie in a row that enters a product.
struct Fp32 {
    using Element = float;
    using Row = Fp32;
    static constexpr int PER_WORD = 1;

    static Vec load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
    static Vec load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, Mask m, Vec v) { _mm512_mask_storeu_ps(p, m, v); }
    static Vec step(Vec sum, Bits weights, Bits word) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_castsi512_ps(word), sum);
    }
};

struct Bf16 {
    using Element = uint16_t;
    using Row = Bf16;
    static constexpr int PER_WORD = 2;

    static Vec widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
    static Vec load(const uint16_t* p, Mask m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
    static Vec load(const uint16_t* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
    static void store(uint16_t* p, Mask m, Vec v) {
        _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v));  // to the nearest, ties to even
    }
    static Vec step(Vec sum, Bits weights, Bits word) { return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)word); }
};

// Words of 16 rows, turned: out[w] holds word w of all 16.
static inline void transpose16(Bits r[16]) {
    Bits t[16];
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

using Doubles = __m512d;
using Longs = __m512i;

static inline Doubles all8(double x) { return _mm512_set1_pd(x); }
static inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
static inline Doubles fms(Doubles a, Doubles b, Doubles c) { return _mm512_fmsub_pd(a, b, c); }  // a * b - c
static inline __m256 floats(Doubles x) { return _mm512_cvtpd_ps(x); }
static inline Doubles doubles(Longs x) { return _mm512_cvtepu64_pd(x); }  // of numbers below 2^52

// x = m * 2^k for positive normal numbers, m from 1 to below 2, halved where it is above sqrt(2).
static inline void split(Doubles x, Doubles& m, Doubles& k) {
    m = _mm512_getmant_pd(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), k = _mm512_getexp_pd(x);
    const __mmask8 large = _mm512_cmp_pd_mask(m, all8(1.4142135623730951), _CMP_GT_OQ);
    m = _mm512_mask_mul_pd(m, large, m, all8(0.5));
    k = _mm512_mask_add_pd(k, large, k, all8(1));
}

static inline Longs all_longs(uint64_t x) { return _mm512_set1_epi64((long long)x); }
static inline Longs longs(__m256i x) { return _mm512_cvtepi32_epi64(x); }
static inline Longs add(Longs a, Longs b) { return _mm512_add_epi64(a, b); }
static inline Longs times(Longs a, Longs b) { return _mm512_mullo_epi64(a, b); }
static inline Longs exclusive_or(Longs a, Longs b) { return _mm512_xor_si512(a, b); }
template <int BITS>
static inline Longs shift_right(Longs x) { return _mm512_srli_epi64(x, BITS); }

// Up to eight numbers of 32 bits; those from `count` on are zeros, or stay what they were.
static inline __mmask8 first8(int count) { return count >= 8 ? 0xFF : (1u << count) - 1; }
static inline __m256 load8(const float* p, int count) { return _mm256_maskz_loadu_ps(first8(count), p); }
static inline __m256i load8(const int* p, int count) { return _mm256_maskz_loadu_epi32(first8(count), p); }
static inline void store8(float* p, int count, __m256 v) { _mm256_mask_storeu_ps(p, first8(count), v); }
