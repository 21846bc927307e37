"""The model records in Redis: what everyone but a worker knows of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
import redis

from inference.errors import ModelUnavailable, StoreUnavailable
from inference.keys import Keys, TableKind
from inference.models.record import MicroBatchRecord, VersionRecord
from inference.store import Pointer, RedisTable

#: an hour after the last wish nobody waits for it any more
RELOAD_REMEMBERED_S = 3600
#: no worker's name: those hold a host and a process id
_ASKED = "asked"


@dataclass(frozen=True)
class Reloads:
    """Wishes for new versions: the number of the last one, and by worker that of the last it has fulfilled."""

    asked: int
    done: Mapping[str, int]


class ModelRegistry:
    """Version records, and which version is active. The latter stands in the prediction table's pointer.

    Every method raises StoreUnavailable when Redis does not answer in time.
    """

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def versions(self, model: str) -> dict[int, VersionRecord]:
        """Return all records of a model by version, oldest version first; empty when none was inspected."""
        try:
            raw = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.model_record(model)))
        except redis.RedisError as error:
            raise _unavailable(error) from error
        return {int(version): _decode(raw[version]) for version in sorted(raw, key=int)}

    def put(self, model: str, record: VersionRecord) -> None:
        """Store a record, replacing that of the same version."""
        try:
            self._client.hset(self._keys.model_record(model), str(record.version), orjson.dumps(record.to_json()))
        except redis.RedisError as error:
            raise _unavailable(error) from error

    def get(self, model: str, version: int) -> VersionRecord:
        """Return the record of a version that is ready.

        Raises:
            ModelUnavailable: no worker has inspected that version, or it was refused.
        """
        try:
            raw = cast("bytes | None", self._client.hget(self._keys.model_record(model), str(version)))
        except redis.RedisError as error:
            raise _unavailable(error) from error
        if raw is None:
            raise ModelUnavailable(f"version {version} of model {model!r} has not been loaded by any worker yet")
        record = _decode(raw)
        if record.state == "refused":
            raise ModelUnavailable(f"version {version} of model {model!r} was refused: {record.error}")
        return record

    def micro_batch(self, model: str, version: int, device: str) -> MicroBatchRecord | None:
        """Return what was found for a version on a kind of device; None when nobody has searched yet."""
        try:
            raw = cast("bytes | None", self._client.hget(self._keys.micro_batches(model), f"{version}:{device}"))
        except redis.RedisError as error:
            raise _unavailable(error) from error
        return MicroBatchRecord(**orjson.loads(raw)) if raw else None

    def put_micro_batch(self, model: str, version: int, device: str, record: MicroBatchRecord) -> None:
        """Store what was found, replacing what stood there."""
        try:
            self._client.hset(self._keys.micro_batches(model), f"{version}:{device}", orjson.dumps(record))
        except redis.RedisError as error:
            raise _unavailable(error) from error

    def active_version(self, model: str) -> int | None:
        """Return the version that answers, None before the first activation."""
        return self.pointer(model).active_version

    def active(self, model: str) -> VersionRecord:
        """Return the record of the version that answers.

        Raises:
            ModelUnavailable: none has been activated yet.
        """
        version = self.active_version(model)
        if version is None:
            raise ModelUnavailable(f"model {model!r} has no active version yet: a worker must load it first")
        return self.get(model, version)

    def activate(self, model: str, version: int, *, force: bool = False) -> bool:
        """Make a version the one that answers; False when it is older than the active one, or held.

        `force` also goes backwards, and releases a hold.
        """
        return self._table(model).activate(version, force=force)

    def ask_reload(self, model: str) -> int:
        """Ask all workers to look for new versions now; return the number of this wish."""
        key = self._keys.reload(model)
        try:
            with self._client.pipeline() as pipe:
                pipe.hincrby(key, _ASKED, 1)
                pipe.expire(key, RELOAD_REMEMBERED_S)
                number = pipe.execute()[0]
        except redis.RedisError as error:
            raise _unavailable(error) from error
        return int(number)

    def reloads(self, model: str) -> Reloads:
        """Return the last wish for new versions, and who has fulfilled which."""
        try:
            raw = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.reload(model)))
        except redis.RedisError as error:
            raise _unavailable(error) from error
        numbers = {name.decode(): int(number) for name, number in raw.items()}
        return Reloads(numbers.pop(_ASKED, 0), numbers)

    def put_reloaded(self, model: str, worker: str, number: int) -> None:
        """Note that a worker has fulfilled the wish of that number."""
        key = self._keys.reload(model)
        try:
            with self._client.pipeline() as pipe:
                pipe.hset(key, worker, str(number))
                pipe.expire(key, RELOAD_REMEMBERED_S)
                pipe.execute()
        except redis.RedisError as error:
            raise _unavailable(error) from error

    def pointer(self, model: str) -> Pointer:
        """Return the prediction table's pointer, in which the active version and the held ones stand."""
        return self._table(model).pointer()

    def _table(self, model: str) -> RedisTable:
        kind = TableKind.PREDICTIONS
        return RedisTable(self._client, self._keys.table(kind, model), kind=kind, model=model)


def _decode(raw: bytes) -> VersionRecord:
    data: dict[str, Any] = orjson.loads(raw)
    return VersionRecord.from_json(data)


def _unavailable(error: redis.RedisError) -> StoreUnavailable:
    return StoreUnavailable(f"the cache Redis did not answer: {error}")
