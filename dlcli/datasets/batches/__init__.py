"""Batches that a loop draws: sources, their order, their random numbers, and where they are kept."""
