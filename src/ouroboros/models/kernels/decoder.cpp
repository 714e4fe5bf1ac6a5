// A whole forward of the native decoder in one call: embeddings, layers, caches, logits of the wanted rows.
//
// Called through ctypes: plain structs and pointers, no header of Python or PyTorch. The structs are mirrored in
// engine.py. Between the layers rows are fp32; what enters a matrix product, and the cache, is of the model's type.
//
// Threads go through the phases of a layer together (team.h). Every number of a row is summed in an order of its own
// that knows nothing of the other rows, so that a forward over many rows gives each of them the bits of a forward alone.
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "attention.h"
#include "matmul.h"
#include "team.h"

extern "C" {
struct Matrix {
    const char* weights;  // packed
    const float* bias;    // or null
    const float* scale;   // of each output; null but for int8
    int outputs, inputs;
};

struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm;  // the last two or null
    int window;  // 0: none
    int rotary;
};

struct Model {
    int format;  // 0: fp32, 1: bf16, 2: int8 weights with bf16 rows
    int vocabulary, hidden, inner, layers, heads, kv_heads, head_size;
    float eps, attention_scale, embedding_multiplier, residual_multiplier, logits_divisor;
    const void* embedding;  // [vocabulary, hidden] as it is, or null: that of the head
    const float* norm;
    Matrix head;
    const Layer* layer;
};

struct Sequence {
    char* cache;  // [layers, 2, kv_heads, capacity, head_size]
    int64_t capacity;
    int length, catch_up;  // committed rows that are there, and that come with this forward
    int pending, nodes;    // the tree's nodes that are there, and all
    const int* parents;    // of each node
};
}

namespace {

struct Row {
    int sequence, position, cache_row;
    Seen seen;  // without a window

    Seen within(int window) const {
        if (!window) return seen;
        const int hidden = std::max(seen.path_length - window, 0);
        return {std::min(std::max(seen.begin, position - window + 1), seen.end), seen.end, seen.path + hidden,
                seen.path_length - hidden};
    }
};

// One thread's grow-only memory for the forwards that it calls for.
char* workspace(size_t bytes) {
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<char, Free> held;
    thread_local size_t size = 0;
    if (size < bytes) {
        held.reset();
        size = 0;
        held.reset((char*)std::aligned_alloc(64, bytes));
        if (!held) throw std::bad_alloc();
        size = bytes;
    }
    return held.get();
}

constexpr size_t round64(size_t bytes) { return (bytes + 63) / 64 * 64; }
// Rows of activations lie an odd number of cache lines apart, so that they do not fall on each other in the cache.
constexpr size_t row_stride(size_t bytes) { return round64(bytes) | 64; }

// Root mean square norm (Zhang & Sennrich 2019), 16 lanes over the row.
template <class A, class Out>
void rms_norm(const float* x, const float* weight, int size, float eps, typename Out::Element* out) {
    Vec squares = zero();
    for (int i = 0; i < size; i += LANES) {
        const Vec v = Fp32::load(x + i, first(size - i));
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const Vec factor = all(1.f / std::sqrt(sum16(squares) / size + eps));
    for (int i = 0; i < size; i += LANES) {
        const __mmask16 some = first(size - i);
        Out::store(out + i, some, Fp32::load(x + i, some) * factor * Fp32::load(weight + i, some));
    }
}

template <class W>
struct Forward {
    using A = typename W::Activation;
    using Element = typename A::Element;
    struct Item {
        int sequence, head, begin, count;  // queries of one key head: row * group + place in the group
    };

    const Model& m;
    const Sequence* sequences;
    std::vector<Row> rows;
    std::vector<int> paths, first_row;
    std::vector<Item> items;
    int group;
    float *x, *qkv;
    char *normed, *queries, *attended, *inner;  // activations
    size_t hidden_stride, heads_stride, inner_stride;
    char* scratch;
    size_t scratch_size;
    int span = 0;

    Forward(const Model& model, const Sequence* sequences, int count) : m(model), sequences(sequences) {
        group = m.heads / m.kv_heads;
        size_t length = 0, total = 0;
        for (int s = 0; s < count; ++s) {
            length += size_t(sequences[s].nodes - sequences[s].pending) * sequences[s].nodes;
            total += sequences[s].catch_up + sequences[s].nodes - sequences[s].pending;
        }
        paths.reserve(length);  // rows point into it
        rows.reserve(total);
        for (int s = 0; s < count; ++s) add(s);
    }

    void add(int s) {
        const Sequence& q = sequences[s];
        const int start = int(rows.size()), root = q.length + q.catch_up;
        first_row.push_back(start);
        for (int i = q.length; i < root; ++i) rows.push_back({s, i, i, {0, i + 1, nullptr, 0}});
        for (int node = q.pending; node < q.nodes; ++node) {
            const size_t begin = paths.size();
            for (int at = node; at >= 0; at = q.parents[at]) paths.push_back(root + at);
            std::reverse(paths.begin() + begin, paths.end());
            const int length = int(paths.size() - begin);
            rows.push_back({s, root + length - 1, root + node, {0, root, paths.data() + begin, length}});
        }
        const int all = (int(rows.size()) - start) * group;
        for (int begin = 0; begin < all; begin += MAX_QUERIES)
            for (int head = 0; head < m.kv_heads; ++head)
                items.push_back({s, head, begin, std::min(MAX_QUERIES, all - begin)});
        span = std::max(span, root + q.nodes);
    }

    Element* cache(const Sequence& s, int layer, int values, int head) const {
        return (Element*)s.cache + ((size_t(layer) * 2 + values) * m.kv_heads + head) * s.capacity * m.head_size;
    }

    void place(int wanted, int threads) {
        const size_t n = std::max<size_t>(rows.size(), wanted), e = sizeof(Element);
        const size_t heads = size_t(m.heads) * m.head_size, all = heads + 2 * size_t(m.kv_heads) * m.head_size;
        hidden_stride = row_stride(m.hidden * e);
        heads_stride = row_stride(heads * e);
        inner_stride = row_stride(m.inner * e);
        const size_t packed = round64(size_t(m.head_size) * 4 * KEYS);
        const size_t scores = round64(MAX_QUERIES * AttentionScratch::span_stride(span) * 4 + 64);
        scratch_size = packed + scores + MAX_QUERIES * AttentionScratch::out_stride(m.head_size) * 4;
        const size_t sizes[] = {round64(n * m.hidden * 4), round64(n * all * 4), n * hidden_stride, n * heads_stride,
                                n * heads_stride, n * inner_stride, scratch_size * threads};
        size_t total = 64;
        for (size_t size : sizes) total += size;
        char* at = workspace(round64(total));
        char* parts[7];
        for (int i = 0; i < 7; at += sizes[i++]) parts[i] = at;
        x = (float*)parts[0], qkv = (float*)parts[1];
        normed = parts[2], queries = parts[3], attended = parts[4], inner = parts[5], scratch = parts[6];
    }

    // done(row, first output, how many, sums) for every row and tile of 32 outputs; sums have scale and bias.
    template <class F>
    void multiply_all(Team& team, int phase, int thread, const Matrix& w, const char* in, size_t stride, int count, F&& done) {
        const int words = w.inputs / A::PER_WORD;
        const size_t size = size_t(words) * 2 * W::BYTES;
        team.share(phase, thread, (w.outputs + TILE - 1) / TILE, [&](int tile) {
            const int o = tile * TILE, left = std::min(TILE, w.outputs - o);
            Matmul<W>::tile(w.weights + tile * size, in, stride, count, words, [&](int r, float* sums) {
                for (int i = 0; i < TILE; i += LANES) {
                    const __mmask16 some = first(left - i);
                    Vec v = _mm512_load_ps(sums + i);
                    if (w.scale) v = v * Fp32::load(w.scale + o + i, some);
                    if (w.bias) v = v + Fp32::load(w.bias + o + i, some);
                    _mm512_store_ps(sums + i, v);
                }
                done(r, o, left, sums);
            });
        });
    }

    void embed(int token, float* to) const {
        const int o = std::min(std::max(token, 0), m.vocabulary - 1);
        if (m.embedding) {
            const Element* row = (const Element*)m.embedding + size_t(o) * m.hidden;
            for (int i = 0; i < m.hidden; i += LANES) {
                const __mmask16 some = first(m.hidden - i);
                Fp32::store(to + i, some, A::load(row + i, some) * all(m.embedding_multiplier));
            }
            return;
        }
        const size_t words = m.head.inputs / A::PER_WORD, lane = o % LANES;
        const char* at = m.head.weights + (o / TILE * words * 2 + o % TILE / LANES) * W::BYTES;
        const float factor = m.embedding_multiplier * (m.head.scale ? m.head.scale[o] : 1.f);
        for (size_t w = 0; w < words; ++w, at += 2 * W::BYTES)
            for (int i = 0; i < A::PER_WORD; ++i) to[w * A::PER_WORD + i] = W::one(at, int(lane), i) * factor;
    }

    // Norms, turns and stores one row's queries, keys and values.
    void turn(int r, int l, const float* cos, const float* sin) {
        const Layer& layer = m.layer[l];
        const Row& row = rows[r];
        const int head = m.head_size, half = head / 2;
        float* v = qkv + size_t(r) * (m.heads + 2 * m.kv_heads) * head;
        for (int h = 0; h < m.heads + 2 * m.kv_heads; ++h, v += head) {
            const bool query = h < m.heads, key = !query && h < m.heads + m.kv_heads;
            const float* norm = query ? layer.q_norm : key ? layer.k_norm : nullptr;
            if (norm) rms_norm<A, Fp32>(v, norm, head, m.eps, v);
            if ((query || key) && layer.rotary)
                for (int i = 0; i < half; i += LANES) {
                    const __mmask16 some = first(half - i);
                    const Vec a = Fp32::load(v + i, some), b = Fp32::load(v + half + i, some);
                    const Vec c = Fp32::load(cos + size_t(row.position) * half + i, some);
                    const Vec s = Fp32::load(sin + size_t(row.position) * half + i, some);
                    Fp32::store(v + i, some, a * c - b * s);
                    Fp32::store(v + half + i, some, b * c + a * s);
                }
            Element* to = query ? (Element*)(queries + r * heads_stride) + size_t(h) * head
                                : cache(sequences[row.sequence], l, !key, (h - m.heads) % m.kv_heads) + size_t(row.cache_row) * head;
            for (int i = 0; i < head; i += LANES) A::store(to + i, first(head - i), Fp32::load(v + i, first(head - i)));
        }
    }

    void attend_item(const Item& item, int l, int thread) {
        const int head = m.head_size;
        char* at = scratch + thread * scratch_size;
        AttentionScratch mine;
        mine.packed = (uint32_t*)at;
        mine.out = (float*)(at + round64(size_t(head) * 4 * KEYS));
        mine.scores = mine.out + MAX_QUERIES * AttentionScratch::out_stride(head);
        Seen seen[MAX_QUERIES];
        const Seen* seen_of[MAX_QUERIES];
        const uint32_t* words[MAX_QUERIES];
        size_t offset[MAX_QUERIES];
        for (int i = 0; i < item.count; ++i) {
            const int r = first_row[item.sequence] + (item.begin + i) / group;
            const int h = item.head * group + (item.begin + i) % group;
            seen[i] = rows[r].within(m.layer[l].window);
            seen_of[i] = &seen[i];
            offset[i] = r * heads_stride + size_t(h) * head * sizeof(Element);
            words[i] = (const uint32_t*)(queries + offset[i]);
        }
        const Sequence& s = sequences[item.sequence];
        attend<A>({cache(s, l, 0, item.head), head}, {cache(s, l, 1, item.head), head}, words, seen_of, item.count,
                  m.attention_scale, mine);
        for (int i = 0; i < item.count; ++i) {
            const float* from = mine.out + i * AttentionScratch::out_stride(head);
            Element* to = (Element*)(attended + offset[i]);
            for (int d = 0; d < head; d += LANES) A::store(to + d, first(head - d), _mm512_loadu_ps(from + d));
        }
    }

    void run(const int* tokens, const float* cos, const float* sin, const int* wanted, int wanted_count, Element* logits, int threads) {
        place(wanted_count, threads);
        const int n = int(rows.size()), width = (m.heads + 2 * m.kv_heads) * m.head_size;
        const auto norm = [&](int r, const float* weight) {
            rms_norm<A, A>(x + size_t(r) * m.hidden, weight, m.hidden, m.eps, (Element*)(normed + r * hidden_stride));
        };
        const auto add = [&](int r, int o, int left, const float* sums) {
            float* to = x + size_t(r) * m.hidden + o;
            for (int i = 0; i < left; i += LANES) {
                const __mmask16 some = first(left - i);
                Fp32::store(to + i, some, Fp32::load(to + i, some) + _mm512_load_ps(sums + i) * all(m.residual_multiplier));
            }
        };
        Team team(threads, 8 * m.layers + 3);
#pragma omp parallel num_threads(threads)
        {
#pragma omp single
            team.resize(omp_get_num_threads());
            const int me = omp_get_thread_num();
            int phase = 0;
            team.share(phase++, me, n, [&](int r) {
                embed(tokens[r], x + size_t(r) * m.hidden);
                if (m.layers) norm(r, m.layer[0].input_norm);
            });
            for (int l = 0; l < m.layers; ++l) {
                const Layer& layer = m.layer[l];
                multiply_all(team, phase++, me, layer.qkv, normed, hidden_stride, n, [&](int r, int o, int left, const float* sums) {
                    for (int i = 0; i < left; i += LANES)
                        Fp32::store(qkv + size_t(r) * width + o + i, first(left - i), _mm512_load_ps(sums + i));
                });
                team.share(phase++, me, n, [&](int r) { turn(r, l, cos, sin); });
                team.share(phase++, me, int(items.size()), [&](int i) { attend_item(items[i], l, me); });
                multiply_all(team, phase++, me, layer.out, attended, heads_stride, n, add);
                team.share(phase++, me, n, [&](int r) { norm(r, layer.post_norm); });
                // A tile's outputs are 16 of the gate and the same 16 of up.
                multiply_all(team, phase++, me, layer.gate_up, normed, hidden_stride, n, [&](int r, int o, int, const float* sums) {
                    const Vec gate = _mm512_load_ps(sums), up = _mm512_load_ps(sums + LANES);
                    const Vec silu = gate / (all(1.f) + exp16(zero() - gate));
                    A::store((Element*)(inner + r * inner_stride) + o / 2, first(m.inner - o / 2), silu * up);
                });
                multiply_all(team, phase++, me, layer.down, inner, inner_stride, n, add);
                if (l + 1 < m.layers) team.share(phase++, me, n, [&](int r) { norm(r, m.layer[l + 1].input_norm); });
            }
            if (wanted_count) {
                team.share(phase++, me, wanted_count, [&](int i) {
                    rms_norm<A, A>(x + size_t(wanted[i]) * m.hidden, m.norm, m.hidden, m.eps, (Element*)(normed + i * hidden_stride));
                });
                multiply_all(team, phase++, me, m.head, normed, hidden_stride, wanted_count, [&](int r, int o, int left, const float* sums) {
                    for (int i = 0; i < left; i += LANES)
                        A::store(logits + size_t(r) * m.vocabulary + o + i, first(left - i), _mm512_load_ps(sums + i) / all(m.logits_divisor));
                });
            }
        }
    }
};

// From [outputs, inputs] to tiles; gate_up: each tile takes 16 rows of the first half and the same of the second.
template <class W>
void pack(const typename W::Activation::Element* from, int outputs, int inputs, bool gate_up, char* to, float* scale) {
    const int words = inputs / W::Activation::PER_WORD, half = outputs / 2;
    const int tiles = gate_up ? (half + LANES - 1) / LANES : (outputs + TILE - 1) / TILE;
#pragma omp parallel for
    for (int tile = 0; tile < tiles; ++tile)
        for (int i = 0; i < TILE; ++i) {
            const int place = gate_up ? tile * LANES + i % LANES : tile * TILE + i;
            const bool there = place < (gate_up ? half : outputs);
            const auto* row = there ? from + size_t(gate_up && i >= LANES ? half + place : place) * inputs : nullptr;
            char* at = to + (size_t(tile) * words * 2 + i / LANES) * W::BYTES;
            const float factor = W::pack(row, words, at, i % LANES);
            if (scale && (there || gate_up)) scale[gate_up ? tile * TILE + i : place] = factor;
        }
}

// Does what `action` asks of the format's types.
template <class F>
bool with_format(int format, F&& action) {
    switch (format) {
        case 0: action(WeightsFp32()); return true;
#ifdef __AVX512BF16__
        case 1: action(WeightsBf16()); return true;
        case 2: action(WeightsInt8()); return true;
#endif
        default: return false;
    }
}

}  // namespace

extern "C" {

// Whether this processor and this build compute the format.
int ouroboros_supports(int format) {
    return with_format(format, [](auto) {});
}

// Bytes of a packed matrix.
int64_t ouroboros_packed_size(int format, int outputs, int inputs, int gate_up) {
    int64_t size = 0;
    with_format(format, [&](auto w) {
        using W = decltype(w);
        const int64_t tiles = gate_up ? (outputs / 2 + LANES - 1) / LANES : (outputs + TILE - 1) / TILE;
        size = tiles * (inputs / W::Activation::PER_WORD) * 2 * W::BYTES;
    });
    return size;
}

// `from`: of the rows' type. `to`: aligned to 64 bytes. `scale`: [packed outputs] for int8, else null.
void ouroboros_pack(int format, const void* from, int outputs, int inputs, int gate_up, void* to, float* scale) {
    with_format(format, [&](auto w) {
        using W = decltype(w);
        pack<W>((const typename W::Activation::Element*)from, outputs, inputs, gate_up, (char*)to, scale);
    });
}

// cos, sin: [positions, head_size / 2]. logits: [wanted, vocabulary] of the rows' type. 0, or 1 without memory.
int ouroboros_forward(const Model* model, const Sequence* sequences, int count, const int* tokens, const float* cos, const float* sin,
                      const int* wanted, int wanted_count, void* logits, int threads) {
    try {
        with_format(model->format, [&](auto w) {
            using W = decltype(w);
            Forward<W>(*model, sequences, count)
                .run(tokens, cos, sin, wanted, wanted_count, (typename W::Activation::Element*)logits, threads);
        });
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
}
