"""Verbs that cross the broker: the Celery application and its tasks."""
