"""Tasks: the loss and metrics of a batch; one file per task."""
