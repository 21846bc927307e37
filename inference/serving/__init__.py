"""Serving: from a request's ids to answers. Pure asyncio; how a task reaches a worker is injected."""

from inference.serving.answers import Answer, Outputs
from inference.serving.model_path import Submit
from inference.serving.service import PredictionService

__all__ = ["Answer", "Outputs", "PredictionService", "Submit"]
