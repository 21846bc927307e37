"""The model records in Redis: what everyone but a worker knows of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import orjson

from inference.errors import BadInput, ModelUnavailable
from inference.models.load_marks import LoadMarks
from inference.models.record import MicroBatchRecord, VersionRecord
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import Block
from inference.store import CANARY, STABLE, Labels, Pointer, Table
from inference.store.versions import LABEL
from inference.stored_data import reading, record_from_json

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

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def versions(self, model: str) -> dict[int, VersionRecord]:
        """Return all records of a model by version, oldest version first; empty when none was inspected."""
        raw = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.model_record(model)))
        with reading(f"the records of model {model!r}"):
            return {int(version): VersionRecord.from_json(raw[version]) for version in sorted(raw, key=int)}

    def put(self, model: str, record: VersionRecord) -> None:
        """Store a record, replacing that of the same version."""
        self._client.hset(self._keys.model_record(model), str(record.version), orjson.dumps(record.to_json()))

    def get(self, model: str, version: int) -> VersionRecord:
        """Return the record of a version that is ready.

        Raises:
            ModelUnavailable: no worker has inspected that version, or it was refused.
        """
        raw = cast("bytes | None", self._client.hget(self._keys.model_record(model), str(version)))
        if raw is None:
            raise ModelUnavailable(f"version {version} of model {model!r} has not been loaded by any worker yet")
        record = VersionRecord.from_json(raw)
        if record.state == "refused":
            raise ModelUnavailable(f"version {version} of model {model!r} was refused: {record.error}")
        return record

    def micro_batch(self, model: str, version: int, device: str) -> MicroBatchRecord | None:
        """Return what was found for a version on a kind of device; None when nobody has searched yet."""
        raw = cast("bytes | None", self._client.hget(self._keys.micro_batches(model), f"{version}:{device}"))
        return record_from_json(MicroBatchRecord, raw, "the rows per call of a model") if raw else None

    def put_micro_batch(self, model: str, version: int, device: str, record: MicroBatchRecord) -> None:
        """Store what was found, replacing what stood there."""
        self._client.hset(self._keys.micro_batches(model), f"{version}:{device}", orjson.dumps(record))

    def load_marks(self, model: str) -> LoadMarks:
        """Return which loads of a model are going on, or were cut off."""
        return LoadMarks(self._client, self._keys.loads(model))

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
        return self._table(model).versions.activate(version, force=force)

    def labels(self, model: str) -> Labels:
        """Return which versions have names."""
        return self.pointer(model).labels

    def label(self, model: str, name: str, version: int, *, share: float | None = None) -> None:
        """Give a label to a version in place of the one that has it.

        `stable`: the version that answers; workers load it where they do not hold it, and activate it once all do.
        `canary`: the version on trial, never activated by itself; `share`, 0 to 1, of the entities is computed by it,
        None for none.

        Raises:
            BadInput: it is no name of a label, the share is none or not the canary's, or the canary would be the
                version that answers.
            ModelUnavailable: no worker has inspected that version, or it was refused.
        """
        if not LABEL.fullmatch(name):
            raise BadInput(f"{name!r} is no label: write 1 to 64 of A-Z, a-z, 0-9, _, . and -", field="label")
        if share is not None and name != CANARY:
            raise BadInput(f"only {CANARY} has a share of the entities: leave it out for {name}", field="share")
        if share is not None and not 0 <= share <= 1:
            raise BadInput(f"share {share:g} is not between 0 and 1: write 0.05 for 5 %", field="share")
        self.get(model, version)
        pointer = self.pointer(model)
        if name == CANARY and version in (pointer.active_version, pointer.labels.stable):
            raise BadInput(
                f"version {version} of model {model!r} answers already, so it cannot be its own {CANARY}: "
                f"label the version that is to answer {STABLE} first",
                field="version",
            )
        self._table(model).versions.label(name, version, share=share or 0.0)

    def remove_label(self, model: str, name: str) -> None:
        """Take a label away. A canary's answers are not read from then on.

        Raises:
            BadInput: no version has it.
        """
        if name not in self.labels(model).versions:
            raise BadInput(f"no version of model {model!r} is labelled {name}", field="label")
        self._table(model).versions.label(name, None)

    def ask_reload(self, model: str) -> int:
        """Ask all workers to look for new versions now; return the number of this wish."""
        key = self._keys.reload(model)
        with self._client.pipeline() as pipe:
            pipe.hincrby(key, _ASKED, 1)
            pipe.expire(key, RELOAD_REMEMBERED_S)
            number = pipe.execute()[0]
        return int(number)

    def reloads(self, model: str) -> Reloads:
        """Return the last wish for new versions, and who has fulfilled which."""
        raw = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.reload(model)))
        with reading(f"the wishes for new versions of model {model!r}"):
            numbers = {name.decode(): int(number) for name, number in raw.items()}
        return Reloads(numbers.pop(_ASKED, 0), numbers)

    def put_reloaded(self, model: str, worker: str, number: int) -> None:
        """Note that a worker has fulfilled the wish of that number."""
        key = self._keys.reload(model)
        with self._client.pipeline() as pipe:
            pipe.hset(key, worker, str(number))
            pipe.expire(key, RELOAD_REMEMBERED_S)
            pipe.execute()

    def pointer(self, model: str) -> Pointer:
        """Return the prediction table's pointer, in which the active version and the held ones stand."""
        return self._table(model).pointer()

    def stored_rows(self, model: str) -> Block:
        """Return some rows of a model's feature table by column; empty when none is stored."""
        kind = TableKind.FEATURES
        return Table(self._client, self._keys.table(kind, model), kind=kind, model=model).generations.some_rows()

    def _table(self, model: str) -> Table:
        kind = TableKind.PREDICTIONS
        return Table(self._client, self._keys.table(kind, model), kind=kind, model=model)
