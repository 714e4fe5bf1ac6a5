// Rows of logits: Gumbel noise, the likeliest tokens, and how likely they are; in one pass or two, on the calling thread.
#pragma once
#include "vectors.h"

// Natural logarithm of positive normal numbers, to about 1 ulp: log(2^k (1 + f)) by fdlibm's series in f / (2 + f).
static inline __m512d log8(__m512d x) {
    const auto constant = [](double c) { return _mm512_set1_pd(c); };
    __m512d m = _mm512_getmant_pd(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), k = _mm512_getexp_pd(x);
    const __mmask8 large = _mm512_cmp_pd_mask(m, constant(1.4142135623730951), _CMP_GT_OQ);
    m = _mm512_mask_mul_pd(m, large, m, constant(0.5));
    k = _mm512_mask_add_pd(k, large, k, constant(1));
    const __m512d f = _mm512_sub_pd(m, constant(1)), s = _mm512_div_pd(f, _mm512_add_pd(constant(2), f));
    const __m512d z = _mm512_mul_pd(s, s), half = _mm512_mul_pd(constant(0.5), _mm512_mul_pd(f, f));
    __m512d r = constant(1.479819860511658591e-01);
    for (double c : {1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
                     2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01})
        r = _mm512_fmadd_pd(r, z, constant(c));
    r = _mm512_mul_pd(r, z);
    const __m512d low = _mm512_fmadd_pd(s, _mm512_add_pd(half, r), _mm512_mul_pd(k, constant(1.90821492927058770002e-10)));
    const __m512d rest = _mm512_sub_pd(_mm512_sub_pd(half, low), f);
    return _mm512_fmsub_pd(k, constant(6.93147180369123816490e-01), rest);
}

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull, MIX_1 = 0xBF58476D1CE4E5B9ull, MIX_2 = 0x94D049BB133111EBull;

static inline __m512i mix8(__m512i x) {
    x = _mm512_xor_si512(x, _mm512_srli_epi64(x, 30));
    x = _mm512_mullo_epi64(x, _mm512_set1_epi64((long long)MIX_1));
    x = _mm512_xor_si512(x, _mm512_srli_epi64(x, 27));
    x = _mm512_mullo_epi64(x, _mm512_set1_epi64((long long)MIX_2));
    return _mm512_xor_si512(x, _mm512_srli_epi64(x, 31));
}

// Noise (sampling/noise.py), rounded to floats, of eight tokens at a position.
class Noise {
  public:
    Noise(uint64_t seed, uint64_t position) {
        base_ = mix8(_mm512_set1_epi64((long long)(seed + GOLDEN)));
        base_ = mix8(_mm512_add_epi64(base_, _mm512_set1_epi64((long long)(position * GOLDEN))));
    }

    __m256 operator()(__m512i ids) const {
        const __m512i golden = _mm512_set1_epi64((long long)GOLDEN);
        const __m512i state = mix8(_mm512_add_epi64(base_, _mm512_mullo_epi64(ids, golden)));
        __m512d x = _mm512_add_pd(_mm512_cvtepu64_pd(_mm512_srli_epi64(state, 12)), _mm512_set1_pd(0.5));
        x = _mm512_mul_pd(x, _mm512_set1_pd(0x1p-52));
        for (int i = 0; i < 2; ++i) x = _mm512_sub_pd(_mm512_setzero_pd(), log8(x));
        return _mm512_cvtpd_ps(x);
    }

  private:
    __m512i base_;
};

static inline __mmask8 first8(int count) { return count >= 8 ? 0xFF : (1u << count) - 1; }

// The noise of tokens 0 ... count-1 at a position.
static inline void gumbel_row(uint64_t seed, uint64_t position, int count, float* out) {
    const Noise noise(seed, position);
    const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    for (int at = 0; at < count; at += 8)
        _mm256_mask_storeu_ps(out + at, first8(count - at), noise(_mm512_add_epi64(lanes, _mm512_set1_epi64(at))));
}

// The `count` highest scores of a row, best first, equal ones by their index.
class Best {
  public:
    Best(int count, int* ids, float* scores) : count_(count), ids_(ids), scores_(scores) {
        for (int i = 0; i < count; ++i) ids_[i] = 0, scores_[i] = -INFINITY;
    }

    void see(Vec scores, __mmask16 there, int at) {
        __mmask16 better = _mm512_mask_cmp_ps_mask(there, scores, all(scores_[count_ - 1]), _CMP_GT_OQ);
        if (!better) return;
        alignas(64) float values[LANES];
        _mm512_store_ps(values, scores);
        for (; better; better &= better - 1) {
            const int lane = __builtin_ctz(better);
            if (values[lane] > scores_[count_ - 1]) insert(values[lane], at + lane);
        }
    }

  private:
    void insert(float score, int id) {
        int place = count_ - 1;
        for (; place && score > scores_[place - 1]; --place) {
            scores_[place] = scores_[place - 1];
            ids_[place] = ids_[place - 1];
        }
        scores_[place] = score;
        ids_[place] = id;
    }

    int count_, *ids_;
    float* scores_;
};

// A row's scores: logits / temperature + noise, where there is any.
template <class A>
struct Scores {
    const typename A::Element* logits;
    const float* noise;
    float temperature;

    Vec operator()(int at, __mmask16 there) const {
        Vec x = A::load(logits + at, there);
        if (temperature != 1) x = _mm512_div_ps(x, all(temperature));
        return noise ? _mm512_add_ps(x, _mm512_maskz_loadu_ps(there, noise + at)) : x;
    }
};

// Fills ids and scores with the `count` best; with `sum`, sum[0] = sum of exp(score - the best one's).
template <class A>
void choose(const Scores<A>& scores, int size, int count, int* ids, float* best, float* sum) {
    Best found(count, ids, best);
    for (int at = 0; at < size; at += LANES) {
        const __mmask16 there = first(size - at);
        found.see(scores(at, there), there, at);
    }
    if (!sum) return;
    const Vec top = all(best[0]);
    Vec total = zero();
    for (int at = 0; at < size; at += LANES) {
        const __mmask16 there = first(size - at);
        total = _mm512_mask_add_ps(total, there, total, exp16(_mm512_sub_ps(scores(at, there), top)));
    }
    *sum = sum16(total);
}

constexpr int MAX_GUESSES = 64;

// Of `size` tokens with their log-probabilities the `count` best by log / temperature + noise, and the chance of each
// among them all.
static inline void guess(const Noise& noise, float temperature, int size, const int* tokens, const float* logs, int count,
                         int* ids, float* chances) {
    float scores[MAX_GUESSES + LANES];
    for (int at = 0; at < size; at += 8) {
        const __mmask8 there = first8(size - at);
        const __m256 drawn = noise(_mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(there, tokens + at)));
        const __m256 scaled = _mm256_div_ps(_mm256_maskz_loadu_ps(there, logs + at), _mm256_set1_ps(temperature));
        _mm256_storeu_ps(scores + at, _mm256_add_ps(scaled, drawn));
    }
    Best found(count, ids, chances);
    for (int at = 0; at < size; at += LANES) found.see(_mm512_loadu_ps(scores + at), first(size - at), at);
    const Vec top = all(chances[0]);
    Vec total = zero();
    for (int at = 0; at < size; at += LANES) {
        const __mmask16 there = first(size - at);
        total = _mm512_mask_add_ps(total, there, total, exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + at), top)));
    }
    const float best = chances[0], sum = sum16(total);
    for (int i = 0; i < count; ++i) {
        ids[i] = tokens[ids[i]];
        chances[i] = std::exp(chances[i] - best) / sum;
    }
}
