"""Record and replay the allocations of jobs."""
