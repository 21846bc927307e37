"""Sends tasks to workers from an event loop, and receives their results over one subscription."""

from tasks.dispatch.dispatcher import Dispatcher, open_dispatcher

__all__ = ["Dispatcher", "open_dispatcher"]
