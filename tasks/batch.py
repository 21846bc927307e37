"""Tasks of the batch queue."""
