// Softmax attention of new rows over one sequence's cache.
//
// What a row sees is a range of cache rows followed by a list of single ones (its path in the tree). Both are in order
// of position, and everything is summed in that order alone: a node's result has the same bits as the row of a plain
// text with the same tokens, though the cache holds its path in other places.
#pragma once
#include <algorithm>
#include <type_traits>

#include "vectors.h"

// One head's keys or values in a cache: row t begins at data + t * head_size.
template <class A>
struct Cached {
    const typename A::Element* data = nullptr;
    int head_size = 0;
    const typename A::Element* operator[](int t) const { return data + size_t(t) * head_size; }
    void fetch(int t) const {
        const char* row = (const char*)(*this)[t];
        for (size_t i = 0; i < head_size * sizeof(typename A::Element); i += 64) _mm_prefetch(row + i, _MM_HINT_T1);
    }
};

struct Seen {
    int begin, end;      // cache rows begin ... end-1
    const int* path;     // then these
    int path_length;
};

constexpr int KEYS = SIDE * LANES;  // keys whose scores, or elements of a head whose sums, are computed together

// Words of KEYS keys, turned: packed[w * KEYS + key]. Keys from `end` on are zeros.
template <class A>
static void pack_keys(Cached<A> keys, int begin, int end, int words, uint32_t* packed) {
    for (int lane = 0; lane < KEYS; lane += LANES)
        for (int w = 0; w < words; w += LANES) {
            Bits rows[LANES];
            const Mask some = first(words - w);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) {
                const int t = begin + lane + i;
                rows[i] = t < end ? load_bits((const uint32_t*)keys[t] + w, some) : no_bits();
            }
            transpose16(rows);
            uint32_t* to = packed + size_t(w) * KEYS + lane;
            for (int i = 0; i < std::min(LANES, words - w); ++i) store_bits(to + i * KEYS, rows[i]);
        }
}

// Scores of KEYS packed keys for ROWS queries: each is one sum over the head in order.
template <class A, int ROWS>
static void score_keys(const uint32_t* packed, const uint32_t* const* queries, int words, float scale, float* const* scores) {
    Vec sum[ROWS][SIDE];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < SIDE; ++j) sum[r][j] = zero();
#pragma GCC unroll 1
    for (int w = 0; w < words; ++w) {
        const uint32_t* at = packed + size_t(w) * KEYS;
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const Bits x = all_bits(queries[r][w]);
#pragma GCC unroll 4
            for (int j = 0; j < SIDE; ++j) sum[r][j] = A::step(sum[r][j], load_line(at + j * LANES), x);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < SIDE; ++j) store(scores[r] + j * LANES, sum[r][j] * all(scale));
}

// In place: exp(score - largest), with `cap` (or 0) of capped scores. Returns their sum.
static float softmax(float* scores, int count, float cap) {
    for (int t = 0; cap != 0 && t < count; t += LANES) Fp32::store(scores + t, first(count - t), capped(load(scores + t), cap));
    Vec top = all(-INFINITY);
    for (int t = 0; t < count; t += LANES)
        top = larger(first(count - t), top, load(scores + t));
    const Vec largest = all(max16(top));
    Vec total = zero();
    for (int t = 0; t < count; t += LANES) {
        const Mask some = first(count - t);
        const Vec e = only(some, exp16(load(scores + t) - largest));
        Fp32::store(scores + t, some, e);
        total = total + e;
    }
    return sum16(total);
}

// Adds weight * value row for ROWS queries over cache rows begin ... end-1, for KEYS elements of the head (fewer at its
// end). weights[r][0] belongs to row `begin`. next: rows that are read soon, fetched along; or null.
template <class A, int ROWS>
static void add_values(Cached<A> values, int begin, int end, int element, int count, const float* const* weights, float* const* out,
                       Cached<A> next = {}) {
    Mask some[SIDE];
    for (int j = 0; j < SIDE; ++j) some[j] = first(count - j * LANES);
    Vec sum[ROWS][SIDE];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < SIDE; ++j) sum[r][j] = load(out[r] + element + j * LANES);
#pragma GCC unroll 1
    for (int t = begin; t < end; ++t) {
        const typename A::Element* row = values[t] + element;
        if (next.data) next.fetch(t);
        Vec v[SIDE];
#pragma GCC unroll 4
        for (int j = 0; j < SIDE; ++j) v[j] = A::load(row + j * LANES, some[j]);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const Vec weight = all(weights[r][t - begin]);
#pragma GCC unroll 4
            for (int j = 0; j < SIDE; ++j) sum[r][j] = fma(weight, v[j], sum[r][j]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < SIDE; ++j) store(out[r] + element + j * LANES, sum[r][j]);
}

constexpr int MAX_QUERIES = 16;
constexpr int TOGETHER = 6;  // queries whose sums fit into registers: 6 * SIDE vectors + SIDE loaded + 1

// Calls with<ROWS>(begin, ROWS) for groups of up to TOGETHER of `count` queries, about equally large.
template <class F>
static void in_groups(int count, F&& with) {
    const int groups = (count + TOGETHER - 1) / TOGETHER;
    for (int g = 0; g < groups; ++g) {
        const int begin = count * g / groups;
        switch (count * (g + 1) / groups - begin) {
            case 1: with(begin, std::integral_constant<int, 1>()); break;
            case 2: with(begin, std::integral_constant<int, 2>()); break;
            case 3: with(begin, std::integral_constant<int, 3>()); break;
            case 4: with(begin, std::integral_constant<int, 4>()); break;
            case 5: with(begin, std::integral_constant<int, 5>()); break;
            default: with(begin, std::integral_constant<int, 6>());
        }
    }
}

// Memory that one thread needs for `attend`; `span`: cache rows from the first to the last that the queries see.
struct AttentionScratch {
    uint32_t* packed;  // [words][KEYS]
    float* scores;     // [queries][span_stride(span)]
    float* out;        // [queries][head size rounded up to 64]
    static size_t span_stride(int span) { return size_t(span + KEYS - 1) / KEYS * KEYS + LANES; }
    static size_t out_stride(int head_size) { return size_t(head_size + 63) / 64 * 64; }
};

// Up to 16 queries that share a key head. queries[i]: its words; seen[i]; result in scratch.out, row i. next: keys that this
// thread attends to next, or null. Values come from memory while keys are scored, the next keys while values are summed.
template <class A>
static void attend(Cached<A> keys, Cached<A> values, Cached<A> next, const uint32_t* const* queries, const Seen* const* seen, int count,
                   float scale, float cap, const AttentionScratch& scratch) {
    const int head = keys.head_size, words = head / A::PER_WORD;
    int begin = seen[0]->begin, end = 0, common = 0;
    for (int i = 0; i < count; ++i) {
        begin = std::min(begin, seen[i]->begin);
        common = std::max(common, seen[i]->end);
        end = std::max(end, seen[i]->path_length ? seen[i]->path[seen[i]->path_length - 1] + 1 : seen[i]->end);
    }
    const size_t stride = AttentionScratch::span_stride(end - begin), out_stride = AttentionScratch::out_stride(head);
    for (int t = begin; t < end; t += KEYS) {
        for (int i = t; i < std::min(t + KEYS, end); ++i) values.fetch(i);
        pack_keys<A>(keys, t, end, words, scratch.packed);
        in_groups(count, [&](int i, auto rows) {
            float* to[TOGETHER];
            for (int r = 0; r < rows; ++r) to[r] = scratch.scores + (i + r) * stride + (t - begin);
            score_keys<A, decltype(rows)::value>(scratch.packed, queries + i, words, scale, to);
        });
    }
    float sums[MAX_QUERIES];
    const float* paths[MAX_QUERIES];
    for (int i = 0; i < count; ++i) {
        // The path's scores move up to the range's, then both are one list in order of position.
        float* line = scratch.scores + i * stride;
        const Seen& s = *seen[i];
        float* from = line + (s.begin - begin);
        const int range = s.end - s.begin;
        for (int j = 0; j < s.path_length; ++j) from[range + j] = line[s.path[j] - begin];
        sums[i] = softmax(from, range + s.path_length, cap);
        paths[i] = from + range;
        std::fill(line, from, 0.f);  // what others see and this row does not
        if (!s.path_length) std::fill(line + (s.end - begin), line + (common - begin), 0.f);
        std::fill(scratch.out + i * out_stride, scratch.out + (i + 1) * out_stride, 0.f);
    }
    for (int element = 0; element < head; element += KEYS)
        in_groups(count, [&](int i, auto rows) {
            const float* from[TOGETHER];
            float* to[TOGETHER];
            for (int r = 0; r < rows; ++r) {
                from[r] = scratch.scores + (i + r) * stride;
                to[r] = scratch.out + (i + r) * out_stride;
            }
            const int left = head - element;
            add_values<A, decltype(rows)::value>(values, begin, common, element, left, from, to, i || element ? Cached<A>() : next);
            for (int r = 0; r < rows; ++r)
                for (int j = 0; j < seen[i + r]->path_length; ++j) {
                    const int t = seen[i + r]->path[j];
                    const float* weight = paths[i + r] + j;
                    add_values<A, 1>(values, t, t + 1, element, left, &weight, to + r);
                }
        });
    for (int i = 0; i < count; ++i) {
        float* out = scratch.out + i * out_stride;
        const Vec inverse = all(1.f / sums[i]);
        for (int d = 0; d < head; d += LANES) store(out + d, load(out + d) * inverse);
    }
}
