"""A Redis of one process that holds what an example says, as far as the code that reads records asks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from fuzzing.rule import bytes_of
from inference.errors import StoreUnavailable
from inference.redis.clients import Client


class Held:
    """What Redis answers. `keys`: key → text, or an object for a hash, or a list; sorted sets are lists too."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self._keys = keys

    def _value(self, key: Any, kind: type) -> Any:
        name = key.decode("latin-1") if isinstance(key, bytes) else key
        value = self._keys.get(name)
        is_text = not isinstance(value, dict | list)
        if value is None or isinstance(value, kind) or (kind is str and is_text):
            return value
        raise StoreUnavailable("WRONGTYPE Operation against a key holding the wrong kind of value")

    def time(self) -> tuple[int, int]:
        return 1_800_000_000, 5

    def now(self) -> float:
        return 1_800_000_000.000005

    def get(self, key: Any) -> bytes | None:
        value = self._value(key, str)
        return None if value is None else bytes_of(value)

    def mget(self, keys: Any) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def exists(self, key: Any) -> bool:
        return key in self._keys

    def hgetall(self, key: Any) -> dict[bytes, bytes]:
        return {bytes_of(name): bytes_of(value) for name, value in (self._value(key, dict) or {}).items()}

    def hget(self, key: Any, field: Any) -> bytes | None:
        return self.hgetall(key).get(field if isinstance(field, bytes) else field.encode())

    def hmget(self, key: Any, fields: Sequence[Any]) -> list[bytes | None]:
        found = self.hgetall(key)
        return [found.get(field if isinstance(field, bytes) else str(field).encode()) for field in fields]

    def hkeys(self, key: Any) -> list[bytes]:
        return list(self.hgetall(key))

    def hexists(self, key: Any, field: Any) -> bool:
        return self.hget(key, field) is not None

    def hsetnx(self, *_: Any) -> int:
        return 1

    def zrange(self, key: Any, *_: Any, withscores: bool = False, **__: Any) -> list[Any]:
        members = [bytes_of(member) for member in self._value(key, list) or ()]
        return [(member, 1_799_999_999.5) for member in members] if withscores else members

    def lrange(self, key: Any, *_: Any) -> list[bytes]:
        return [bytes_of(member) for member in self._value(key, list) or ()]

    def pfcount(self, *_: Any) -> int:
        return 1

    def run_script(self, name: str, *_: Any) -> Any:
        return [b"running", 1] if name == "begin_part" else 1  # that a part was begun, and that it ended

    def exchange(self, commands: Sequence[Any]) -> list[Any]:
        return [self.execute(command) for command in commands]

    send = exchange

    def pipeline(self, **_: Any) -> _Pipeline:
        return _Pipeline(self)

    def execute(self, command: Sequence[Any]) -> Any:
        """Answer a command as a plan spells it; all buckets of a generation hold what stands under `rows`."""
        name, key, *rest = command
        if name == "HMGET":
            parts = str(key).split(":")
            return self.hmget("rows" if parts[-3:-2] == ["g"] else key, rest)
        return {"HGET": lambda: self.hget(key, *rest), "MGET": lambda: self.mget([key, *rest])}[name]()


class _Pipeline:
    def __init__(self, held: Held) -> None:
        self._held = held
        self._asked: list[Callable[[], Any]] = []

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **more: self._asked.append(partial(getattr(self._held, name), *arguments, **more))

    def execute(self) -> list[Any]:
        return [asked() for asked in self._asked]


class Awaited:
    """The same for an event loop."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **more: Any) -> Any:
            return getattr(self._held, name)(*arguments, **more)

        return call


def client_of(held: Held) -> Client:
    """Return it as what asks for a client takes it."""
    return cast("Client", held)
