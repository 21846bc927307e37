"""Watches a deployment: hits, heartbeats, queues, and whether batch and real time agree."""
