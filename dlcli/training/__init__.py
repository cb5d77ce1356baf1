"""From a checked config to trained weights: start, session, parts, loop, checkpoints."""
