"""Learn the safety margin from real runs."""
