"""Tasks of the real-time queue."""
