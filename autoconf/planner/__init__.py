"""The queries and their answers: number of GPUs, size of a job, type of GPU, and explanations."""
