"""Hit statistics: outcomes counted by the minute in Redis, one truth for every face."""

from inference.hits.recorder import HitRecorder
from inference.hits.windows import HitCounts, HitWindows

__all__ = ["HitCounts", "HitRecorder", "HitWindows"]
