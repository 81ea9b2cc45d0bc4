"""Make and evaluate predictor versions. Needs the extra ``build``; never imported at run time."""
