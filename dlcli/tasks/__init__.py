"""Tasks: what a batch means, as loss and metrics; one file per task."""
