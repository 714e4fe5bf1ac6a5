// Rows in 8 bits: whole numbers from -127 to 127 with a scale for each group of 32 inputs.
#pragma once
#include "blocks.h"

namespace stored {

// One group of one row. starts: what sums of products begin with where numbers are offset by 1: less the inputs' own sum, of
// the first 16, the others and all; in 16 bits in two halves (inputs 0, 1, 4, 5, ... and 2, 3, 6, 7, ...), or whole.
struct alignas(64) Rounded {
    int8_t numbers[GROUP];
    float scale, sum;  // sum: of numbers times scale
    int32_t starts[3];

    // v: 32 floats.
    void fill(const __m256 v[4]) {
        // The largest as whole numbers, among which what is no number is the largest: it then makes all sums what it is.
        const __m256i size = _mm256_set1_epi32(0x7fffffff);
        __m256i top = _mm256_and_si256(_mm256_castps_si256(v[0]), size);
        for (int i = 1; i < 4; ++i) top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), size));
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
        const float most = _mm_cvtss_f32(_mm_castsi128_ps(four));
        const __m256 factor = _mm256_set1_ps(most > TINY ? 127 / most : 0.f);
        __m256i whole[4];
        for (int i = 0; i < 4; ++i) whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], factor));
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
        const __m256i all = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        store32(numbers, all);
        scale = most / 127;
        // pairs' sums, 16 bits each: the lower half of the register is the first 16 inputs
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), all);
        __m256i twos = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
        twos = _mm256_add_epi16(twos, _mm256_shuffle_epi32(twos, 0xb1));  // of even and of odd pairs, in every word
        uint32_t word[2] = {uint32_t(_mm256_cvtsi256_si32(twos)), uint32_t(_mm256_extract_epi32(twos, 4))};
        const auto low = [](uint32_t w) { return int16_t(w & 0xffff); };
        const auto high = [](uint32_t w) { return int16_t(w >> 16); };
        const int even = low(word[0]) + low(word[1]), odd = high(word[0]) + high(word[1]);
        sum = scale * float(even + odd);
#ifdef __AVX512VNNI__
        starts[0] = -(low(word[0]) + high(word[0])), starts[1] = -(low(word[1]) + high(word[1])), starts[2] = -(even + odd);
#else
        const auto both = [](int e, int o) { return int32_t(uint32_t(uint16_t(-e)) | uint32_t(uint16_t(-o)) << 16); };
        starts[0] = both(low(word[0]), high(word[0])), starts[1] = both(low(word[1]), high(word[1])), starts[2] = both(even, odd);
#endif
    }
};

// Rows' groups as products read them: group g of all rows, then group g + 1.
struct RoundedRows {
    Rounded* data;
    size_t count;

    static size_t size(size_t count, size_t inputs) { return count * (inputs / GROUP) * sizeof(Rounded); }
    const Rounded* at(size_t group, size_t row) const { return data + group * count + row; }

    void round(const Rows& from, int row, int inputs) const {
        for (int g = 0; g < inputs / GROUP; ++g) {
            const float* in = from.at<float>(row, size_t(g) * GROUP);
            const __m256 v[] = {_mm256_loadu_ps(in), _mm256_loadu_ps(in + 8), _mm256_loadu_ps(in + 16), _mm256_loadu_ps(in + 24)};
            data[g * count + row].fill(v);
        }
    }
};

}  // namespace stored
