"""Fake kernels that allocate what the CUDA and Triton kernels allocate."""
