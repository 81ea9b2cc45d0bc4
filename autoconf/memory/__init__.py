"""Peak memory of one GPU, in closed form over traced profiles. Needs numpy only."""
