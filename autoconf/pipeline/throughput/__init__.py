"""Learn and evaluate throughput from measured runs."""
