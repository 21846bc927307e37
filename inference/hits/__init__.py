"""Hit statistics: outcomes and latencies counted by the minute in Redis, one truth for every face."""

from inference.hits.counting import FALLBACKS, PARITY, MinuteCounts, ParityResult, counted
from inference.hits.recorder import HitRecorder
from inference.hits.statistics import HitCounts, Statistics
from inference.hits.windows import HitWindows, Point

__all__ = [
    "FALLBACKS",
    "PARITY",
    "HitCounts",
    "HitRecorder",
    "HitWindows",
    "MinuteCounts",
    "ParityResult",
    "Point",
    "Statistics",
    "counted",
]
