// Weights of 4 bits: numbers from -8 to 7 with a bf16 scale for each group of 32 inputs (models/quantised.py says how they
// are rounded; here they are rounded alike).
//
// A tile holds group behind group: eight lines of 64 bytes for two words of inputs each, and one line of 32 scales. A line
// is 32 numbers of 16 bits, two for each of 16 outputs; their four nibbles are the first word's outputs 0 ... 15 and
// 16 ... 31, then the second word's. One shift and one table look-up make bf16 of 32 nibbles, whole numbers that are exact;
// a group's sum is multiplied by its scale.
#pragma once
#include "matmul.h"

#ifdef __AVX512BF16__
struct WeightsInt4 {
    using Activation = Bf16;
    using Head = WeightsInt8;
    static constexpr bool ROUNDS_ROWS = false;
    static constexpr int BLOCK = 6;  // rows: so measured, more compute more slowly
    static constexpr int WORDS = 16, GROUP = 2 * WORDS, LINE = 64, BYTES = WORDS / 2 * LINE + LINE;

    static size_t tile_size(int words) { return size_t((words + WORDS - 1) / WORDS) * BYTES; }

    // In fp64, where the sums of bf16 weights times whole numbers are exact.
    static double sum(Vec v) {
        return _mm512_reduce_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(v)) + _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    }

    // The numbers of up to 32 weights and, returned, their scale.
    static float round(const uint16_t* row, int count, int* numbers) {
        const Vec weights[] = {Bf16::load(row, first(count)), Bf16::load(row + LANES, first(count - LANES))};
        const float low = _mm512_reduce_min_ps(_mm512_min_ps(weights[0], weights[1]));
        const float high = max16(_mm512_max_ps(weights[0], weights[1]));
        const float top = -low >= high ? low : high;
        double best = -1, scale = 0;
        for (float steps : {7.f, 8.f, 9.f}) {
            const Vec factor = all(std::fabs(top) > TINY ? -steps / top : 0.f);
            Vec found[2];
            for (int i = 0; i < 2; ++i) {
                found[i] = _mm512_roundscale_ps(weights[i] * factor, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
                found[i] = _mm512_min_ps(_mm512_max_ps(found[i], all(-8)), all(7));
            }
            const double product = sum(found[0] * weights[0]) + sum(found[1] * weights[1]);
            const double square = sum16(found[0] * found[0] + found[1] * found[1]);
            const double fit = product / std::max(square, 1.);
            if (product * fit <= best) continue;
            best = product * fit, scale = fit;
            for (int i = 0; i < 2; ++i) _mm512_storeu_si512(numbers + i * LANES, _mm512_cvtps_epi32(found[i]));
        }
        return float(scale);
    }

    static float pack(const uint16_t* row, int words, char* tile, int output) {
        const int shift = output < LANES ? 0 : 4, lane = output % LANES;
        for (int begin = 0; begin < words; begin += WORDS, tile += BYTES) {
            int numbers[GROUP] = {};
            const float scale = row ? round(row + 2 * begin, 2 * (words - begin), numbers) : 0.f;
            for (int i = 0; i < GROUP; ++i) {
                char& to = tile[i / 4 * LINE + 2 * (2 * lane + i % 2) + i / 2 % 2];
                to = char((shift ? to & 15 : 0) | (numbers[i] + 8) << shift);
            }
            Bf16::store((uint16_t*)(tile + WORDS / 2 * LINE) + output, 1, all(scale));
        }
        return 1;
    }

    // bf16 of the whole numbers -8 ... 7, twice, since a look-up heeds five bits.
    static __m512i table() {
        const Vec values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        return _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(values));
    }
};

template <int ROWS>
struct Multiply<WeightsInt4, ROWS> {
    using W = WeightsInt4;

    static void run(const char* weights, const char* rows, size_t step, int words, float* sums) {
        const __m512i table = W::table();
        for (int i = 0; i < ROWS * TILE; i += LANES) _mm512_store_ps(sums + i, zero());
        for (int begin = 0; begin < words; begin += W::WORDS) {
            Vec low[ROWS], high[ROWS];
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) low[r] = high[r] = zero();
            const char* word = rows + begin / SLICE_WORDS * step + begin % SLICE_WORDS * 4;
            const char* const end = word + 4 * std::min(words - begin, W::WORDS);
            const char* line = weights;
#pragma GCC unroll 1
            for (; word < end; word += 8, line += W::LINE) {
                _mm_prefetch(line + ahead(ROWS), _MM_HINT_NTA);
                const __m512i four = _mm512_load_si512(line);
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    const __m512i two = i ? _mm512_srli_epi16(four, 8) : four;
                    const __m512i w0 = _mm512_permutexvar_epi16(two, table);
                    const __m512i w1 = _mm512_permutexvar_epi16(_mm512_srli_epi16(two, 4), table);
#pragma GCC unroll 16
                    for (int r = 0; r < ROWS; ++r) {
                        int pair;
                        std::memcpy(&pair, word + r * SLICE + 4 * i, 4);
                        const __m512i x = _mm512_set1_epi32(pair);
                        low[r] = Bf16::step(low[r], w0, x);
                        high[r] = Bf16::step(high[r], w1, x);
                    }
                }
            }
            const uint16_t* scales = (const uint16_t*)(weights + W::WORDS / 2 * W::LINE);
            _mm_prefetch((const char*)scales + ahead(ROWS), _MM_HINT_NTA);
            const Vec scale_low = Bf16::load(scales), scale_high = Bf16::load(scales + LANES);
            weights += W::BYTES;
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                float* to = sums + r * TILE;
                _mm512_store_ps(to, _mm512_fmadd_ps(scale_low, low[r], _mm512_load_ps(to)));
                _mm512_store_ps(to + LANES, _mm512_fmadd_ps(scale_high, high[r], _mm512_load_ps(to + LANES)));
            }
        }
    }
};
#endif
