"""Hold composed memory against whole traces, real processes and GPU measurements."""
