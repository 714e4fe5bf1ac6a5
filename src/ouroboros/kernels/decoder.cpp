// A whole forward of the native decoder in one call: embeddings, layers, caches, logits of the wanted rows.
//
// Called through ctypes: plain structs and pointers, no header of Python or PyTorch.
#include "checks.h"
#include "forward.h"
#include "rows.h"

namespace {

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
            const float factor = W::pack(row, words, to + tile * W::tile_size(words), i);
            if (scale && (there || gate_up)) scale[gate_up ? tile * TILE + i : place] = factor;
        }
}

// Does what `action` asks of the format's types.
template <class F>
bool with_format(int format, F&& action) {
    switch (format) {
        case 0: action(WeightsFp32()); return true;
        case 1: action(WeightsBf16()); return true;
        case 2: action(WeightsInt8()); return true;
        case 3: action(WeightsInt4()); return true;
        case 4: action(WeightsW8A8()); return true;
        default: return false;
    }
}

template <class F>
void with_any_format(int format, F&& action) {
    if (format == 5) action(WeightsStored());
    else with_format(format, action);
}

}  // namespace

extern "C" {

// The set of instructions that this build has.
const char* ouroboros_instructions() { return INSTRUCTIONS; }

// Bytes of the structs that Python mirrors: Matrix, Layer, Model, Sequence.
void ouroboros_sizes(int64_t* bytes) {
    bytes[0] = sizeof(Matrix), bytes[1] = sizeof(Layer), bytes[2] = sizeof(Model), bytes[3] = sizeof(Sequence);
}

// What is wrong with a forward's arguments (checks.h); 0 if nothing is.
int ouroboros_check(const Model* model, const Sequence* sequences, int count, int positions, const int* wanted, int wanted_count,
                    const int* tiles, int tile_count) {
    return check_forward(*model, sequences, count, positions, wanted, wanted_count, tiles, tile_count);
}

// Bytes of a packed matrix.
int64_t ouroboros_packed_size(int format, int outputs, int inputs, int gate_up) {
    int64_t size = 0;
    with_format(format, [&](auto w) {
        using W = decltype(w);
        const int64_t tiles = gate_up ? (outputs / 2 + LANES - 1) / LANES : (outputs + TILE - 1) / TILE;
        size = tiles * W::tile_size(inputs / W::Activation::PER_WORD);
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

// The same of a matrix in a GGUF file's kind (stored/blocks.h): 0 bytes if there is no such kind or its blocks do not fill
// the inputs.
int64_t ouroboros_stored_size(int kind, int outputs, int inputs) {
    int64_t size = 0;
    stored::with_kind(kind, [&](auto k) {
        if (inputs % stored::block_inputs<decltype(k)>() == 0)
            size = int64_t(stored::panels(outputs)) * stored::panel_bytes<decltype(k)>(inputs);
    });
    return size;
}

// from: the file's rows, one behind the other.
void ouroboros_stored_pack(int kind, const void* from, int outputs, int inputs, void* to) {
    stored::with_kind(kind, [&](auto k) { stored::pack_rows<decltype(k)>((const uint8_t*)from, outputs, inputs, (char*)to); });
}

// rows: [count, inputs]; sums: [count, outputs], or for a pair [count, tiles * 32] in the order of its tiles.
void ouroboros_stored_product(const Matrix* matrix, const float* rows, int count, float* sums) {
    const Matrix& w = *matrix;
    const size_t inputs = w.inputs, plain = Rows::size(count, inputs * 4);
    std::vector<char> memory(plain + stored::RoundedRows::size(count, inputs) + 64);
    char* const at = memory.data() + (-uintptr_t(memory.data()) & 63);
    const stored::Inputs in = {{at, size_t(count)}, {(stored::Rounded*)(at + plain), size_t(count)}};
    for (int r = 0; r < count; ++r) {
        const float* const row = rows + r * inputs;
        in.plain.pieces<float>(r, 0, inputs, [&](float* to, size_t i, size_t size) { std::memcpy(to, row + i, size * 4); });
        in.rounded.round(in.plain, r, w.inputs);
    }
    const int tiles = stored::tiles(w), width = w.paired ? tiles * TILE : w.outputs;
    for (int t = 0; t < tiles; ++t)
        stored::tile(w, t, in, [&](int r, int o, int left, const float* from) {
            std::memcpy(sums + size_t(r) * width + o, from, left * 4);
        });
}

// tables: of each rope cos and sin, [positions, head_size / 2]. tiles: of 32 tokens whose logits are computed, or null for all.
// logits: [wanted, vocabulary] of the rows' type, those of other tiles left as they are. 0, or 1 without memory.
int ouroboros_forward(const Model* model, const Sequence* sequences, int count, const int* tokens, const float* const* tables,
                      const int* wanted, int wanted_count, const int* tiles, int tile_count, void* logits, int threads) {
    try {
        with_any_format(model->format, [&](auto w) {
            using W = decltype(w);
            Forward<W>(*model, sequences, count)
                .run(tokens, tables, {wanted, wanted_count}, {tiles, tile_count}, (typename W::Activation::Element*)logits, threads);
        });
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// Gumbel noise of tokens 0 ... count-1 at a position.
void ouroboros_noise(uint64_t seed, uint64_t position, int count, float* out) { gumbel_row(seed, position, count, out); }

// Of `size` tokens, at most 64, and their log-probabilities the `count` likeliest draws at a position, and their chances.
// Returns whether it can.
int ouroboros_guess(uint64_t seed, uint64_t position, float temperature, int size, const int* tokens, const float* logs, int count,
                     int* ids, float* chances) {
    if (size < 1 || size > MAX_GUESSES || count < 1 || count > size) return 0;
    guess(Noise(seed, position), temperature, size, tokens, logs, count, ids, chances);
    return 1;
}

// Rows of logits, `stride` elements apart, of fp32 (format 0) or bf16 (1). noise: a pointer for each row, or null.
// ids, scores: [rows, count], best first. sums: [rows], of exp(score - the best one's), or null. pairs: [asked, 2] of row
// and token; asked_scores: [asked]. Returns whether it can.
int ouroboros_choose(int format, const void* logits, int64_t stride, int rows, int size, float temperature, const float* const* noise,
                     int count, int* ids, float* scores, float* sums, int asked, const int* pairs, float* asked_scores) {
    if (rows < 0 || count < 1 || count > size || !within(pairs, asked, rows, size)) return 0;
    const auto rows_of = [&](auto a) {
        using A = decltype(a);
        const auto scored = [&](int row) {
            return Scores<A>{(const typename A::Element*)logits + row * stride, noise ? noise[row] : nullptr, temperature};
        };
        for (int row = 0; row < rows; ++row)
            choose(scored(row), size, count, ids + row * count, scores + row * count, sums ? sums + row : nullptr);
        for (int i = 0; i < asked; ++i) asked_scores[i] = lane0(scored(pairs[2 * i])(pairs[2 * i + 1], first(1)));
    };
    if (format == 0) return rows_of(Fp32()), 1;
    if (format == 1) return rows_of(Bf16()), 1;
    return 0;
}

// Moves rows path[0] < path[1] < ... behind `base` to base, base + 1, ... in each of `count` blocks of memory. Returns
// whether it can.
int ouroboros_keep(char* blocks, int64_t count, int64_t block_size, int64_t row_size, int64_t base, const int* path, int rows) {
    if (base < 0 || rows < 0 || !ascending(path, rows)) return 0;
    if (rows && (base + path[rows - 1] + 1) * row_size > block_size) return 0;
    for (int64_t block = 0; block < count; ++block) {
        char* const to = blocks + block * block_size + base * row_size;
        for (int row = 0; row < rows; ++row)
            if (path[row] != row) std::memcpy(to + row * row_size, to + path[row] * row_size, row_size);
    }
    return 1;
}
}
