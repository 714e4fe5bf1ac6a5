// What Python hands over: plain structs and pointers, mirrored in models/kernels.py.
#pragma once
#include <cstdint>

extern "C" {
// Some outputs' weights as a GGUF file has them (stored/blocks.h).
struct Part {
    const char* weights;  // packed
    int kind, outputs;
};

struct Matrix {
    const char* weights;  // packed
    const float* bias;    // or null
    const float* scale;   // of each output; null but for int8 and w8a8
    int outputs, inputs;
    const Part* part;  // format 5, in place of weights: their outputs one behind the other
    int parts;
    int paired;  // two parts, gate and up: each tile has 16 outputs of both
};

struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm;  // the last two or null
    const float *attention_norm, *mlp_norm;  // of what they add; or null, in all layers
    int window;  // 0: none
    int rotary, rope;  // which of the forward's
};

struct Model {
    int format;  // of the weights; 0: fp32, 1: bf16, 2: int8, 3: int4, 4: w8a8, these with bf16 rows; 5: stored, with fp32 rows
    int vocabulary, hidden, inner, layers, heads, kv_heads, head_size;
    int gelu;  // the gate's activation is GELU by its tanh formula, not SiLU
    float eps, attention_scale, embedding_multiplier, residual_multiplier, logits_divisor;
    float attention_cap, logits_cap;  // x becomes cap * tanh(x / cap); 0: none
    const void* embedding;  // [vocabulary, hidden] as it is, or null: that of the head; format 5: a Part
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
