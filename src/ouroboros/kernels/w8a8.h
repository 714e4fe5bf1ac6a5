// Weights of 8 bits and rows of 8 bits: whole numbers times whole numbers, many products in one instruction.
//
// Weights are rounded as WeightsInt8's. Rows are rounded before each product, in groups of 64 inputs with a scale of their
// own, so that an outlier coarsens its neighbours alone. A row beside others then costs next to nothing: what a draft
// model needs that looks at several branches in one forward. Sums of a group are exact; groups are added up in order.
//
// A tile holds words of as many inputs as an instruction adds up (rounded.h), 2 x 16 outputs each.
#pragma once
#include "weights.h"
#ifdef KERNELS_AVX512
#include "avx512/rounded.h"
#else
#include "avx2/rounded.h"
#endif

struct WeightsW8A8 {
    using Activation = Bf16;
    using Head = WeightsW8A8;
    using Slice = RoundedSlice;
    static constexpr bool ROUNDS_ROWS = true;
    static constexpr int GROUP = ROUNDED_GROUP, PER_WORD = Slice::PER_WORD, OFFSET = Slice::OFFSET;
    static constexpr int BYTES = LANES * PER_WORD, WORDS = GROUP / PER_WORD;

    static size_t tile_size(int words) { return size_t((words + GROUP / 2 - 1) / (GROUP / 2)) * WORDS * 2 * BYTES; }

    static char* place(char* tile, int output, int input) {
        return tile + (input / PER_WORD * 2 + output / LANES) * BYTES + output % LANES * PER_WORD + input % PER_WORD;
    }
    static float element(const char* tile, int output, int input) {
        return float(int8_t(*place(const_cast<char*>(tile), output, input) - OFFSET));
    }

    static float pack(const uint16_t* row, int words, char* tile, int output) {
        const WeightsInt8::Rounding rounding(row, words);
        for (int i = 0; i < int(tile_size(words) / TILE); ++i)
            *place(tile, output, i) = char(OFFSET + (row && i < 2 * words ? rounding(row[i]) : 0));
        return rounding.scale;
    }

    // Rounds `inputs` elements of a row; a slice stands in place of a group of them.
    static void round(const Rows& from, const Rows& to, int row, int inputs) {
        using Row = Bf16::Row;
        static_assert(sizeof(Slice) <= GROUP * sizeof(Row::Element));
        for (int begin = 0; begin < inputs; begin += GROUP) {
            const Row::Element* in = from.at<Row::Element>(row, begin);
            Vec v[4], top = zero();
            for (int i = 0; i < 4; ++i) {
                v[i] = Row::load(in + i * LANES, first(inputs - begin - i * LANES));
                top = larger(top, size_of(v[i]));
            }
            const float most = max16(top);
            const Vec factor = all(most > TINY ? 127 / most : 0.f);
            Slice& slice = *(Slice*)to.at<Row::Element>(row, begin);
            for (int i = 0; i < 4; ++i) v[i] = v[i] * factor;
            slice.fill(v);
            slice.scale = most / 127;
        }
    }
};
