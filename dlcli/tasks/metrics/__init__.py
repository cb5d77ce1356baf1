"""Scores that tasks share."""
