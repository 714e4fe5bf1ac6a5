// A forward's phases. Between the layers rows are fp32; what enters a matrix product, and the cache, is of the model's type.
//
// Threads go through the phases of a layer together (team.h). Every number of a row is summed in an order of its own
// that knows nothing of the other rows, so that a forward over many rows gives each of them the bits of a forward alone.
#pragma once
#include "matmul.h"
#include "plan.h"
#include "scratch.h"
#include "stored/matrix.h"
#include "team.h"

// Some of a number of things: those listed, or with a null list all.
struct Some {
    const int* list;
    int count;

    int of(int all) const { return list ? count : all; }
    int operator[](int i) const { return list ? list[i] : i; }
};

constexpr int FEW = 4;        // rows that each thread norms for itself
constexpr int FEW_ROUND = 16;  // and that it rounds

template <class W>
struct Forward : Plan {
    using A = typename W::Activation;
    using Element = typename A::Element;
    using Input = typename A::Row;  // of a product
    using Plan::Plan;

    Rows x, qkv, added;               // fp32; added: what a block adds, if that is normed
    Rows normed, attended, inner;     // inputs of products; normed: the first thread's, if each has its own
    char* rounded;                    // rows that are rounded for a product
    bool each_rounds;                 // each thread for itself
    Element* queries;                 // [rows, heads, head size]
    size_t normed_size, rounded_size, scratch_size;  // of one thread
    char* scratch;

    Element* cache(const Sequence& s, int layer, int values, int head) const {
        return (Element*)s.cache + ((size_t(layer) * 2 + values) * m.kv_heads + head) * s.capacity * m.head_size;
    }

    bool norms_added() const { return m.layers && m.layer[0].attention_norm; }

    void place(int wanted, int threads) {
        const size_t n = rows.size(), most = std::max<size_t>(n, wanted), e = sizeof(typename Input::Element);
        const size_t heads = size_t(m.heads) * m.head_size, all = heads + 2 * size_t(m.kv_heads) * m.head_size;
        const size_t packed = round64(size_t(m.head_size) * 4 * KEYS);
        const size_t scores = round64(MAX_QUERIES * AttentionScratch::span_stride(span) * 4 + 64);
        scratch_size = packed + scores + MAX_QUERIES * AttentionScratch::out_stride(m.head_size) * 4;
        normed_size = Rows::size(most, m.hidden * e);
        each_rounds = most <= FEW_ROUND;
        rounded_size = W::Head::ROUNDS_ROWS ? Rows::size(most, std::max({size_t(m.hidden), heads, size_t(m.inner)}) * e) : 0;
        const size_t sizes[] = {Rows::size(n, m.hidden * 4), Rows::size(n, all * 4), normed_size * (most <= FEW ? threads : 1),
                                Rows::size(n, heads * e), Rows::size(n, m.inner * e),
                                round64(n * heads * sizeof(Element)), scratch_size * threads,
                                rounded_size * (each_rounds ? threads : 1), norms_added() ? Rows::size(n, m.hidden * 4) : 0};
        size_t total = 0;
        for (size_t size : sizes) total += size;
        char* at = workspace(total);
        char* parts[9];
        for (int i = 0; i < 9; at += sizes[i++]) parts[i] = at;
        x = {parts[0], n}, qkv = {parts[1], n}, normed = {parts[2], n}, attended = {parts[3], n}, inner = {parts[4], n};
        queries = (Element*)parts[5], scratch = parts[6], rounded = parts[7], added = {parts[8], n};
    }

    // The rows that a product of this format takes.
    template <class Format>
    Rows product_rows(Team& team, int& phase, int thread, int inputs, const Rows& rows) {
        if constexpr (Format::ROUNDS_ROWS) {
            const int count = int(rows.count);
            const Rows to = {rounded + (each_rounds ? thread * rounded_size : 0), rows.count};
            if (each_rounds)
                for (int r = 0; r < count; ++r) Format::round(rows, to, r, inputs);
            else
                team.share(phase++, thread, count, [&](int r) { Format::round(rows, to, r, inputs); });
            return to;
        }
        return rows;
    }

    // done(row, first output, how many, sums) for every row and tile of 32 outputs; sums have scale and bias.
    template <class Format, class F>
    void multiply_all(Team& team, int& phase, int thread, const Matrix& w, const Rows& rows, F&& done, Some tiles = {}) {
        if constexpr (std::is_same_v<Format, WeightsStored>) return multiply_stored(team, phase, thread, w, rows, done, tiles);
        else multiply_packed<Format>(team, phase, thread, w, rows, done, tiles);
    }

    template <class Format, class F>
    void multiply_packed(Team& team, int& phase, int thread, const Matrix& w, const Rows& rows, F&& done, Some tiles) {
        const int words = w.inputs / A::PER_WORD;
        const Rows in = product_rows<Format>(team, phase, thread, w.inputs, rows);
        const size_t size = Format::tile_size(words);
        team.share(phase++, thread, tiles.of((w.outputs + TILE - 1) / TILE), [&](int item) {
            const int tile = tiles[item];
            const int o = tile * TILE, left = std::min(TILE, w.outputs - o);
            Matmul<Format>::tile(w.weights + tile * size, in, words, [&](int r, float* sums) {
                for (int i = 0; i < TILE; i += LANES) {
                    const Mask some = first(left - i);
                    Vec v = load_line(sums + i);
                    if (w.scale) v = v * Fp32::load(w.scale + o + i, some);
                    if (w.bias) v = v + Fp32::load(w.bias + o + i, some);
                    store_line(sums + i, v);
                }
                done(r, o, left, sums);
            });
        });
    }

    // The same of a matrix as a file holds it.
    template <class F>
    void multiply_stored(Team& team, int& phase, int thread, const Matrix& w, const Rows& rows, F&& done, Some tiles) {
        char* const at = rounded + (each_rounds ? thread * rounded_size : 0);
        const stored::Inputs in = {rows, {(stored::Rounded*)at, rows.count}};
        const bool whole = std::any_of(w.part, w.part + w.parts, [](const Part& part) { return !stored::plain(part.kind); });
        if (whole && each_rounds)
            for (int r = 0; r < int(rows.count); ++r) in.rounded.round(rows, r, w.inputs);
        else if (whole)
            team.share(phase++, thread, int(rows.count), [&](int r) { in.rounded.round(rows, r, w.inputs); });
        team.share(phase++, thread, tiles.of(stored::tiles(w)), [&](int item) {
            stored::tile(w, tiles[item], in, [&](int r, int o, int left, float* sums) {
                for (int i = 0; w.bias && i < TILE; i += LANES)
                    store_line(sums + i, load_line(sums + i) + Fp32::load(w.bias + o + i, first(left - i)));
                done(r, o, left, sums);
            });
        });
    }

    void embed(int token, int r) const {
        const int o = std::min(std::max(token, 0), m.vocabulary - 1);
        if constexpr (std::is_same_v<W, WeightsStored>) {
            const Part& part = m.embedding ? *(const Part*)m.embedding : *m.head.part;
            stored::row(part, o, m.hidden, [&](int i, float number) { *x.at<float>(r, i) = number * m.embedding_multiplier; });
        } else if (m.embedding) {
            const Element* row = (const Element*)m.embedding + size_t(o) * m.hidden;
            for (int i = 0; i < m.hidden; i += LANES) {
                const Mask some = first(m.hidden - i);
                Fp32::store(x.at<float>(r, i), some, A::load(row + i, some) * all(m.embedding_multiplier));
            }
        } else {
            using Head = typename W::Head;
            const char* tile = m.head.weights + o / TILE * Head::tile_size(m.head.inputs / A::PER_WORD);
            const float factor = m.embedding_multiplier * (m.head.scale ? m.head.scale[o] : 1.f);
            for (int i = 0; i < m.hidden; ++i) *x.at<float>(r, i) = Head::element(tile, o % TILE, i) * factor;
        }
    }

    // Norms, turns and stores one head of a row: of its queries, its keys or its values.
    void turn(int r, int l, int h, const float* const* tables, int thread) {
        const Layer& layer = m.layer[l];
        const Row& row = rows[r];
        const float *cos = tables[2 * layer.rope], *sin = tables[2 * layer.rope + 1];
        const int head = m.head_size, half = head / 2;
        float* v = (float*)(scratch + thread * scratch_size);
        qkv.pieces<float>(r, size_t(h) * head, size_t(h + 1) * head,
                          [&](const float* from, size_t i, size_t count) { std::memcpy(v + i, from, count * sizeof(float)); });
        const bool query = h < m.heads, key = !query && h < m.heads + m.kv_heads;
        const float* norm = query ? layer.q_norm : key ? layer.k_norm : nullptr;
        const auto own = [&](int i) { return v + i; };
        if (norm) rms_norm<Fp32>(own, norm, head, m.eps, own);
        if ((query || key) && layer.rotary)
            for (int i = 0; i < half; i += LANES) {
                const Mask some = first(half - i);
                const Vec a = Fp32::load(v + i, some), b = Fp32::load(v + half + i, some);
                const Vec c = Fp32::load(cos + size_t(row.position) * half + i, some);
                const Vec s = Fp32::load(sin + size_t(row.position) * half + i, some);
                Fp32::store(v + i, some, a * c - b * s);
                Fp32::store(v + half + i, some, b * c + a * s);
            }
        Element* to = query ? queries + (size_t(r) * m.heads + h) * head
                            : cache(sequences[row.sequence], l, !key, (h - m.heads) % m.kv_heads) + size_t(row.cache_row) * head;
        for (int i = 0; i < head; i += LANES) A::store(to + i, first(head - i), Fp32::load(v + i, first(head - i)));
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
        int row[MAX_QUERIES], query[MAX_QUERIES];
        for (int i = 0; i < item.count; ++i) {
            row[i] = first_row[item.sequence] + (item.begin + i) / group;
            query[i] = item.head * group + (item.begin + i) % group;
            seen[i] = rows[row[i]].within(m.layer[l].window);
            seen_of[i] = &seen[i];
            words[i] = (const uint32_t*)(queries + (size_t(row[i]) * m.heads + query[i]) * head);
        }
        const Sequence& s = sequences[item.sequence];
        Cached<A> next;
        if (item.head + 1 < m.kv_heads) next = {cache(s, l, 0, item.head + 1), head};
        attend<A>({cache(s, l, 0, item.head), head}, {cache(s, l, 1, item.head), head}, next, words, seen_of, item.count,
                  m.attention_scale, m.attention_cap, mine);
        for (int i = 0; i < item.count; ++i) {
            const float* from = mine.out + i * AttentionScratch::out_stride(head);
            const size_t begin = size_t(query[i]) * head;
            attended.pieces<typename Input::Element>(row[i], begin, begin + head, [&](auto* to, size_t at, size_t count) {
                for (size_t d = 0; d < count; d += LANES)
                    Input::store(to + d, first(int(count - d)), load(from + at + d));
            });
        }
    }

    // tiles: of the output matrix.
    void run(const int* tokens, const float* const* tables, Some wanted, Some tiles, Element* logits, int threads) {
        place(wanted.count, threads);
        const int n = int(rows.size());
        // Where an item has all rows of its head, who attends also turns; else threads would wait for each other once more.
        const int most = std::max(n, wanted.count);
        const bool few = most <= FEW, whole = int(items.size()) == m.kv_heads;
        const auto add_to = [&](float* to, const float* from, int count) {
            for (int i = 0; i < count; i += LANES) {
                const Mask some = first(count - i);
                Fp32::store(to + i, some, Fp32::load(to + i, some) + Fp32::load(from + i, some) * all(m.residual_multiplier));
            }
        };
        const auto add = [&](int r, int o, int left, const float* sums) {
            if (norms_added()) std::memcpy(added.at<float>(r, o), sums, left * sizeof(float));
            else add_to(x.at<float>(r, o), sums, left);
        };
        Team team(threads, 14 * m.layers + 4);
#pragma omp parallel num_threads(threads)
        {
#pragma omp single
            team.resize(omp_get_num_threads());
            const int me = omp_get_thread_num();
            int phase = 0;
            // Norms of a few rows each thread makes for itself, which is faster than to wait for one that makes them for all.
            // One that comes late may read what has changed since: then it has no item left that needs its norms.
            const auto norms = [&](int count, const int* which, const float* weight) {
                const Rows to = {normed.data + (few ? me * normed_size : 0), size_t(count)};
                const auto one = [&](int i) {
                    const int r = which ? which[i] : i;
                    const auto from = [&](int at) { return x.at<float>(r, at); };
                    rms_norm<Input>(from, weight, m.hidden, m.eps, [&](int at) { return to.at<typename Input::Element>(i, at); });
                };
                if (few)
                    for (int i = 0; i < count; ++i) one(i);
                else
                    team.share(phase++, me, count, one);
                return to;
            };
            const auto add_normed = [&](const float* weight) {
                if (!weight) return;
                team.share(phase++, me, n, [&](int r) {
                    const auto own = [&](int at) { return added.at<float>(r, at); };
                    rms_norm<Fp32>(own, weight, m.hidden, m.eps, own);
                    x.pieces<float>(r, 0, m.hidden, [&](float* to, size_t at, size_t count) { add_to(to, own(int(at)), int(count)); });
                });
            };
            team.share(phase++, me, n, [&](int r) { embed(tokens[r], r); });
            for (int l = 0; l < m.layers; ++l) {
                const Layer& layer = m.layer[l];
                const Rows in = norms(n, nullptr, layer.input_norm);
                multiply_all<W>(team, phase, me, layer.qkv, in, [&](int r, int o, int left, const float* sums) {
                    for (int i = 0; i < left; i += LANES)
                        Fp32::store(qkv.at<float>(r, o + i), first(left - i), load_line(sums + i));
                });
                if (!whole)
                    team.share(phase++, me, n, [&](int r) {
                        for (int h = 0; h < m.heads + 2 * m.kv_heads; ++h) turn(r, l, h, tables, me);
                    });
                team.share(phase++, me, int(items.size()), [&](int i) {
                    for (int r = 0; whole && r < n; ++r) {
                        for (int h = 0; h < group; ++h) turn(r, l, i * group + h, tables, me);
                        for (int h : {m.heads + i, m.heads + m.kv_heads + i}) turn(r, l, h, tables, me);
                    }
                    attend_item(items[i], l, me);
                });
                multiply_all<W>(team, phase, me, layer.out, attended, add);
                add_normed(layer.attention_norm);
                const Rows again = norms(n, nullptr, layer.post_norm);
                // A tile's outputs are 16 of the gate and the same 16 of up.
                multiply_all<W>(team, phase, me, layer.gate_up, again, [&](int r, int o, int, const float* sums) {
                    const Vec gate = load_line(sums), up = load_line(sums + LANES);
                    // both are the gate times a sigmoid: of itself, or of 2 sqrt(2 / pi) (gate + 0.044715 gate^3)
                    const Vec inside = m.gelu ? gate * fma(gate * gate, all(0.0713548162726f), all(1.5957691216057308f)) : gate;
                    const Vec activated = gate / (all(1.f) + exp16(zero() - inside));
                    Input::store(inner.at<typename Input::Element>(r, o / 2), first(m.inner - o / 2), activated * up);
                });
                multiply_all<W>(team, phase, me, layer.down, inner, add);
                add_normed(layer.mlp_norm);
            }
            if (wanted.count) {
                const Rows in = norms(wanted.count, wanted.list, m.norm);
                const auto store = [&](int r, int o, int left, const float* sums) {
                    for (int i = 0; i < left; i += LANES) {
                        const Vec v = load_line(sums + i) / all(m.logits_divisor);
                        Element* to = logits + size_t(r) * m.vocabulary + o + i;
                        A::store(to, first(left - i), m.logits_cap != 0 ? capped(v, m.logits_cap) : v);
                    }
                };
                multiply_all<typename W::Head>(team, phase, me, m.head, in, store, tiles);
            }
        }
    }
};
