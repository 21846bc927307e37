"""Sends tasks to workers from an event loop, and receives their results over one subscription."""

from tasks.dispatch.dispatcher import Dispatcher, load_dispatcher, open_dispatcher

__all__ = ["Dispatcher", "load_dispatcher", "open_dispatcher"]
