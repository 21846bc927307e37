"""Answers requests: from entity ids to predictions. Pure asyncio; the caller passes in how to reach workers."""

from inference.serving.answers import Answer, ModelCall, Outputs
from inference.serving.service import PredictionService
from inference.serving.worker_client import Submit

__all__ = ["Answer", "ModelCall", "Outputs", "PredictionService", "Submit"]
