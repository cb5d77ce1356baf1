"""Is B better than A: what differs between runs, how much of it is noise, and whether a run repeats."""
