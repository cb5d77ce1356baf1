"""What becomes of a sweep's trials, for those who look on: nothing here imports torch."""
