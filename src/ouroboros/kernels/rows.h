// Rows of logits: Gumbel noise, the likeliest tokens, and how likely they are; in one pass or two, on the calling thread.
#pragma once
#include "vectors.h"

// Natural logarithm of positive normal numbers, to about 1 ulp: log(2^k (1 + f)) by fdlibm's series in f / (2 + f).
static inline Doubles log8(Doubles x) {
    Doubles m, k;
    split(x, m, k);
    const Doubles f = m - all8(1), s = f / (all8(2) + f);
    const Doubles z = s * s, half = all8(0.5) * (f * f);
    Doubles r = all8(1.479819860511658591e-01);
    for (double c : {1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
                     2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01})
        r = fma(r, z, all8(c));
    r = r * z;
    const Doubles low = fma(s, half + r, k * all8(1.90821492927058770002e-10));
    const Doubles rest = half - low - f;
    return fms(k, all8(6.93147180369123816490e-01), rest);
}

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull, MIX_1 = 0xBF58476D1CE4E5B9ull, MIX_2 = 0x94D049BB133111EBull;

static inline Longs mix8(Longs x) {
    x = exclusive_or(x, shift_right<30>(x));
    x = times(x, all_longs(MIX_1));
    x = exclusive_or(x, shift_right<27>(x));
    x = times(x, all_longs(MIX_2));
    return exclusive_or(x, shift_right<31>(x));
}

// Noise (sampling/noise.py), rounded to floats, of eight tokens at a position.
class Noise {
  public:
    Noise(uint64_t seed, uint64_t position) {
        base_ = mix8(all_longs(seed + GOLDEN));
        base_ = mix8(add(base_, all_longs(position * GOLDEN)));
    }

    __m256 operator()(Longs ids) const {
        const Longs state = mix8(add(base_, times(ids, all_longs(GOLDEN))));
        Doubles x = doubles(shift_right<12>(state)) + all8(0.5);
        x = x * all8(0x1p-52);
        for (int i = 0; i < 2; ++i) x = all8(0) - log8(x);
        return floats(x);
    }

  private:
    Longs base_;
};

// The noise of tokens 0 ... count-1 at a position.
static inline void gumbel_row(uint64_t seed, uint64_t position, int count, float* out) {
    const Noise noise(seed, position);
    const Longs lanes = longs(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (int at = 0; at < count; at += 8) store8(out + at, count - at, noise(add(lanes, all_longs(at))));
}

// The `count` highest scores of a row, best first, equal ones by their index.
class Best {
  public:
    Best(int count, int* ids, float* scores) : count_(count), ids_(ids), scores_(scores) {
        for (int i = 0; i < count; ++i) ids_[i] = 0, scores_[i] = -INFINITY;
    }

    void see(Vec scores, Mask there, int at) {
        unsigned better = greater(there, scores, all(scores_[count_ - 1]));
        if (!better) return;
        alignas(64) float values[LANES];
        store_line(values, scores);
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

    Vec operator()(int at, Mask there) const {
        Vec x = A::load(logits + at, there);
        if (temperature != 1) x = x / all(temperature);
        return noise ? x + Fp32::load(noise + at, there) : x;
    }
};

// Fills ids and scores with the `count` best; with `sum`, sum[0] = sum of exp(score - the best one's).
template <class A>
void choose(const Scores<A>& scores, int size, int count, int* ids, float* best, float* sum) {
    Best found(count, ids, best);
    for (int at = 0; at < size; at += LANES) {
        const Mask there = first(size - at);
        found.see(scores(at, there), there, at);
    }
    if (!sum) return;
    const Vec top = all(best[0]);
    Vec total = zero();
    for (int at = 0; at < size; at += LANES) {
        const Mask there = first(size - at);
        total = add(there, total, exp16(scores(at, there) - top));
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
        const __m256 drawn = noise(longs(load8(tokens + at, size - at)));
        const __m256 scaled = _mm256_div_ps(load8(logs + at, size - at), _mm256_set1_ps(temperature));
        _mm256_storeu_ps(scores + at, _mm256_add_ps(scaled, drawn));
    }
    Best found(count, ids, chances);
    for (int at = 0; at < size; at += LANES) found.see(load(scores + at), first(size - at), at);
    const Vec top = all(chances[0]);
    Vec total = zero();
    for (int at = 0; at < size; at += LANES) {
        const Mask there = first(size - at);
        total = add(there, total, exp16(load(scores + at) - top));
    }
    const float best = chances[0], sum = sum16(total);
    for (int i = 0; i < count; ++i) {
        ids[i] = tokens[ids[i]];
        chances[i] = std::exp(chances[i] - best) / sum;
    }
}
