"""Watches a deployment: hits, signs of life, queues, and whether batch and real time still agree."""
