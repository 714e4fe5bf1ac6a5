// A rounded row (w8a8.h) in numbers of 16 bits: two inputs at a time, whose products cannot overflow. (Those of 8 bits are
// added up in 16 bits, with saturation; and to give one factor its sign takes as many instructions as are saved.)
#pragma once

constexpr int ROUNDED_GROUP = 64;

struct RoundedSlice {
    static constexpr int PER_WORD = 2, OFFSET = 0;

    int16_t numbers[ROUNDED_GROUP];
    float scale;

    void fill(const Vec v[4]) {
        for (int i = 0; i < 4; ++i) {
            const Bits all = whole(v[i]);
            const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(all.low, all.high), 0xd8);
            _mm256_storeu_si256((__m256i*)(numbers + i * LANES), packed);
        }
    }
};
