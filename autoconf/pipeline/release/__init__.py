"""Train, evaluate and write predictor versions."""
