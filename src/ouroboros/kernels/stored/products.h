// Products of a panel's unpacked numbers with rounded rows, and of plain floats with rows as they are.
//
// Sums of SUB products are whole and exact. They become floats at once and are added up in the order of the inputs.
#pragma once
#include "rounded.h"

namespace stored {

// sum + the products of 32 numbers without sign and 32 with one. Without vnni: in 16 bits, two halves of each output's sum.
static inline __m256i add_products(__m256i sum, __m256i numbers, __m256i inputs) {
#ifdef __AVX512VNNI__
    return _mm256_dpbusd_epi32(sum, numbers, inputs);
#else
    const __m256i products = _mm256_maddubs_epi16(numbers, inputs);
    asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(products));  // in its own register; left to itself GCC takes one more
    return sum;
#endif
}

// Sums times whole scales, as widen_scales made them.
static inline __m256i multiplied(__m256i sum, __m256i scale) {
#ifdef __AVX512VNNI__
    return _mm256_mullo_epi32(sum, scale);
#else
    return _mm256_madd_epi16(sum, scale);
#endif
}
static inline __m256i whole(__m256i sum) {
#ifdef __AVX512VNNI__
    return sum;
#else
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
#endif
}
template <int LOG>
static inline __m256i start(int32_t word) {
    const __m256i all = _mm256_set1_epi32(word);
#ifdef __AVX512VNNI__
    return _mm256_slli_epi32(all, LOG);
#else
    return _mm256_slli_epi16(all, LOG);
#endif
}

// Sums of SUB products for ROWS rows. numbers: of eight steps, of which those from FIRST on. part: which of a group's inputs, as
// Rounded::starts has them.
template <int LOG, int FIRST, int ROWS, class Numbers, int... S>
__attribute__((always_inline)) static inline void sum_products(const Numbers& numbers, const Rounded* rows, int part,
                                                               __m256i (&sum)[ROWS][2], std::integer_sequence<int, S...>) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = LOG ? start<LOG>(rows[r].starts[part]) : _mm256_setzero_si256();
    const auto step = [&](auto s) __attribute__((always_inline)) {
        constexpr int AT = FIRST + decltype(s)::value;
        const __m256i first = numbers.template get<AT, 0>(), second = numbers.template get<AT, 1>();
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256i x = _mm256_castps_si256(_mm256_broadcast_ss((const float*)(rows[r].numbers + AT * STEP)));
            sum[r][0] = add_products(sum[r][0], first, x);
            sum[r][1] = add_products(sum[r][1], second, x);
        }
    };
    (step(std::integral_constant<int, S>()), ...);
}

// Adds the products of `groups` groups to sums[row * TILE + output]. rows: the first group's; step: rows to the next group.
// READY: numbers are unpacked; else the record's at `packed`.
template <class K, int ROWS, bool READY>
struct Products {
    using Sum = __m256i[ROWS][2];
    using Steps = std::make_integer_sequence<int, K::SUB / STEP>;

    static void run(const Unpacked& w, const char* packed, const Rounded* rows, size_t step, int groups, float* sums) {
        if constexpr (K::SCALES) scaled(w, packed, rows, step, groups, sums);
        else plain(w, packed, rows, step, groups, sums);
    }

    template <class F>
    static inline void each(F&& f) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) f(r, h);
    }

    template <bool UPPER>
    static inline auto numbers(const Unpacked& w, const char* packed, int group) {
        if constexpr (READY) return Ready{(UPPER ? w.upper : w.numbers)[group * 8]};
        else return Packed<K, UPPER>(packed + (K::SCALES ? 0 : group * K::RECORD), K::SCALES ? group * 8 : 0);
    }

    static inline void scaled(const Unpacked& w, const char* packed, const Rounded* rows, size_t step, int groups, float* sums) {
        alignas(32) float parts[ROWS][PANEL];
        each([&](int r, int h) { _mm256_store_ps(parts[r] + 8 * h, _mm256_setzero_ps()); });
#pragma GCC unroll 1
        for (int g = 0; g < groups; ++g) {
            const Rounded* group = rows + g * step;
            const auto from = numbers<false>(w, packed, g);
            const auto add = [&](const Sum& sum, const int32_t* scales) {
                each([&](int r, int h) {
                    const __m256 v = _mm256_cvtepi32_ps(multiplied(sum[r][h], load32(scales + 8 * h)));
                    float* to = parts[r] + 8 * h;
                    _mm256_store_ps(to, _mm256_fmadd_ps(v, _mm256_broadcast_ss(&group[r].scale), _mm256_load_ps(to)));
                });
                if (ROWS > 2) asm("" : "+m"(parts));  // where they stay: registers are for the sums
            };
            Sum sum;
            if constexpr (K::SUB == GROUP) {
                sum_products<K::LOG, 0>(from, group, 2, sum, Steps());
                add(sum, w.scales[g]);
            } else {
                sum_products<K::LOG, 0>(from, group, 0, sum, Steps());
                add(sum, w.scales[2 * g]);
                sum_products<K::LOG, 4>(from, group, 1, sum, Steps());
                add(sum, w.scales[2 * g + 1]);
            }
        }
        __m256 total[ROWS][2];
        each([&](int r, int h) {
            const __m256 factor = _mm256_load_ps(w.factors[0] + 8 * h), before = _mm256_load_ps(sums + r * TILE + 8 * h);
            total[r][h] = _mm256_fmadd_ps(_mm256_load_ps(parts[r] + 8 * h), factor, before);
        });
        if constexpr (K::MINIMA)
#pragma GCC unroll 1
            for (int g = 0; g < groups; ++g) {
                const __m256 first = _mm256_load_ps(w.minima[g]), second = _mm256_load_ps(w.minima[g] + 8);
                each([&](int r, int h) {
                    total[r][h] = _mm256_fnmadd_ps(h ? second : first, _mm256_broadcast_ss(&rows[g * step + r].sum), total[r][h]);
                });
            }
        each([&](int r, int h) { _mm256_store_ps(sums + r * TILE + 8 * h, total[r][h]); });
    }

    static inline void plain(const Unpacked& w, const char* packed, const Rounded* rows, size_t step, int groups, float* sums) {
#pragma GCC unroll 1
        for (int g = 0; g < groups; ++g) {
            const Rounded* group = rows + g * step;
            Sum sum;
            sum_products<K::LOG, 0>(numbers<K::BITS == 8>(w, packed, g), group, 2, sum, Steps());
            each([&](int r, int h) { sum[r][h] = whole(sum[r][h]); });
            if constexpr (K::BITS == 8) {
                Sum lower;
                sum_products<0, 0>(numbers<false>(w, packed, g), group, 2, lower, Steps());
                each([&](int r, int h) { sum[r][h] = _mm256_add_epi32(_mm256_slli_epi32(sum[r][h], 4), whole(lower[r][h])); });
            }
            each([&](int r, int h) {
                const __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][h]), _mm256_broadcast_ss(&group[r].scale));
                float* to = sums + r * TILE + 8 * h;
                _mm256_store_ps(to, _mm256_fmadd_ps(v, _mm256_load_ps(w.factors[g] + 8 * h), _mm256_load_ps(to)));
            });
        }
    }
};

constexpr int TOGETHER_ROWS = 48;  // rows that a panel is read once for
constexpr int BLOCK = 4;           // rows whose sums are in registers

// Calls with<ROWS>(begin, ROWS) for blocks of up to BLOCK of `count` rows, about equally large.
template <class F>
static inline void in_blocks(int count, F&& with) {
    const int blocks = (count + BLOCK - 1) / BLOCK;
    for (int b = 0; b < blocks; ++b) {
        const int begin = count * b / blocks;
        switch (count * (b + 1) / blocks - begin) {
            case 1: with(begin, std::integral_constant<int, 1>()); break;
            case 2: with(begin, std::integral_constant<int, 2>()); break;
            case 3: with(begin, std::integral_constant<int, 3>()); break;
            default: with(begin, std::integral_constant<int, 4>());
        }
    }
}

// Adds to sums[row][16 outputs], TILE apart, a panel's products with `count` rows from `first` on. Numbers are unpacked once
// for several blocks of rows, as they are multiplied for a single one.
template <class K>
static void add_numbers(const char* record, const RoundedRows& rows, int first, int count, int inputs, float* sums) {
    Unpacked w;
    for (int at = 0; at < inputs; at += WIDTH, record += K::RECORD * (WIDTH / K::BLOCK)) {
        const int groups = std::min(WIDTH, inputs - at) / GROUP;
        unpack<K>(record, groups * GROUP, count > BLOCK, w);
        in_blocks(count, [&](int begin, auto number) {
            constexpr int ROWS = decltype(number)::value;
            const Rounded* const x = rows.at(at / GROUP, first + begin);
            if (count > BLOCK) Products<K, ROWS, true>::run(w, record, x, rows.count, groups, sums + begin * TILE);
            else Products<K, ROWS, false>::run(w, record, x, rows.count, groups, sums + begin * TILE);
        });
    }
}

}  // namespace stored
