"""Processes that run tasks: pools, GPU set-up, model load and warm-up."""
