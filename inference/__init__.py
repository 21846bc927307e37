"""The core of Forecache: settings, stores, features, models, runs, serving. Imports no Celery and no web framework."""
