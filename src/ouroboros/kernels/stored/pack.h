// From a file's rows of blocks to panels (blocks.h).
#pragma once
#include <vector>

#include "blocks.h"

namespace stored {

// A block's numbers, without sign, and where its whole scales begin.
template <class K>
static inline const uint8_t* read_block(const uint8_t* block, uint8_t* numbers) {
    if constexpr (K::BITS == 8) {
        for (int i = 0; i < 32; ++i) numbers[i] = uint8_t(block[2 + i] ^ 128);
    } else if constexpr (!K::SCALES) {
        const uint8_t* four = block + (K::BITS == 5 ? 6 : 2);
        uint32_t fifth = 0;
        if (K::BITS == 5) std::memcpy(&fifth, block + 2, 4);
        for (int i = 0; i < 16; ++i) {
            numbers[i] = uint8_t((four[i] & 15) | (fifth >> i & 1) << 4);
            numbers[16 + i] = uint8_t(four[i] >> 4 | (fifth >> (16 + i) & 1) << 4);
        }
    } else if constexpr (K::BITS == 6) {
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 64; ++i) {
                const int four = block[64 * half + i], two = block[128 + 32 * half + i % 32] >> i / 32 * 2;
                numbers[128 * half + i] = uint8_t((four & 15) | (two & 3) << 4);
                numbers[128 * half + 64 + i] = uint8_t(four >> 4 | (two >> 4 & 3) << 4);
            }
        return block + 192;
    } else {
        const uint8_t *fifth = block + 16, *four = block + (K::BITS == 5 ? 48 : 16);
        for (int pair = 0; pair < 4; ++pair)
            for (int i = 0; i < 32; ++i) {
                const int high = K::BITS == 5 ? fifth[i] >> 2 * pair : 0;
                numbers[64 * pair + i] = uint8_t((four[32 * pair + i] & 15) | (high & 1) << 4);
                numbers[64 * pair + 32 + i] = uint8_t(four[32 * pair + i] >> 4 | (high >> 1 & 1) << 4);
            }
        return block + 4;
    }
    return nullptr;
}

// Puts one output's block into its record; null: zeros.
template <class K>
static inline void pack_block(const uint8_t* block, int output, char* record) {
    static constexpr uint8_t NONE[K::BYTES] = {};
    uint8_t numbers[K::BLOCK];
    const uint8_t* const from = block ? block : NONE;
    const uint8_t* const scales = read_block<K>(from, numbers);
    const auto word = [&](int step) {
        uint32_t four;
        std::memcpy(&four, numbers + step * STEP, 4);
        return four;
    };
    const auto put = [&](int at, uint32_t four) { std::memcpy(record + at + output * STEP, &four, 4); };  // in STEP_BYTES
    if constexpr (K::BITS == 8) {
        for (int s = 0; s < K::STEPS; ++s) put(s * STEP_BYTES, word(s));
    } else {
        for (int s = 0; s < K::STEPS; s += 2)
            put(s / 2 * STEP_BYTES, (word(s) & 0x0f0f0f0f) | (word(s + 1) & 0x0f0f0f0f) << 4);
        constexpr int EACH = K::BITS == 5 ? 1 : 2, TOGETHER = 8 / EACH;  // bits; steps
        constexpr uint32_t MASK = K::BITS == 5 ? 0x01010101 : 0x03030303;
        for (int s = 0; K::BITS > 4 && s < K::STEPS; s += TOGETHER) {
            uint32_t high = 0;
            for (int i = 0; i < TOGETHER; ++i) high |= (word(s + i) >> 4 & MASK) << EACH * i;
            put(K::HIGH + s / TOGETHER * STEP_BYTES, high);
        }
    }
    for (int at = K::REST; at < K::HALVES; at += PANEL) record[at + output] = char(scales[(at - K::REST) / PANEL]);
    constexpr int HALF = K::BITS == 6 ? 208 : 0;  // where the block's float16 lies, and the minima's behind it
    std::memcpy(record + K::HALVES + 2 * output, from + HALF, 2);
    if (K::MINIMA) std::memcpy(record + K::HALVES + 2 * PANEL + 2 * output, from + HALF + 2, 2);
}

// Plain floats: for each input the panel's 16 outputs.
template <int KIND_>
struct Floats {
    static constexpr int BYTES = KIND_ == F32 ? 4 : 2;

    static __m256 load(const char* p) {
        if constexpr (KIND_ == F32) return _mm256_load_ps((const float*)p);
        else if constexpr (KIND_ == F16) return halves(p);
        else return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_load_si128((const __m128i*)p)), 16));
    }
};

// Does what `action` asks of a kind; false if there is none.
template <class F>
static inline bool with_kind(int kind, F&& action) {
    switch (kind) {
        case Q4_0: action(Of<Q4_0>()); return true;
        case Q5_0: action(Of<Q5_0>()); return true;
        case Q8_0: action(Of<Q8_0>()); return true;
        case Q4_K: action(Of<Q4_K>()); return true;
        case Q5_K: action(Of<Q5_K>()); return true;
        case Q6_K: action(Of<Q6_K>()); return true;
        case F32: action(Floats<F32>()); return true;
        case F16: action(Floats<F16>()); return true;
        case BF16: action(Floats<BF16>()); return true;
        default: return false;
    }
}

template <class K>
struct IsFloats : std::false_type {};
template <int KIND_>
struct IsFloats<Floats<KIND_>> : std::true_type {};

static inline bool plain(int kind) { return kind == F32 || kind == F16 || kind == BF16; }

template <class K>
constexpr int block_inputs() {
    if constexpr (IsFloats<K>::value) return 1;
    else return K::BLOCK;
}

// Bytes of `inputs` inputs of a panel.
template <class K>
static inline size_t panel_bytes(int inputs) {
    if constexpr (IsFloats<K>::value) return size_t(inputs) * PANEL * K::BYTES;
    else return size_t(inputs / K::BLOCK) * K::RECORD;
}

static inline int panels(int outputs) { return (outputs + PANEL - 1) / PANEL; }

// from: the file's rows. to: aligned to 64 bytes, panels(outputs) * panel_bytes(inputs).
template <class K>
static void pack_rows(const uint8_t* from, int outputs, int inputs, char* to) {
    const size_t panel = panel_bytes<K>(inputs), row = panel / PANEL;
#pragma omp parallel for
    for (int p = 0; p < panels(outputs); ++p)
        for (int i = 0; i < PANEL; ++i) {
            const int output = p * PANEL + i;
            const uint8_t* const mine = output < outputs ? from + output * row : nullptr;
            if constexpr (IsFloats<K>::value) {
                for (int at = 0; at < inputs; ++at) {
                    char* const place = to + p * panel + (size_t(at) * PANEL + i) * K::BYTES;
                    if (mine) std::memcpy(place, mine + size_t(at) * K::BYTES, K::BYTES);
                    else std::memset(place, 0, K::BYTES);
                }
            } else {
                for (int block = 0; block < inputs / K::BLOCK; ++block)
                    pack_block<K>(mine ? mine + size_t(block) * K::BYTES : nullptr, i, to + p * panel + size_t(block) * K::RECORD);
            }
        }
}

}  // namespace stored
