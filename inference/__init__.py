"""Nouns and rules of Forecache: settings, stores, features, models, runs, serving. No Celery, no web."""
