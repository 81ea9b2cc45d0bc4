"""Every query and its answer: how many GPUs, how large a job, which GPU type, and why."""
