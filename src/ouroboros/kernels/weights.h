// Rows, and weight matrices as they are packed.
//
// Packed: tiles of 32 outputs, one behind the other; in a tile, for each word of the inputs, 2 x 16 outputs (int4.h and
// w8a8.h have orders of their own).
#pragma once
#include <algorithm>
#include <utility>

#include "vectors.h"

// Rows of numbers, `SLICE` bytes of each in turn: a product reads its rows, and writes a tile's sums, in one stream. (Rows
// one behind the other would be as many streams, which from nine on cost a tenth of a product's time.)
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
    static constexpr int BYTES = BYTES_;
    static size_t tile_size(int words) { return size_t(words) * 2 * BYTES; }
    template <class Char>  // const or not
    static Char* word(Char* tile, int output, int word) { return tile + (2 * word + output / LANES) * BYTES; }
};

// Weight formats. `element` gives one weight; `pack` writes one output (null: zeros) into its place in a tile and returns its
// scale. Head: the output matrix's format in such a model. ROUNDS_ROWS: whether a product takes rows that `round` has made.
struct WeightsFp32 : Words<Fp32, 64> {
    using Head = WeightsFp32;
    static float element(const char* tile, int output, int input) { return ((const float*)word(tile, output, input))[output % LANES]; }
    static float pack(const float* row, int words, char* tile, int output) {
        char* to = word(tile, output, 0);
        for (int w = 0; w < words; ++w, to += 2 * BYTES) ((float*)to)[output % LANES] = row ? row[w] : 0.f;
        return 1;
    }
};

static inline float bf16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

struct WeightsBf16 : Words<Bf16, 64> {
    using Head = WeightsBf16;
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

// `run` adds up the products of a tile with ROWS rows (multiply.h). kernel: that of a number of rows.
template <class W, int ROWS>
struct Multiply;

template <class W, int... R>
static auto kernel(int rows, std::integer_sequence<int, R...>) {
    static constexpr decltype(&Multiply<W, 1>::run) kernels[] = {Multiply<W, R + 1>::run...};
    return kernels[rows - 1];
}
