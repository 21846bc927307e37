"""Engines that score a run's chunks elsewhere than in batch workers: Spark."""

from inference.engines.driving import run_driver

__all__ = ["run_driver"]
