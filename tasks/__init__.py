"""The Celery application, its tasks, and the way to the broker."""
