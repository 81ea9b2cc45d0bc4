"""Trace the memory of real training code, and write memory profiles."""
