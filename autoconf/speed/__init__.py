"""Speed of a training step: work in closed form, the time that a GPU needs for it, and a learned correction."""
