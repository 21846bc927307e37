"""Serving: from a request's ids to answers. Pure asyncio; how a task reaches a worker is injected."""

from inference.serving.answers import Answer, Outputs
from inference.serving.service import PredictionService
from inference.serving.worker_client import Submit

__all__ = ["Answer", "Outputs", "PredictionService", "Submit"]
