"""A released predictor version: its card, its integrity, and its AutoGluon predictor."""
