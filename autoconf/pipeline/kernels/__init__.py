"""Fake kernels that allocate the same memory as the CUDA and Triton kernels."""
