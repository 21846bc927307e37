"""The worker processes: one file for each, and what they share."""

from forecache_command import prefer_own_packages

# before the first import of `tasks`, which a user's `tasks.py` may hide
prefer_own_packages()
