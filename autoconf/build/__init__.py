"""How a predictor version is made: tracing, virtual runs, training, evaluation. Needs the extra ``[build]``."""
