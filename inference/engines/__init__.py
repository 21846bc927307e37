"""Engines beside Celery that score a run's chunks. Only their own processes load them."""
