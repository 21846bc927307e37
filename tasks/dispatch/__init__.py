"""Hands tasks to workers from an event loop, and brings their results back over one subscription."""

from tasks.dispatch.dispatcher import Dispatcher, open_dispatcher

__all__ = ["Dispatcher", "open_dispatcher"]
