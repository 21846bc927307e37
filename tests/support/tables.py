"""Tables over a real Redis whose time a test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from inference.redis.clients import WORKER, Client, options_of
from inference.redis.keys import Keys, TableKind
from inference.store import Table

_names = count()


class TimedClient(Client):
    """A client to which TIME answers what `clock` says. Redis itself forgets keys by the real time."""

    clock: Callable[[], float]

    def now(self) -> float:
        return self.clock()

    def send(self, commands: Sequence[tuple[Any, ...]], *, atomic: bool = False) -> list[Any]:
        replies = super().send(commands, atomic=atomic)
        now = self.clock()
        time = (int(now), int(now % 1 * 1e6))
        return [time if command[0] == "TIME" else reply for command, reply in zip(commands, replies, strict=True)]


def timed_client(url: str, clock: Callable[[], float]) -> TimedClient:
    client = TimedClient.from_url(url, **options_of(WORKER))
    client.clock = clock
    return client


def new_table(client: Client, kind: TableKind = TableKind.FEATURES) -> Table:
    """Return an empty table of its own."""
    name = f"m{next(_names)}"
    return Table(client, Keys("t").table(kind, name), kind=kind, model=name)
