// Rows times a packed weight matrix.
//
// Packed: tiles of 32 outputs, one behind the other; in a tile, for each word of the inputs, 2 x 16 outputs (int4.h has
// an order of its own). A tile is read from memory once and used for all rows. Each (row, output) is one sum over the inputs in their order, in fp32:
// its bits do not depend on the number of rows, on its place among them, or on the threads.
#pragma once
#include <algorithm>
#include <utility>

#include "vectors.h"

constexpr int TILE = 2 * LANES;
constexpr int MAX_BLOCK = 14;  // rows whose sums fit into registers: 2 * 14 + 2 weights + 1 word of 32

// What formats have in common whose tiles hold words of 2 x 16 outputs. BYTES: of 16 outputs and one word.
template <class A, int BYTES_>
struct Words {
    using Activation = A;
    static constexpr int BYTES = BYTES_, BLOCK = MAX_BLOCK;
    static size_t tile_size(int words) { return size_t(words) * 2 * BYTES; }
    static char* at(char* tile, int output) { return tile + output / LANES * BYTES; }
};

// Weight formats. `load` gives 16 outputs of one word of inputs; `one` an element of that; `pack` writes one output (null:
// zeros) into its place in a tile and returns its scale. Head: the output matrix's format in such a model.
struct WeightsFp32 : Words<Fp32, 64> {
    using Head = WeightsFp32;
    static __m512i load(const char* p) { return _mm512_load_si512(p); }
    static float one(const char* p, int lane, int) { return ((const float*)p)[lane]; }
    static float pack(const float* row, int words, char* tile, int output) {
        char* to = at(tile, output);
        for (int w = 0; w < words; ++w, to += 2 * BYTES) ((float*)to)[output % LANES] = row ? row[w] : 0.f;
        return 1;
    }
};

#ifdef __AVX512BF16__
static inline float bf16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

struct WeightsBf16 : Words<Bf16, 64> {
    using Head = WeightsBf16;
    static __m512i load(const char* p) { return _mm512_load_si512(p); }
    static float one(const char* p, int lane, int i) { return bf16(((const uint16_t*)p)[2 * lane + i]); }
    static float pack(const uint16_t* row, int words, char* tile, int output) {
        char* to = at(tile, output) + 4 * (output % LANES);
        for (int w = 0; w < words; ++w, to += 2 * BYTES) {
            if (row) std::memcpy(to, row + 2 * w, 4);
            else std::memset(to, 0, 4);
        }
        return 1;
    }
};

constexpr float TINY = 1e-30f;           // what is smaller counts as zero
constexpr float LARGEST = 0x1.fep127f;  // and what is infinite as this, the largest bf16

// Whole numbers from -127 to 127, exact in bf16; an output's scale multiplies its sum. As models/quantised.py rounds them.
struct WeightsInt8 : Words<Bf16, 32> {  // 16 outputs' first element of the word, then their second
    using Head = WeightsInt8;
    static __m512i load(const char* p) {
        const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i*)p)));
        const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i*)p + 1)));
        // whole numbers this small have zeros in the lower half of their float
        return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a), 16), _mm512_castps_si512(b));
    }
    static float one(const char* p, int lane, int i) { return float(((const int8_t*)p)[LANES * i + lane]); }
    static float pack(const uint16_t* row, int words, char* tile, int output) {
        char* to = at(tile, output) + output % LANES;
        const auto finite = [](uint16_t bits) { return std::min(std::max(bf16(bits), -LARGEST), LARGEST); };
        float top = 0;
        for (int i = 0; row && i < 2 * words; ++i) top = std::max(top, std::fabs(finite(row[i])));
        const float scale = top / 127, inverse = top > TINY ? 127 / top : 0;
        for (int w = 0; w < words; ++w, to += 2 * BYTES)
            for (int i = 0; i < 2; ++i) to[LANES * i] = row ? char(std::lrintf(finite(row[2 * w + i]) * inverse)) : 0;
        return scale;
    }
};
#endif

#ifndef AHEAD
#define AHEAD 2048
#endif

// sums[r][o] for `ROWS` rows and the 32 outputs of a tile. `stride`: bytes between rows.
template <class W, int ROWS>
struct Multiply {
    static void run(const char* weights, const char* rows, size_t stride, int words, float* sums);
};

template <class W, int ROWS>
void Multiply<W, ROWS>::run(const char* weights, const char* rows, size_t stride, int words, float* sums) {
    using A = typename W::Activation;
    Vec low[ROWS], high[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) low[r] = high[r] = zero();
    const char* base[(ROWS + 2) / 3];
#pragma GCC unroll 16
    for (int b = 0; b < (ROWS + 2) / 3; ++b) base[b] = rows + 3 * b * stride;
#pragma GCC unroll 1
    for (int k = 0; k < words; ++k) {
        const __m512i w0 = W::load(weights), w1 = W::load(weights + W::BYTES);
        _mm_prefetch(weights + AHEAD, _MM_HINT_T0);
        if (W::BYTES == 64) _mm_prefetch(weights + AHEAD + 64, _MM_HINT_T0);
        weights += 2 * W::BYTES;
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            int word;
            std::memcpy(&word, base[r / 3] + (r % 3) * stride + 4 * size_t(k), 4);
            const __m512i x = _mm512_set1_epi32(word);
            low[r] = A::step(low[r], w0, x);
            high[r] = A::step(high[r], w1, x);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        _mm512_store_ps(sums + r * TILE, low[r]);
        _mm512_store_ps(sums + r * TILE + LANES, high[r]);
    }
}

template <class W>
struct Matmul {
    using Kernel = void (*)(const char*, const char*, size_t, int, float*);
    template <int... R>
    static Kernel kernel(int rows, std::integer_sequence<int, R...>) {
        static constexpr Kernel kernels[] = {Multiply<W, R + 1>::run...};
        return kernels[rows - 1];
    }

    // Calls done(row, sums of 32 outputs) for every row.
    template <class F>
    static void tile(const char* weights, const char* rows, size_t stride, int count, int words, F&& done) {
        alignas(64) float sums[MAX_BLOCK * TILE];
        const int blocks = (count + W::BLOCK - 1) / W::BLOCK;
        for (int b = 0; b < blocks; ++b) {
            const int begin = count * b / blocks, size = count * (b + 1) / blocks - begin;
            kernel(size, std::make_integer_sequence<int, W::BLOCK>())(weights, rows + begin * stride, stride, words, sums);
            for (int r = 0; r < size; ++r) done(begin + r, sums + r * TILE);
        }
    }
};
