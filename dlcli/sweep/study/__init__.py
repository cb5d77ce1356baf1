"""A search as plain data: its definition, its points, the records of its trials, and their ranking."""
