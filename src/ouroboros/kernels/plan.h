// The rows of a forward: where each stands in its text and in the cache, what it sees, and how attention divides them.
#pragma once
#include <algorithm>
#include <vector>

#include "attention.h"
#include "model.h"

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

struct Plan {
    struct Item {
        int sequence, head, begin, count;  // queries of one key head: row * group + place in the group
    };

    const Model& m;
    const Sequence* sequences;
    std::vector<Row> rows;
    std::vector<int> paths, first_row;
    std::vector<Item> items;
    int group;     // query heads of a key head
    int span = 0;  // the most cache rows that one row sees

    Plan(const Model& model, const Sequence* sequences, int count) : m(model), sequences(sequences), group(m.heads / m.kv_heads) {
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
};
