// Products of a tile, in AVX2: one input at a time, for up to six rows and sixteen outputs, or three rows and all 32, whose
// sums fit into 16 registers.
//
// A slice of the inputs (128) is multiplied with all rows before the next: its weights then come from the first cache for all
// rows and outputs but the first. Between slices sums are in memory, which changes no bit.
#pragma once

constexpr int BLOCK = 6, WIDE_BLOCK = 2;  // rows that are computed together; with all outputs of the tile
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

// Sums stay in their registers. Left to itself GCC gives a new sum another one, and then has too few.
static inline __m256 add(__m256 sum, __m256 a, __m256 b) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}
static inline __m256i add(__m256i sum, __m256i x) {
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x));
    return sum;
}

// sums[r][o] += weight(o) * x[r], for ROWS rows and EIGHTS * 8 outputs. What is fewer is held in registers.
template <int ROWS, int EIGHTS, class F>
static inline void add_products(__m256 (&sums)[ROWS][EIGHTS], const char* x, F&& weight) {
    const auto row = [&](int r) { return _mm256_broadcast_ss((const float*)(x + r * SLICE)); };
    __m256 held[std::min(ROWS, EIGHTS)];
    if constexpr (ROWS < EIGHTS) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) held[r] = row(r);
#pragma GCC unroll 8
        for (int o = 0; o < EIGHTS; ++o) {
            const __m256 w = weight(o);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sums[r][o] = add(sums[r][o], w, held[r]);
        }
    } else {
#pragma GCC unroll 8
        for (int o = 0; o < EIGHTS; ++o) held[o] = weight(o);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256 all = row(r);
#pragma GCC unroll 8
            for (int o = 0; o < EIGHTS; ++o) sums[r][o] = add(sums[r][o], held[o], all);
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
            for (int i = 0; i < PER_WORD; ++i)
                add_products(sum, rows + 4 * i, [&](int o) { return load_weights<W>(weights, i, o); });
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int o = 0; o < EIGHTS; ++o) _mm256_store_ps(sums + r * TILE + output + 8 * o, sum[r][o]);
    }
};

// A word's byte as its highest, and the others zeros: the byte, with its sign, times 2^24. The look-up stays in memory, for
// registers are few.
static inline __m256i top_byte(__m256i words, int byte) {
#define OF(byte) {0x808080 | (byte) << 24, 0x808080 | (byte + 4) << 24, 0x808080 | (byte + 8) << 24, 0x808080 | (byte + 12) << 24, \
                  0x808080 | (byte) << 24, 0x808080 | (byte + 4) << 24, 0x808080 | (byte + 8) << 24, 0x808080 | (byte + 12) << 24}
    alignas(32) static constexpr uint32_t PLACES[4][8] = {OF(0), OF(1), OF(2), OF(3)};
#undef OF
    __m256i found;
    asm("vpshufb %2, %1, %0" : "=x"(found) : "x"(words), "m"(*(const __m256i*)PLACES[byte]));
    return found;
}

// Hands out a slice's weights: use(input, which eight outputs, they). A whole number of 4 bits times its scale is exact.
template <class F>
static inline void int4_weights(const char* weights, int words, F&& use) {
    using W = WeightsInt4;
    for (int begin = 0; begin < words; begin += W::WORDS, weights += W::BYTES) {
        const char *line = weights, *const scales = weights + W::WORDS / 2 * W::LINE;
        __m256 scale[4];
        prefetch<W::LINE>(scales);
#pragma GCC unroll 4
        for (int o = 0; o < 4; ++o) {
            const __m256i bits = _mm256_cvtepu16_epi32(_mm_load_si128((const __m128i*)scales + o));
            scale[o] = _mm256_mul_ps(even(bits), _mm256_set1_ps(0x1p-24));
        }
#pragma GCC unroll 1
        for (int input = 2 * begin, end = 2 * std::min(begin + W::WORDS, words); input < end; input += 4, line += W::LINE) {
            prefetch<W::LINE>(line);
            __m256i four[4];  // inputs 0, 2, 1, 3 of eight outputs
#pragma GCC unroll 4
            for (int o = 0; o < 4; ++o) {
                const __m256i both = _mm256_load_si256((const __m256i*)line + o % 2);
                const __m256i mine = _mm256_and_si256(o < 2 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
                four[o] = _mm256_sub_epi8(mine, _mm256_set1_epi8(8));
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
                for (int o = 0; o < 4; ++o)
                    use(input + i, o, _mm256_mul_ps(_mm256_cvtepi32_ps(top_byte(four[o], i % 2 * 2 + i / 2)), scale[o]));
        }
    }
}

template <>
struct Multiply<WeightsInt4, 1> {
    static void run(const char* weights, const char* rows, int words, float* sums) {
        __m256 sum[4];
#pragma GCC unroll 4
        for (int o = 0; o < 4; ++o) sum[o] = _mm256_load_ps(sums + 8 * o);
        int4_weights(weights, words, [&](int input, int o, __m256 w) {
            sum[o] = add(sum[o], w, _mm256_broadcast_ss((const float*)rows + input));
        });
#pragma GCC unroll 4
        for (int o = 0; o < 4; ++o) _mm256_store_ps(sums + 8 * o, sum[o]);
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
                    for (int o = 0; o < EIGHTS; ++o) sum[r][o] = add(sum[r][o], _mm256_madd_epi16(w[o], x));
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
    static constexpr int SLICE_WORDS = SLICE_INPUTS / W::Activation::PER_WORD;

    // Calls done(row, sums of 32 outputs) for every row.
    template <class F>
    static void tile(const char* weights, const Rows& rows, int words, F&& done) {
        alignas(64) float sums[TOGETHER_ROWS * TILE];
        const int all = int(rows.count);
        for (int start = 0; start < all; start += TOGETHER_ROWS) {
            const int count = std::min(TOGETHER_ROWS, all - start);
            std::fill(sums, sums + count * TILE, 0.f);
            const char *from = weights, *slice = rows.data + start * SLICE;
            for (int left = words; left > 0; left -= SLICE_WORDS, from += W::tile_size(SLICE_WORDS), slice += all * SLICE)
                multiply(from, slice, std::min(left, SLICE_WORDS), count, sums);
            for (int r = 0; r < count; ++r) done(start + r, sums + r * TILE);
        }
    }

    // Adds a slice's products for `count` rows.
    static void multiply(const char* weights, const char* rows, int words, int count, float* sums) {
        if constexpr (std::is_same_v<W, WeightsInt4>) {
            if (count == 1) return Multiply<W, 1>::run(weights, rows, words, sums);
            alignas(64) float wide[SLICE_INPUTS * TILE];
            int4_weights(weights, words, [&](int input, int o, __m256 w) { _mm256_store_ps(wide + input * TILE + 8 * o, w); });
            Matmul<WeightsFp32>::multiply((const char*)wide, rows, 2 * words, count, sums);
        } else {
            const int blocks = (count + BLOCK - 1) / BLOCK;
            for (int b = 0; b < blocks; ++b) {
                const int begin = count * b / blocks, size = count * (b + 1) / blocks - begin;
                kernel<W>(size, std::make_integer_sequence<int, BLOCK>())(weights, rows + begin * SLICE, words, sums + begin * TILE);
            }
        }
    }
};
