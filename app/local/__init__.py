"""Runs a deployment on one machine: the supervisor of all processes, and an embedded Redis.

It starts programs by their command lines and imports nothing of them.
"""
