// Products of a tile, in AVX2: one input at a time, for up to six rows and sixteen outputs, or three rows and all 32, whose
// sums fit into 16 registers.
//
// A slice of the inputs (128) is multiplied with all rows before the next: its weights then come from the first cache for all
// rows and outputs but the first. Between slices sums are in memory, which changes no bit.
#pragma once

constexpr int BLOCK = 6, WIDE_BLOCK = 3;  // rows that are computed together; with all outputs of the tile
constexpr int TOGETHER_ROWS = 8 * BLOCK;  // rows that a tile is read once for
constexpr int SLICE_INPUTS = SLICE / sizeof(float);

// Weights are asked for beforehand, past the caches; half of the tile's outputs are every other line, or all lines again.
constexpr int AHEAD = 4096;
template <int BYTES>
static inline void prefetch(const char* p) {
    for (int i = 0; i < BYTES; i += 64) _mm_prefetch(p + AHEAD + i, _MM_HINT_NTA);
}

// Eight outputs' element i of the word at p; `eight`: which of the tile's.
template <class W>
static inline __m256 load_weights(const char* p, int i, int eight) {
    p += eight / 2 * W::BYTES + eight % 2 * 32;
    if (W::Activation::PER_WORD == 1) return _mm256_load_ps((const float*)p);
    const __m256i words = _mm256_load_si256((const __m256i*)p);
    return i ? odd(words) : even(words);
}
template <>
inline __m256 load_weights<WeightsInt8>(const char* p, int i, int eight) {
    p += eight / 2 * WeightsInt8::BYTES + i * LANES + eight % 2 * 8;
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

// sums[r][o] += weights[o] * x[r], for ROWS rows, `step` bytes apart, and EIGHTS * 8 outputs.
template <int ROWS, int EIGHTS>
static inline void add_products(__m256 (&sums)[ROWS][EIGHTS], const __m256 (&weights)[EIGHTS], const char* x) {
    // What is fewer is held in registers.
    if constexpr (ROWS < EIGHTS) {
        __m256 all[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) all[r] = _mm256_broadcast_ss((const float*)(x + r * SLICE));
#pragma GCC unroll 8
        for (int o = 0; o < EIGHTS; ++o)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sums[r][o] = _mm256_fmadd_ps(weights[o], all[r], sums[r][o]);
    } else {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256 all = _mm256_broadcast_ss((const float*)(x + r * SLICE));
#pragma GCC unroll 8
            for (int o = 0; o < EIGHTS; ++o) sums[r][o] = _mm256_fmadd_ps(weights[o], all, sums[r][o]);
        }
    }
}

// Adds a slice's products for ROWS rows and the EIGHTS * 8 outputs behind the tile's first `output`, to sums[r][o]. weights:
// the slice's, rows: the first one's slice, words: how many of the inputs.
template <class W, int ROWS, int EIGHTS>
struct Strip {
    static void run(const char* weights, const char* rows, int words, int output, float* sums) {
        constexpr int PER_WORD = W::Activation::PER_WORD;
        weights += output / LANES * W::BYTES;
        __m256 sum[ROWS][EIGHTS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int o = 0; o < EIGHTS; ++o) sum[r][o] = _mm256_load_ps(sums + r * TILE + output + 8 * o);
#pragma GCC unroll 1
        for (const char* end = rows + words * PER_WORD * 4; rows < end; rows += PER_WORD * 4, weights += 2 * W::BYTES) {
            prefetch<EIGHTS / 2 * W::BYTES>(weights);
#pragma GCC unroll 2
            for (int i = 0; i < PER_WORD; ++i) {
                __m256 w[EIGHTS];
#pragma GCC unroll 8
                for (int o = 0; o < EIGHTS; ++o) w[o] = load_weights<W>(weights, i, o);
                add_products<ROWS, EIGHTS>(sum, w, rows + 4 * i);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int o = 0; o < EIGHTS; ++o) _mm256_store_ps(sums + r * TILE + output + 8 * o, sum[r][o]);
    }
};

// A look-up that makes a word's byte its highest, and the others zeros: the byte, with its sign, times 2^24.
static inline __m256i top_bytes(int byte) {
    const auto of = [&](int word) { return int(unsigned(4 * word + byte) << 24 | 0x808080); };
    return _mm256_broadcastsi128_si256(_mm_setr_epi32(of(0), of(1), of(2), of(3)));
}

template <int ROWS, int EIGHTS>
struct Strip<WeightsInt4, ROWS, EIGHTS> {
    using W = WeightsInt4;

    static void run(const char* weights, const char* rows, int words, int output, float* sums) {
        for (; words > 0; words -= W::WORDS, weights += W::BYTES) {
            __m256 sum[ROWS][EIGHTS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
                for (int o = 0; o < EIGHTS; ++o) sum[r][o] = _mm256_setzero_ps();
            const char *line = weights, *const end = rows + std::min(words, W::WORDS) * 8;
#pragma GCC unroll 1
            for (; rows < end; rows += 16, line += W::LINE) {
                prefetch<W::LINE>(line);
                __m256i four[EIGHTS];  // inputs 0, 2, 1, 3 of eight outputs
#pragma GCC unroll 8
                for (int o = 0; o < EIGHTS; ++o) {
                    const int eight = output / 8 + o;
                    const __m256i both = _mm256_load_si256((const __m256i*)line + eight % 2);
                    const __m256i mine = eight < 2 ? both : _mm256_srli_epi16(both, 4);
                    four[o] = _mm256_sub_epi8(_mm256_and_si256(mine, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
                }
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    const __m256i top = top_bytes(i % 2 * 2 + i / 2);
                    __m256 w[EIGHTS];
#pragma GCC unroll 8
                    for (int o = 0; o < EIGHTS; ++o) w[o] = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(four[o], top));
                    add_products<ROWS, EIGHTS>(sum, w, rows + 4 * i);
                }
            }
            const uint16_t* scales = (const uint16_t*)(weights + W::WORDS / 2 * W::LINE) + output;
            prefetch<64>((const char*)scales);
#pragma GCC unroll 8
            for (int o = 0; o < EIGHTS; ++o) {
                const __m256 scale = even(_mm256_cvtepu16_epi32(_mm_load_si128((const __m128i*)scales + o)));
                const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(0x1p-24));
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    float* to = sums + r * TILE + output + 8 * o;
                    _mm256_store_ps(to, _mm256_fmadd_ps(factor, sum[r][o], _mm256_load_ps(to)));
                }
            }
        }
    }
};

template <int ROWS, int EIGHTS>
struct Strip<WeightsW8A8, ROWS, EIGHTS> {
    using W = WeightsW8A8;

    static void run(const char* weights, const char* rows, int words, int output, float* sums) {
        weights += output / LANES * W::BYTES;
        for (; words > 0; words -= W::GROUP / 2, rows += W::GROUP * sizeof(float)) {
            __m256i sum[ROWS][EIGHTS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
                for (int o = 0; o < EIGHTS; ++o) sum[r][o] = _mm256_setzero_si256();
#pragma GCC unroll 1
            for (const char *two = rows, *end = rows + W::WORDS * 4; two < end; two += 4, weights += 2 * W::BYTES) {
                prefetch<EIGHTS / 2 * W::BYTES>(weights);
                __m256i w[EIGHTS];
#pragma GCC unroll 8
                for (int o = 0; o < EIGHTS; ++o) w[o] = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)weights + o));
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    const __m256i x = _mm256_castps_si256(_mm256_broadcast_ss((const float*)(two + r * SLICE)));
#pragma GCC unroll 8
                    for (int o = 0; o < EIGHTS; ++o) sum[r][o] = _mm256_add_epi32(sum[r][o], _mm256_madd_epi16(w[o], x));
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const __m256 scale = _mm256_set1_ps(((const W::Slice*)(rows + r * SLICE))->scale);
#pragma GCC unroll 8
                for (int o = 0; o < EIGHTS; ++o) {
                    float* to = sums + r * TILE + output + 8 * o;
                    _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][o]), scale, _mm256_load_ps(to)));
                }
            }
        }
    }
};

template <class W, int ROWS>
struct Multiply {
    static void run(const char* weights, const char* rows, int words, float* sums) {
        constexpr int EIGHTS = ROWS <= WIDE_BLOCK ? 4 : 2;
        for (int output = 0; output < TILE; output += 8 * EIGHTS) Strip<W, ROWS, EIGHTS>::run(weights, rows, words, output, sums);
    }
};

template <class W>
struct Matmul {
    // Calls done(row, sums of 32 outputs) for every row.
    template <class F>
    static void tile(const char* weights, const Rows& rows, int words, F&& done) {
        constexpr int SLICE_WORDS = SLICE_INPUTS / W::Activation::PER_WORD;
        alignas(64) float sums[TOGETHER_ROWS * TILE];
        const int all = int(rows.count);
        for (int start = 0; start < all; start += TOGETHER_ROWS) {
            const int count = std::min(TOGETHER_ROWS, all - start), blocks = (count + BLOCK - 1) / BLOCK;
            std::fill(sums, sums + count * TILE, 0.f);
            const char *from = weights, *slice = rows.data + start * SLICE;
            for (int left = words; left > 0; left -= SLICE_WORDS, from += W::tile_size(SLICE_WORDS), slice += all * SLICE)
                for (int b = 0; b < blocks; ++b) {
                    const int begin = count * b / blocks, size = count * (b + 1) / blocks - begin;
                    kernel<W>(size, std::make_integer_sequence<int, BLOCK>())(from, slice + begin * SLICE, std::min(left, SLICE_WORDS),
                                                                             sums + begin * TILE);
                }
            for (int r = 0; r < count; ++r) done(start + r, sums + r * TILE);
        }
    }
};
