// Weights of 4 bits: numbers from -8 to 7 with a bf16 scale for each group of 32 inputs (models/quantised.py says how they
// are rounded; here they are rounded alike).
//
// A tile holds group behind group: eight lines of 64 bytes for two words of inputs each, and one line of 32 scales. A line
// is 32 numbers of 16 bits, two for each of 16 outputs; their four nibbles are the first word's outputs 0 ... 15 and
// 16 ... 31, then the second word's. A product takes whole numbers, which are exact, and multiplies a group's sum by its scale.
#pragma once
#include "weights.h"

struct WeightsInt4 {
    using Activation = Bf16;
    using Head = WeightsInt8;
    static constexpr bool ROUNDS_ROWS = false;
    static constexpr int WORDS = 16, GROUP = 2 * WORDS, LINE = 64, BYTES = WORDS / 2 * LINE + LINE;

    static size_t tile_size(int words) { return size_t((words + WORDS - 1) / WORDS) * BYTES; }

    // The numbers of up to 32 weights and, returned, their scale.
    static float round(const uint16_t* row, int count, int* numbers) {
        const Vec weights[] = {Bf16::load(row, first(count)), Bf16::load(row + LANES, first(count - LANES))};
        const float low = min16(smaller(weights[0], weights[1]));
        const float high = max16(larger(weights[0], weights[1]));
        const float top = -low >= high ? low : high;
        double best = -1, scale = 0;
        for (float steps : {7.f, 8.f, 9.f}) {
            const Vec factor = all(std::fabs(top) > TINY ? -steps / top : 0.f);
            Vec found[2];
            for (int i = 0; i < 2; ++i) {
                found[i] = nearest(weights[i] * factor);
                found[i] = smaller(larger(found[i], all(-8)), all(7));
            }
            // in fp64, where the sums of bf16 weights times whole numbers are exact
            const double product = sum16_double(found[0] * weights[0]) + sum16_double(found[1] * weights[1]);
            const double square = sum16(found[0] * found[0] + found[1] * found[1]);
            const double fit = product / std::max(square, 1.);
            if (product * fit <= best) continue;
            best = product * fit, scale = fit;
            for (int i = 0; i < 2; ++i) store_whole(numbers + i * LANES, found[i]);
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
            Bf16::store((uint16_t*)(tile + WORDS / 2 * LINE) + output, first(1), all(scale));
        }
        return 1;
    }
};
