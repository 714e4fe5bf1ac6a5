// A matrix of panels of any kinds: a tile of its products with rows, and single outputs' numbers.
#pragma once
#include "../model.h"
#include "pack.h"
#include "products.h"

// What the decoder takes for a format of weights: rows, cache and logits are fp32.
struct WeightsStored {
    using Activation = Fp32;
    using Head = WeightsStored;
    static constexpr bool ROUNDS_ROWS = true;
};

namespace stored {

// Adds to sums[row][16 outputs], TILE apart, the products of plain floats with `count` rows from `first` on.
template <class K>
static void add_floats(const char* weights, const Rows& rows, int first, int count, int inputs, float* sums) {
    constexpr int WIDE = SLICE / sizeof(float);
    for (int at = 0; at < inputs; at += WIDE) {
        const int width = std::min(WIDE, inputs - at);
        const char* const from = weights + size_t(at) * PANEL * K::BYTES;
        in_blocks(count, [&](int begin, auto number) {
            constexpr int ROWS = decltype(number)::value;
            __m256 sum[ROWS][2];
            const char* x = (const char*)rows.at<float>(first + begin, at);
            for (int r = 0; r < ROWS; ++r)
                for (int h = 0; h < 2; ++h) sum[r][h] = _mm256_load_ps(sums + (begin + r) * TILE + 8 * h);
            for (int i = 0; i < width; ++i) {
                const char* const w = from + size_t(i) * PANEL * K::BYTES;
                _mm_prefetch(w + AHEAD, _MM_HINT_NTA);
                const __m256 low = K::load(w), high = K::load(w + 8 * K::BYTES);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    const __m256 v = _mm256_broadcast_ss((const float*)(x + r * SLICE) + i);
                    sum[r][0] = _mm256_fmadd_ps(low, v, sum[r][0]);
                    sum[r][1] = _mm256_fmadd_ps(high, v, sum[r][1]);
                }
            }
            for (int r = 0; r < ROWS; ++r)
                for (int h = 0; h < 2; ++h) _mm256_store_ps(sums + (begin + r) * TILE + 8 * h, sum[r][h]);
        });
    }
}

// What a product takes: rows as they are, and rounded (where a part of the matrix is of whole numbers).
struct Inputs {
    Rows plain;
    RoundedRows rounded;
};

static inline void add_panel(const Part& part, int panel, const Inputs& in, int first, int count, int inputs, float* sums) {
    with_kind(part.kind, [&](auto k) {
        using K = decltype(k);
        const char* const at = part.weights + panel * panel_bytes<K>(inputs);
        if constexpr (IsFloats<K>::value) add_floats<K>(at, in.plain, first, count, inputs, sums);
        else add_numbers<K>(at, in.rounded, first, count, inputs, sums);
    });
}

static inline int tiles(const Matrix& w) {
    int count = 0;
    for (int i = 0; i < (w.paired ? 1 : w.parts); ++i) count += (panels(w.part[i].outputs) + !w.paired) / (w.paired ? 1 : 2);
    return count;
}

// Calls done(row, first output, how many, sums) for every row. A tile is two panels of a part, or one of each of a pair.
template <class F>
static void tile(const Matrix& w, int tile, const Inputs& in, F&& done) {
    const Part* part = w.part;
    int first = 0, place = tile;
    if (w.paired)
        first = tile * TILE;
    else {
        for (int size; place >= (size = (panels(part->outputs) + 1) / 2); place -= size) first += part++->outputs;
        first += place * TILE;
    }
    const int left = w.paired ? TILE : std::min(TILE, part->outputs - place * TILE);
    alignas(64) float sums[TOGETHER_ROWS * TILE];
    for (int start = 0, all = int(in.plain.count); start < all; start += TOGETHER_ROWS) {
        const int count = std::min(TOGETHER_ROWS, all - start);
        std::fill(sums, sums + count * TILE, 0.f);
        if (w.paired)
            for (int i = 0; i < 2; ++i) add_panel(part[i], place, in, start, count, w.inputs, sums + i * PANEL);
        else
            for (int i = 0; i * PANEL < left; ++i) add_panel(*part, 2 * place + i, in, start, count, w.inputs, sums + i * PANEL);
        for (int r = 0; r < count; ++r) done(start + r, first, left, sums + r * TILE);
    }
}

// An output's numbers, in order: to(input, number).
template <class F>
static void row(const Part& part, int output, int inputs, F&& to) {
    with_kind(part.kind, [&](auto k) {
        using K = decltype(k);
        const char* from = part.weights + output / PANEL * panel_bytes<K>(inputs);
        const int o = output % PANEL;
        if constexpr (IsFloats<K>::value) {
            alignas(32) float eight[8];
            for (int i = 0; i < inputs; ++i) {
                _mm256_store_ps(eight, K::load(from + (size_t(i) * PANEL + o / 8 * 8) * K::BYTES));
                to(i, eight[o % 8]);
            }
        } else {
            Unpacked w;
            for (int at = 0; at < inputs; at += WIDTH, from += K::RECORD * (WIDTH / K::BLOCK)) {
                const int width = std::min(WIDTH, inputs - at);
                unpack<K>(from, width, true, w);
                for (int i = 0; i < width; ++i) {
                    const int number = w.numbers[i / STEP][o * STEP + i % STEP], upper = w.upper[i / STEP][o * STEP + i % STEP];
                    const int whole = K::BITS == 8 ? number + 16 * upper - 128 : number - (K::LOG ? 1 << K::LOG : 0);
                    const float factor = K::SCALES ? w.factors[0][o] * float(int16_t(w.scales[i / K::SUB][o])) : w.factors[i / GROUP][o];
                    to(at + i, K::MINIMA ? factor * float(whole) - w.minima[i / GROUP][o] : factor * float(whole));
                }
            }
        }
    });
}

}  // namespace stored
