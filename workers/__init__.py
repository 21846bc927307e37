"""The worker processes: one file for each, and what they share."""
