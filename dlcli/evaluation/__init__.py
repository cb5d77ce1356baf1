"""The worth of a result: scores, intervals, seeds, comparison and diagnosis."""
