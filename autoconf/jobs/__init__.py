"""Fine-tuning jobs: their fields and stacks, and readers of tables, job files and commands."""
