// Matrices as GGUF files hold them: how they are packed, and how packed ones become numbers again.
//
// A panel is 16 outputs. It holds record behind record: for each of its outputs one block of the file's, 256 inputs of a
// K kind, 32 of the others, with the same bits in another order, so that a matrix takes the bytes that it takes in the
// file. A step is four inputs; a half is 8 outputs: 32 numbers of 8 bits, each output's four in turn. In a record:
//   4 bits of each number: for two steps and a half 32 bytes, the first step's bits the lower ones (Q8_0: whole bytes);
//   Q5: their fifth bits: for eight steps and a half 32 bytes, a bit a step; Q6: two bits each, four steps;
//   K kinds: scales (Q4, Q5: the 12 bytes that hold scales and minima of 6 bits), byte by byte, 16 outputs each;
//   the block's float16, 16 outputs; Q4_K, Q5_K: the minima's.
//
// Everything here is 256 bits wide, in either set of instructions.
#pragma once
#include "../weights.h"

namespace stored {

constexpr int PANEL = 16, STEP = 4, STEP_BYTES = PANEL * STEP;
constexpr int GROUP = 32;                   // inputs that are rounded together (rounded.h)
constexpr int WIDTH = 256;                  // inputs that are unpacked together
constexpr int GROUPS = WIDTH / GROUP;

// ggml's numbers of its types.
enum Kind : int { F32 = 0, F16 = 1, Q4_0 = 2, Q5_0 = 6, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30 };

// BITS: of a number. BLOCK: inputs. BYTES: of an output's block. SUB: inputs with one scale. MINIMA: whether a scale has a
// minimum beside it. LOG: numbers less 2^LOG are what is multiplied; 0: they are it. (A sum of SUB of these times 127 then
// is a number of 16 bits, in each of the two halves of a sum.)
template <int BITS_, int BLOCK_, int BYTES_, int SUB_, bool MINIMA_, int LOG_>
struct Traits {
    static constexpr int BITS = BITS_, BLOCK = BLOCK_, BYTES = BYTES_, SUB = SUB_, LOG = LOG_;
    static constexpr bool MINIMA = MINIMA_, SCALES = BLOCK == WIDTH;  // SCALES: whole ones, of SUB inputs each
    static constexpr int STEPS = BLOCK / STEP, SUBS = BLOCK / SUB;
    static constexpr int RECORD = BYTES * PANEL;
    static constexpr int HIGH = STEPS * STEP_BYTES / (BITS == 8 ? 1 : 2);      // where the bits beyond four begin
    static constexpr int REST = HIGH + (BITS == 5 ? STEPS * STEP_BYTES / 8 : BITS == 6 ? STEPS * STEP_BYTES / 4 : 0);
    static constexpr int HALVES = REST + (SCALES ? (MINIMA ? 12 : SUBS) * PANEL : 0);  // and the float16
};
template <int KIND>
struct Of;
template <> struct Of<Q4_0> : Traits<4, 32, 18, 32, false, 3> {};
template <> struct Of<Q5_0> : Traits<5, 32, 22, 32, false, 4> {};
template <> struct Of<Q8_0> : Traits<8, 32, 34, 32, false, 3> {};  // two numbers of 4 bits
template <> struct Of<Q4_K> : Traits<4, 256, 144, 32, true, 0> {};
template <> struct Of<Q5_K> : Traits<5, 256, 176, 32, true, 4> {};
template <> struct Of<Q6_K> : Traits<6, 256, 210, 16, false, 5> {};

// A panel's numbers of up to WIDTH inputs.
struct Unpacked {
    alignas(64) uint8_t numbers[WIDTH / STEP][STEP_BYTES];
    alignas(64) uint8_t upper[WIDTH / STEP][STEP_BYTES];  // of Q8_0: the numbers are 16 * upper + numbers - 128
    alignas(64) int32_t scales[WIDTH / 16][PANEL];        // K kinds: of SUB inputs, as a product takes them (factor.h)
    alignas(64) float factors[GROUPS][PANEL];             // K kinds: the block's, else each group's
    alignas(64) float minima[GROUPS][PANEL];              // what each input of a group has less
};

static inline __m256i load32(const void* p) { return _mm256_load_si256((const __m256i*)p); }
static inline void store32(void* p, __m256i v) { _mm256_store_si256((__m256i*)p, v); }
static inline __m256 halves(const char* p) { return _mm256_cvtph_ps(_mm_load_si128((const __m128i*)p)); }

// Each byte's bits, moved, as far as `mask` keeps them.
template <int SHIFT>  // to the left; to the right if it is negative
static inline __m256i bits(__m256i v, __m256i mask) {
    if constexpr (SHIFT > 0) v = _mm256_slli_epi16(v, SHIFT);
    if constexpr (SHIFT < 0) v = _mm256_srli_epi16(v, -SHIFT);
    return _mm256_and_si256(v, mask);
}

// Numbers of a record, unpacked as they are asked for: those of a half and one of eight steps (`at`: the first one's place).
// UPPER: of Q8_0, the upper four bits less 2^LOG, in place of the lower four.
template <class K, bool UPPER = false>
struct Packed {
    const char *four, *more;
    Packed(const char* record, int step)
        : four(record + step * STEP_BYTES / (K::BITS == 8 ? 1 : 2)),
          more(record + K::HIGH + step * STEP_BYTES / (K::BITS == 5 ? 8 : 4)) {}

    template <int STEP_, int HALF>
    __m256i get() const {
        const __m256i low = _mm256_set1_epi8(15);
        if constexpr (K::BITS == 8) return bits<UPPER ? -4 : 0>(load32(four + STEP_ * STEP_BYTES + HALF * 32), low);
        const __m256i v = bits<STEP_ % 2 ? -4 : 0>(load32(four + STEP_ / 2 * STEP_BYTES + HALF * 32), low);
        if constexpr (K::BITS == 5) return _mm256_or_si256(v, bits<4 - STEP_>(load32(more + HALF * 32), _mm256_set1_epi8(16)));
        if constexpr (K::BITS == 6)
            return _mm256_or_si256(v, bits<4 - STEP_ % 4 * 2>(load32(more + STEP_ / 4 * STEP_BYTES + HALF * 32), _mm256_set1_epi8(48)));
        return v;
    }
};

// The same, of numbers that lie unpacked.
struct Ready {
    const uint8_t* numbers;

    // A load that stays one: GCC would rather load again for each row than hold the numbers.
    template <int STEP_, int HALF>
    __m256i get() const {
        __m256i v;
        asm("vmovdqa %1, %0" : "=x"(v) : "m"(*(const __m256i*)(numbers + STEP_ * STEP_BYTES + HALF * 32)));
        return v;
    }
};

template <class K, bool UPPER, int... S>
static inline void unpack_eight(const char* record, int step, uint8_t* to, std::integer_sequence<int, S...>) {
    const Packed<K, UPPER> from(record, step);
    (store32(to + S * 32, from.template get<S / 2, S % 2>()), ...);
}

// A record's numbers.
template <class K>
static inline void unpack_numbers(const char* record, Unpacked& to, int first_step) {
#pragma GCC unroll 1
    for (int step = 0; step < K::STEPS; step += 8) {
        unpack_eight<K, false>(record, step, to.numbers[first_step + step], std::make_integer_sequence<int, 16>());
        if constexpr (K::BITS == 8)
            unpack_eight<K, true>(record, step, to.upper[first_step + step], std::make_integer_sequence<int, 16>());
    }
}

// 16 outputs' scales of 8 bits, with sign, as `multiplied` takes them.
static inline void widen_scales(__m128i scales, int32_t* to) {
#ifdef __AVX512VNNI__
    store32(to, _mm256_cvtepi8_epi32(scales));
    store32(to + 8, _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(scales, scales)));
#else
    const __m256i both = _mm256_broadcastsi128_si256(scales);  // each output's twice, in 16 bits
    const __m256i first = _mm256_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3,  //
                                           -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7);
    const __m256i second = _mm256_or_si256(first, _mm256_set1_epi16(0x0800));
    store32(to, _mm256_srai_epi16(_mm256_shuffle_epi8(both, first), 8));
    store32(to + 8, _mm256_srai_epi16(_mm256_shuffle_epi8(both, second), 8));
#endif
}

// 16 outputs' numbers of 8 bits, without sign, times a factor each.
struct Factors {
    __m256 half[2];
    Factors(__m128i whole, const Factors& by) {
        half[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(whole)), by.half[0]);
        half[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(whole, whole))), by.half[1]);
    }
    explicit Factors(const char* at) : half{halves(at), halves(at + 16)} {}
    void store(float* to) const { _mm256_store_ps(to, half[0]), _mm256_store_ps(to + 8, half[1]); }
};

template <class K>
static inline void unpack_scales(const char* record, Unpacked& to, int group) {
    const Factors factors(record + K::HALVES);
    factors.store(to.factors[group]);
    const auto line = [&](int i) { return _mm_load_si128((const __m128i*)(record + K::REST + PANEL * i)); };
    if constexpr (K::SCALES && !K::MINIMA) {
        for (int i = 0; i < K::SUBS; ++i) widen_scales(line(i), to.scales[i]);
    } else if constexpr (K::MINIMA) {
        const Factors least(record + K::HALVES + 2 * PANEL);
        const __m128i six = _mm_set1_epi8(63), four = _mm_set1_epi8(15), two = _mm_set1_epi8(48);
        const auto both = [&](int i, __m128i scale, __m128i minimum) {
            widen_scales(scale, to.scales[i]);
            Factors found(minimum, least);
            if constexpr (K::LOG > 0) {  // the offset of numbers is taken from the minimum
                const Factors scaled(scale, factors);
                for (int h = 0; h < 2; ++h)
                    found.half[h] = _mm256_fnmadd_ps(scaled.half[h], _mm256_set1_ps(1 << K::LOG), found.half[h]);
            }
            found.store(to.minima[i]);
        };
        const auto joined = [&](__m128i low, __m128i top) {
            return _mm_or_si128(_mm_and_si128(low, four), _mm_and_si128(_mm_srli_epi16(top, 2), two));
        };
        for (int i = 0; i < 4; ++i) {
            const __m128i scale = line(i), minimum = line(i + 4), rest = line(i + 8);
            both(i, _mm_and_si128(scale, six), _mm_and_si128(minimum, six));
            both(i + 4, joined(rest, scale), joined(_mm_srli_epi16(rest, 4), minimum));
        }
    }
}

constexpr int AHEAD = 8192;  // bytes that are asked for beforehand, past the caches

template <class K>
static inline void fetch(const char* record) {
    for (int i = 0; i < K::RECORD; i += 64) _mm_prefetch(record + AHEAD + i, _MM_HINT_NTA);
}

// `inputs` numbers, at most WIDTH, of a panel; `numbers`: those too, else scales alone.
template <class K>
static inline void unpack(const char* record, int inputs, bool numbers, Unpacked& to) {
    for (int at = 0; at < inputs; at += K::BLOCK, record += K::RECORD) {
        fetch<K>(record);
        if (numbers) unpack_numbers<K>(record, to, at / STEP);
        unpack_scales<K>(record, to, at / GROUP);
    }
}

}  // namespace stored
