"""Benchmarks: python -m tests.bench [NAME]; the figures go to RESULTS.md. No test depends on a clock."""
