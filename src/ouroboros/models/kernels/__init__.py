"""The decoder's forward in C++, for CPUs with AVX-512 (decoder.cpp). Python packs the weights and passes pointers."""
