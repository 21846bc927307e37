"""Answers from a copy of the generation that serves, in a file of the caller's host: `forecache.LocalReader`."""

from inference.local_reader.store import LocalRows, LocalStore

__all__ = ["LocalRows", "LocalStore"]
