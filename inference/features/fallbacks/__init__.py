"""Where features are looked for that the feature table lacks: databases and functions of the user's, in order."""

from inference.features.fallbacks.chain import FallbackChain, FallbackOutcome, open_fallback

__all__ = ["FallbackChain", "FallbackOutcome", "open_fallback"]
