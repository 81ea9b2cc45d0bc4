"""Predictor versions: their cards, the integrity of their files, and their AutoGluon predictors."""
