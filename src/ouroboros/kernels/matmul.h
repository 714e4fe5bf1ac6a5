// Rows times a packed weight matrix.
//
// Packed: tiles of 32 outputs, one behind the other; in a tile, for each word of the inputs, 2 x 16 outputs (int4.h has
// an order of its own). A tile is read from memory once and used for all rows, past the caches, which keep what is used
// again. Each (row, output) is one sum over the inputs in their order, in fp32: its bits do not depend on the number of
// rows, on its place among them, or on the threads.
#pragma once
#include <algorithm>
#include <utility>

#include "vectors.h"

constexpr int TILE = 2 * LANES;
constexpr int MAX_BLOCK = 14;  // rows whose sums fit into registers: 2 * 14 + 2 weights + 1 word of 32

// Rows of numbers, `SLICE` bytes of each in turn: a product reads its rows, and writes a tile's sums, in one stream. (Rows
// one behind the other would be as many streams, which from nine on cost a tenth of a product's time.)
constexpr size_t SLICE = TILE * sizeof(float);

struct Rows {
    char* data;
    size_t count;

    static size_t size(size_t count, size_t bytes) { return (bytes + SLICE - 1) / SLICE * SLICE * count; }

    // Element i of a row, and those behind it in its slice.
    template <class T>
    T* at(int row, size_t i) const {
        const size_t byte = i * sizeof(T);
        return (T*)(data + (byte / SLICE * count + row) * SLICE + byte % SLICE);
    }

    // Hands out elements begin ... end-1 of a row piece by piece: each(where, first, how many).
    template <class T, class F>
    void pieces(int row, size_t begin, size_t end, F&& each) const {
        for (size_t i = begin, next; i < end; i = next) {
            next = std::min(end, (i * sizeof(T) / SLICE + 1) * SLICE / sizeof(T));
            each(at<T>(row, i), i - begin, next - i);
        }
    }
};

// What formats have in common whose tiles hold words of 2 x 16 outputs. BYTES: of 16 outputs and one word.
template <class A, int BYTES_>
struct Words {
    using Activation = A;
    static constexpr bool ROUNDS_ROWS = false;
    static constexpr int BYTES = BYTES_, BLOCK = MAX_BLOCK;
    static size_t tile_size(int words) { return size_t(words) * 2 * BYTES; }
    template <class Char>  // const or not
    static Char* word(Char* tile, int output, int word) { return tile + (2 * word + output / LANES) * BYTES; }
};

// Weight formats. `load` gives 16 outputs of one word of inputs; `element` one weight; `pack` writes one output (null: zeros)
// into its place in a tile and returns its scale. Head: the output matrix's format in such a model. ROUNDS_ROWS: whether a
// product takes rows that `round` has made.
struct WeightsFp32 : Words<Fp32, 64> {
    using Head = WeightsFp32;
    static __m512i load(const char* p) { return _mm512_load_si512(p); }
    static float element(const char* tile, int output, int input) { return ((const float*)word(tile, output, input))[output % LANES]; }
    static float pack(const float* row, int words, char* tile, int output) {
        char* to = word(tile, output, 0);
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
    static float element(const char* tile, int output, int input) {
        return bf16(((const uint16_t*)word(tile, output, input / 2))[2 * (output % LANES) + input % 2]);
    }
    static float pack(const uint16_t* row, int words, char* tile, int output) {
        char* to = word(tile, output, 0) + 4 * (output % LANES);
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
    static float element(const char* tile, int output, int input) {
        return float(((const int8_t*)word(tile, output, input / 2))[LANES * (input % 2) + output % LANES]);
    }

    // How one output's weights (or none) become whole numbers.
    struct Rounding {
        float scale, inverse;
        Rounding(const uint16_t* row, int words) {
            float top = 0;
            for (int i = 0; row && i < 2 * words; ++i) top = std::max(top, std::fabs(finite(row[i])));
            scale = top / 127, inverse = top > TINY ? 127 / top : 0;
        }
        static float finite(uint16_t bits) { return std::min(std::max(bf16(bits), -LARGEST), LARGEST); }
        int operator()(uint16_t bits) const { return int(std::lrintf(finite(bits) * inverse)); }
    };

    static float pack(const uint16_t* row, int words, char* tile, int output) {
        const Rounding rounding(row, words);
        char* to = word(tile, output, 0) + output % LANES;
        for (int w = 0; w < words; ++w, to += 2 * BYTES)
            for (int i = 0; i < 2; ++i) to[LANES * i] = row ? char(rounding(row[2 * w + i])) : 0;
        return rounding.scale;
    }
};
#endif

// Bytes of weights that are asked for beforehand: more where a row or two leave memory no time to spare, fewer where the
// rows need the first cache.
constexpr int ahead(int rows) { return rows < 4 ? 4096 : 2048; }

constexpr int SLICE_WORDS = SLICE / 4;

// sums[r][o] for `ROWS` rows and the 32 outputs of a tile. rows: those of the first slice; `step`: bytes to the next one.
template <class W, int ROWS>
struct Multiply {
    static void run(const char* weights, const char* rows, size_t step, int words, float* sums);
};

template <class W, int ROWS>
void Multiply<W, ROWS>::run(const char* weights, const char* rows, size_t step, int words, float* sums) {
    using A = typename W::Activation;
    Vec low[ROWS], high[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) low[r] = high[r] = zero();
    for (; words > 0; words -= SLICE_WORDS, rows += step) {
        const char* const end = rows + 4 * std::min(words, SLICE_WORDS);
#pragma GCC unroll 1
        for (const char* word = rows; word < end; word += 4) {
            const __m512i w0 = W::load(weights), w1 = W::load(weights + W::BYTES);
            _mm_prefetch(weights + ahead(ROWS), _MM_HINT_NTA);
            if (W::BYTES == 64) _mm_prefetch(weights + ahead(ROWS) + 64, _MM_HINT_NTA);
            weights += 2 * W::BYTES;
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                int two;
                std::memcpy(&two, word + r * SLICE, 4);
                const __m512i x = _mm512_set1_epi32(two);
                low[r] = A::step(low[r], w0, x);
                high[r] = A::step(high[r], w1, x);
            }
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
    static void tile(const char* weights, const Rows& rows, int words, F&& done) {
        alignas(64) float sums[MAX_BLOCK * TILE];
        const int count = int(rows.count), blocks = (count + W::BLOCK - 1) / W::BLOCK;
        for (int b = 0; b < blocks; ++b) {
            const int begin = count * b / blocks, size = count * (b + 1) / blocks - begin;
            kernel(size, std::make_integer_sequence<int, W::BLOCK>())(weights, rows.data + begin * SLICE, count * SLICE, words, sums);
            for (int r = 0; r < size; ++r) done(begin + r, sums + r * TILE);
        }
    }
};
