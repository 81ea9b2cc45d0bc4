"""Read jobs from files written for other tools, and patch their GPU counts."""
