"""Compare composed memory with whole traces, real processes and GPU measurements."""
