"""Where kombu's Redis transport keeps the messages of a queue: a list for each level of priority."""

from __future__ import annotations

#: the levels that there are; the lowest goes first
LEVELS = (0, 3, 6, 9)
#: between a queue's name and its level in the name of a list; level 0 has neither
_SEPARATOR = "\x06\x16"


def list_key(key_prefix: str, queue_name: str, level: int) -> str:
    """Return the key of one list. `key_prefix`, `queue_name`: as the transport knows them, the colon included."""
    return f"{key_prefix}{queue_name}{_SEPARATOR}{level}" if level else f"{key_prefix}{queue_name}"
