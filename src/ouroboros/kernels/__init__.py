"""C++ for CPUs with AVX-512 (with bf16 and vnni) or AVX2 (with FMA).

A decoder's forward (decoder.cpp; models/kernels.py packs its weights), and what is drawn from rows of logits (rows.h;
sampling/rows.py).
"""
