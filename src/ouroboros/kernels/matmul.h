// Rows times a packed weight matrix.
//
// A tile is read from memory once and used for all rows, past the caches, which keep what is used again. Each (row, output)
// is one sum over the inputs in their order, in fp32: its bits do not depend on the number of rows, on its place among them,
// or on the threads.
#pragma once
#include "int4.h"
#include "w8a8.h"
#include "weights.h"
#ifdef KERNELS_AVX512
#include "avx512/multiply.h"
#else
#include "avx2/multiply.h"
#endif
