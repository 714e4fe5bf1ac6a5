// Weights of 8 bits and rows of 8 bits: whole numbers times whole numbers, 64 products in one instruction.
//
// Weights are rounded as WeightsInt8's. Rows are rounded before each product, in groups of 64 inputs with a scale of their
// own, so that an outlier coarsens its neighbours alone. A row beside others then costs next to nothing: what a draft
// model needs that looks at several branches in one forward. Sums of a group are exact; groups are added up in order.
//
// A tile holds words of four inputs, 2 x 16 outputs each, as numbers from 1 to 255: the instruction takes one factor
// without a sign, and a group's sum begins with what the 128 too many amount to.
#pragma once
#include "matmul.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
struct WeightsW8A8 {
    using Activation = Bf16;
    using Head = WeightsW8A8;
    static constexpr bool ROUNDS_ROWS = true;
    static constexpr int BLOCK = 8, BYTES = 64;  // more rows are slower: so measured
    static constexpr int GROUP = SLICE / 2, WORDS = GROUP / 4;  // inputs; words of four

    // What stands in a rounded row's slice, in place of 64 bf16.
    struct Slice {
        int8_t numbers[GROUP];
        float scale;
        int32_t start;  // -128 times the sum of the numbers
    };
    static_assert(sizeof(Slice) <= SLICE);

    static size_t tile_size(int words) { return size_t((words + GROUP / 2 - 1) / (GROUP / 2)) * WORDS * 2 * BYTES; }

    static uint8_t* place(char* tile, int output, int input) {
        return (uint8_t*)tile + (input / 4 * 2 + output / LANES) * BYTES + output % LANES * 4 + input % 4;
    }
    static float element(const char* tile, int output, int input) {
        return float(int(*place(const_cast<char*>(tile), output, input)) - 128);
    }

    static float pack(const uint16_t* row, int words, char* tile, int output) {
        const WeightsInt8::Rounding rounding(row, words);
        for (int i = 0; i < int(tile_size(words) / TILE); ++i)
            *place(tile, output, i) = uint8_t(128 + (row && i < 2 * words ? rounding(row[i]) : 0));
        return rounding.scale;
    }

    // Rounds `inputs` bf16 of a row.
    static void round(const Rows& from, const Rows& to, int row, int inputs) {
        for (int begin = 0; begin < inputs; begin += GROUP) {
            const uint16_t* in = from.at<uint16_t>(row, begin);
            Vec v[4], top = zero();
            for (int i = 0; i < 4; ++i) {
                v[i] = Bf16::load(in + i * LANES, first(inputs - begin - i * LANES));
                top = _mm512_max_ps(top, _mm512_abs_ps(v[i]));
            }
            const float most = max16(top);
            const Vec factor = all(most > TINY ? 127 / most : 0.f);
            Slice& slice = *(Slice*)to.at<uint16_t>(row, begin);
            __m512i sum = _mm512_setzero_si512();
            for (int i = 0; i < 4; ++i) {
                const __m512i numbers = _mm512_cvtps_epi32(v[i] * factor);
                _mm_storeu_si128((__m128i*)(slice.numbers + i * LANES), _mm512_cvtsepi32_epi8(numbers));
                sum = _mm512_add_epi32(sum, numbers);
            }
            slice.scale = most / 127, slice.start = -128 * _mm512_reduce_add_epi32(sum);
        }
    }
};

template <int ROWS>
struct Multiply<WeightsW8A8, ROWS> {
    using W = WeightsW8A8;

    static void run(const char* weights, const char* rows, size_t step, int words, float* sums) {
        for (int i = 0; i < ROWS * TILE; i += LANES) _mm512_store_ps(sums + i, zero());
        for (; words > 0; words -= W::GROUP / 2, rows += step) {
            const auto slice = [&](int r) { return (const W::Slice*)(rows + r * SLICE); };
            __m512i low[ROWS], high[ROWS];
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) low[r] = high[r] = _mm512_set1_epi32(slice(r)->start);
#pragma GCC unroll 1
            for (const char *word = rows, *end = rows + W::GROUP; word < end; word += 4, weights += 2 * W::BYTES) {
                const __m512i w0 = _mm512_load_si512(weights), w1 = _mm512_load_si512(weights + W::BYTES);
                _mm_prefetch(weights + ahead(ROWS), _MM_HINT_NTA);
                _mm_prefetch(weights + ahead(ROWS) + 64, _MM_HINT_NTA);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; ++r) {
                    int four;
                    std::memcpy(&four, word + r * SLICE, 4);
                    const __m512i x = _mm512_set1_epi32(four);
                    low[r] = _mm512_dpbusd_epi32(low[r], w0, x);
                    high[r] = _mm512_dpbusd_epi32(high[r], w1, x);
                }
            }
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                float* to = sums + r * TILE;
                const Vec scale = all(slice(r)->scale);
                _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(low[r]), scale, _mm512_load_ps(to)));
                _mm512_store_ps(to + LANES, _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[r]), scale, _mm512_load_ps(to + LANES)));
            }
        }
    }
};
#endif
