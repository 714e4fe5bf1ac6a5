// A rounded row (w8a8.h) for vnni: four inputs at a time. The instruction takes one factor without a sign: weights are stored
// as numbers from 1 to 255, and a group's sum begins with what the 128 too many amount to.
#pragma once

constexpr int ROUNDED_GROUP = 64;

struct RoundedSlice {
    static constexpr int PER_WORD = 4, OFFSET = 128;

    int8_t numbers[ROUNDED_GROUP];
    float scale;
    int32_t start;  // -128 times the sum of the numbers

    void fill(const Vec v[4]) {
        Bits sum = no_bits();
        for (int i = 0; i < 4; ++i) {
            const Bits whole = _mm512_cvtps_epi32(v[i]);
            _mm_storeu_si128((__m128i*)(numbers + i * LANES), _mm512_cvtsepi32_epi8(whole));
            sum = _mm512_add_epi32(sum, whole);
        }
        start = -128 * _mm512_reduce_add_epi32(sum);
    }
};
