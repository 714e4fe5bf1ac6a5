// Whether what Python hands over stays within its buffers: a wrong value would be read or written beyond them.
#pragma once
#include <cstdint>

#include "model.h"
#include "vectors.h"

enum Wrong { NOTHING, SHAPE, LENGTHS, CAPACITY, PARENTS, POSITIONS, WANTED, TILES };  // named in models/kernels.py

// positions: that the rotary tables hold.
static inline Wrong check_forward(const Model& m, const Sequence* sequences, int count, int positions, const int* wanted,
                                  int wanted_count, const int* tiles, int tile_count) {
    if (count < 0 || m.kv_heads < 1 || m.heads < 1 || m.heads % m.kv_heads || m.head_size < 1 || m.vocabulary < 1) return SHAPE;
    int64_t rows = 0;
    for (int s = 0; s < count; ++s) {
        const Sequence& q = sequences[s];
        if (q.length < 0 || q.catch_up < 0 || q.pending < 0 || q.nodes < q.pending || (q.catch_up && q.pending)) return LENGTHS;
        const int64_t end = int64_t(q.length) + q.catch_up + q.nodes;
        if (!q.cache || end > q.capacity) return CAPACITY;
        for (int node = 0; node < q.nodes; ++node)
            if (node ? q.parents[node] < 0 || q.parents[node] >= node : q.parents[node] != -1) return PARENTS;
        if (end > positions) return POSITIONS;
        rows += int64_t(q.catch_up) + q.nodes - q.pending;
    }
    if (wanted_count < 0) return WANTED;
    for (int i = 0; i < wanted_count; ++i)
        if (wanted[i] < 0 || wanted[i] >= rows) return WANTED;
    if (tile_count < 0) return TILES;
    for (int i = 0; i < tile_count; ++i)
        if (tiles[i] < 0 || tiles[i] >= (m.vocabulary + TILE - 1) / TILE) return TILES;
    return NOTHING;
}

static inline bool ascending(const int* path, int rows) {
    for (int i = 0; i < rows; ++i)
        if (path[i] < (i ? path[i - 1] + 1 : 0)) return false;
    return true;
}

static inline bool within(const int* pairs, int asked, int rows, int size) {
    for (int i = 0; i < asked; ++i)
        if (pairs[2 * i] < 0 || pairs[2 * i] >= rows || pairs[2 * i + 1] < 0 || pairs[2 * i + 1] >= size) return false;
    return true;
}
