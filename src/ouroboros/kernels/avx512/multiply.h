// Products of a tile, in AVX-512: a word of the inputs times 32 outputs in two registers, for as many rows as fit.
#pragma once

// Rows whose sums are computed together: as many as fit into registers (2 * 14 + 2 weights + 1 word of 32), or fewer where
// more are slower: so measured.
constexpr int MAX_BLOCK = 14;
template <class W>
constexpr int BLOCK = MAX_BLOCK;
template <>
constexpr int BLOCK<WeightsInt4> = 6;
template <>
constexpr int BLOCK<WeightsW8A8> = 8;

// 16 outputs of one word of inputs.
template <class W>
static inline Bits load_weights(const char* p) { return _mm512_load_si512(p); }
template <>
inline Bits load_weights<WeightsInt8>(const char* p) {
    const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i*)p)));
    const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i*)p + 1)));
    // whole numbers this small have zeros in the lower half of their float
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a), 16), _mm512_castps_si512(b));
}

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
            const Bits w0 = load_weights<W>(weights), w1 = load_weights<W>(weights + W::BYTES);
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

// bf16 of the whole numbers -8 ... 7, twice, since a look-up heeds five bits. One shift and one look-up make 32 weights.
static inline __m512i int4_table() {
    const Vec values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(values));
}

template <int ROWS>
struct Multiply<WeightsInt4, ROWS> {
    using W = WeightsInt4;

    static void run(const char* weights, const char* rows, size_t step, int words, float* sums) {
        const __m512i table = int4_table();
        for (int i = 0; i < ROWS * TILE; i += LANES) _mm512_store_ps(sums + i, zero());
        for (int begin = 0; begin < words; begin += W::WORDS) {
            Vec low[ROWS], high[ROWS];
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) low[r] = high[r] = zero();
            const char* word = rows + begin / SLICE_WORDS * step + begin % SLICE_WORDS * 4;
            const char* const end = word + 4 * std::min(words - begin, W::WORDS);
            const char* line = weights;
#pragma GCC unroll 1
            for (; word < end; word += 8, line += W::LINE) {
                _mm_prefetch(line + ahead(ROWS), _MM_HINT_NTA);
                const __m512i four = _mm512_load_si512(line);
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    const __m512i two = i ? _mm512_srli_epi16(four, 8) : four;
                    const __m512i w0 = _mm512_permutexvar_epi16(two, table);
                    const __m512i w1 = _mm512_permutexvar_epi16(_mm512_srli_epi16(two, 4), table);
#pragma GCC unroll 16
                    for (int r = 0; r < ROWS; ++r) {
                        int pair;
                        std::memcpy(&pair, word + r * SLICE + 4 * i, 4);
                        const __m512i x = _mm512_set1_epi32(pair);
                        low[r] = Bf16::step(low[r], w0, x);
                        high[r] = Bf16::step(high[r], w1, x);
                    }
                }
            }
            const uint16_t* scales = (const uint16_t*)(weights + W::WORDS / 2 * W::LINE);
            _mm_prefetch((const char*)scales + ahead(ROWS), _MM_HINT_NTA);
            const Vec scale_low = Bf16::load(scales), scale_high = Bf16::load(scales + LANES);
            weights += W::BYTES;
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                float* to = sums + r * TILE;
                _mm512_store_ps(to, _mm512_fmadd_ps(scale_low, low[r], _mm512_load_ps(to)));
                _mm512_store_ps(to + LANES, _mm512_fmadd_ps(scale_high, high[r], _mm512_load_ps(to + LANES)));
            }
        }
    }
};

template <int ROWS>
struct Multiply<WeightsW8A8, ROWS> {
    using W = WeightsW8A8;

    static void run(const char* weights, const char* rows, size_t step, int words, float* sums) {
        for (int i = 0; i < ROWS * TILE; i += LANES) _mm512_store_ps(sums + i, zero());
        for (; words > 0; words -= W::GROUP / 2, rows += step) {
            const auto slice = [&](int r) { return (const W::Slice*)(rows + r * SLICE); };
            __m512i low[ROWS], high[ROWS];
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) low[r] = high[r] = _mm512_set1_epi32(slice(r)->start);
#pragma GCC unroll 1
            for (const char *word = rows, *end = rows + W::GROUP; word < end; word += 4, weights += 2 * W::BYTES) {
                const __m512i w0 = _mm512_load_si512(weights), w1 = _mm512_load_si512(weights + W::BYTES);
                _mm_prefetch(weights + ahead(ROWS), _MM_HINT_NTA);
                _mm_prefetch(weights + ahead(ROWS) + 64, _MM_HINT_NTA);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; ++r) {
                    int four;
                    std::memcpy(&four, word + r * SLICE, 4);
                    const __m512i x = _mm512_set1_epi32(four);
                    low[r] = _mm512_dpbusd_epi32(low[r], w0, x);
                    high[r] = _mm512_dpbusd_epi32(high[r], w1, x);
                }
            }
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                float* to = sums + r * TILE;
                const Vec scale = all(slice(r)->scale);
                _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(low[r]), scale, _mm512_load_ps(to)));
                _mm512_store_ps(to + LANES, _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[r]), scale, _mm512_load_ps(to + LANES)));
            }
        }
    }
};

template <class W>
struct Matmul {
    // Calls done(row, sums of 32 outputs) for every row.
    template <class F>
    static void tile(const char* weights, const Rows& rows, int words, F&& done) {
        alignas(64) float sums[MAX_BLOCK * TILE];
        const int count = int(rows.count), blocks = (count + BLOCK<W> - 1) / BLOCK<W>;
        for (int b = 0; b < blocks; ++b) {
            const int begin = count * b / blocks, size = count * (b + 1) / blocks - begin;
            kernel<W>(size, std::make_integer_sequence<int, BLOCK<W>>())(weights, rows.data + begin * SLICE, count * SLICE, words, sums);
            for (int r = 0; r < size; ++r) done(begin + r, sums + r * TILE);
        }
    }
};
