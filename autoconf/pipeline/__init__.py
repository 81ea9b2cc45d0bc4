"""How a predictor version is made and judged. Needs the extra ``build``; never imported at run time."""
