"""Engines beside Celery that score a run's chunks: Spark and Ray. Only their own processes load their libraries."""
