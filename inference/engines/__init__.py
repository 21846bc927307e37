"""Engines beside Celery that score a run's chunks: Spark. Only their own processes load their libraries."""
