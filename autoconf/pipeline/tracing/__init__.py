"""Trace the memory of real training code, and write it down as profiles."""
