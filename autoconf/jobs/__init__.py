"""What a job is, however it is written down."""
