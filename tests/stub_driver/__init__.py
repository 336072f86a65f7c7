"""Triton's real JIT and launcher for compute capability 9.0 on a stand-in for libcuda.so.1, without a GPU."""
