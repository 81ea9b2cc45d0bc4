"""Jobs whose allocations are replayed, one by one."""
