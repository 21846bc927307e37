"""The records of models in Redis: versions, the active one, labels, loads under way. All processes read them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import orjson
import redis
from pydantic import FiniteFloat, PlainValidator

from inference.errors import BadInput, ContractError, ModelUnavailable, StoreUnavailable
from inference.features import FeatureContract
from inference.keys import Keys, TableKind
from inference.schema import Block, Signature
from inference.store import CANARY, STABLE, Labels, Pointer, RedisTable
from inference.store.labels import LABEL
from inference.store.outages import outage_is_an_error
from inference.stored_data import count_in, reading, record_from_json

VersionState = Literal["ready", "refused"]
_WHAT = "marking the load of a model"
#: a version that nobody has loaded for so long may crash one more worker
_REMEMBERED_S = 30 * 86_400
#: an hour after the last wish nobody waits for it any more
RELOAD_REMEMBERED_S = 3600
#: no worker's name: those hold a host and a process id
_ASKED = "asked"


@dataclass(frozen=True)
class MicroBatchRecord:
    """The rows per call that were found best for a version, as its `fingerprint` names it, on one kind of device."""

    rows: int
    fingerprint: str


def _contract(told: Any) -> FeatureContract:
    try:
        return FeatureContract.from_json(told) if told != {"features": []} else FeatureContract(())
    except ContractError as error:
        raise ValueError(error.message) from error


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """One version: `ready` after a good warm-up, or `refused` with the `error` that says why.

    The signature's outputs are the fields of its predictions. `fingerprint` changes when any file of the
    version does. `format`: as `inference.models.formats` names it. A refused version has an empty signature and
    contract, and no format. `inspected_at`: epoch seconds. `unproven`: why nothing shows yet that a ready version
    answers, so that it takes no other's place; None when it has answered rows. `notice`: what is odd about a version
    that may answer nevertheless. The contract of a model whose features nobody has listed is empty: it takes tensors
    only.
    """

    version: int
    state: VersionState
    signature: Signature
    contract: Annotated[FeatureContract, PlainValidator(_contract)]
    fingerprint: str
    inspected_at: FiniteFloat
    error: str | None = None
    format: str = ""
    unproven: str | None = None
    notice: str | None = None

    @property
    def is_proved(self) -> bool:
        """Whether it may take the place of the version that answers."""
        return self.state == "ready" and self.unproven is None

    @property
    def remark(self) -> str | None:
        """What is wrong with it, in one line: why it was refused, why it waits, what is odd; None for nothing."""
        return self.error or self.unproven or self.notice

    @property
    def contract_hash(self) -> str:
        """The feature contract's hash; "" for a refused version."""
        return self.contract.hash if self.state == "ready" else ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "version": self.version,
            "state": self.state,
            "signature": self.signature.to_json(),
            "contract": self.contract.to_json(),
            "contract_hash": self.contract_hash,
            "fingerprint": self.fingerprint,
            "inspected_at": self.inspected_at,
            "error": self.error,
            "format": self.format,
            "unproven": self.unproven,
            "notice": self.notice,
        }

    @classmethod
    def from_json(cls, text: bytes | str) -> VersionRecord:
        """Rebuild from the JSON of `to_json`.

        Raises:
            Unreadable: it is none.
        """
        return record_from_json(cls, text, "the record of a model's version")

    @classmethod
    def refused(cls, version: int, error: str, *, inspected_at: float, fingerprint: str = "") -> VersionRecord:
        """Return the record of a version that cannot be served."""
        return cls(
            version=version,
            state="refused",
            signature=Signature((), ()),
            contract=FeatureContract(()),
            fingerprint=fingerprint,
            inspected_at=inspected_at,
            error=error,
        )


class LoadMarks:
    """The marks of one model, a hash in Redis: version, host and process id → loads that began and did not end.

    Every method raises StoreUnavailable when Redis does not answer in time.
    """

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._client = client
        self._key = key
        self._host = socket.gethostname()

    def cut_off(self, version: int) -> int:
        """Return how many loads of that version the end of a process of this host cut off, since one last came to its
        end. Not to be asked during a load.
        """
        # in a container, each process may have the id of the one before
        return sum(count for pid, count in self._loads(version).items() if pid == os.getpid() or not _is_alive(pid))

    @contextmanager
    def of_load(self, version: int) -> Iterator[None]:
        """Mark a load while the block runs. When it ends, whatever comes of it, earlier marks of this host go too."""
        mark = self._field(version, os.getpid())
        with outage_is_an_error(_WHAT), self._client.pipeline() as pipe:
            pipe.hincrby(self._key, mark)
            pipe.expire(self._key, _REMEMBERED_S)
            pipe.execute()
        try:
            yield
        finally:
            gone = [self._field(version, pid) for pid in self._loads(version) if not _is_alive(pid)]
            with outage_is_an_error(_WHAT):
                self._client.hdel(self._key, mark, *gone)

    def forget(self) -> None:
        """Take all marks away: each version may be loaded as if it never had cut a process off."""
        with outage_is_an_error(_WHAT):
            self._client.delete(self._key)

    def _field(self, version: int, pid: int) -> str:
        return f"{version} {self._host} {pid}"

    def _loads(self, version: int) -> dict[int, int]:
        """Return process id → loads of that version which began on this host and did not end."""
        with outage_is_an_error(_WHAT):
            marks = cast("dict[bytes, bytes]", self._client.hgetall(self._key))
        own = f"{version} {self._host} "
        with reading(_WHAT):
            of_this = [(mark.decode(), count) for mark, count in marks.items()]
            return {_pid(mark.removeprefix(own)): count_in(count) for mark, count in of_this if mark.startswith(own)}


def _pid(text: str) -> int:
    pid = int(text)
    if not 0 < pid < 1 << 31:
        raise ValueError("no process has this id")
    return pid


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@dataclass(frozen=True)
class Reloads:
    """Requests to reload a model: the number of the newest one, and by worker the newest one that it has done."""

    requested: int
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
        with reading(f"the records of model {model!r}"):
            return {int(version): VersionRecord.from_json(raw[version]) for version in sorted(raw, key=int)}

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
        record = VersionRecord.from_json(raw)
        if record.state == "refused":
            raise ModelUnavailable(f"version {version} of model {model!r} was refused: {record.error}")
        return record

    def micro_batch(self, model: str, version: int, device: str) -> MicroBatchRecord | None:
        """Return what was found for a version on a kind of device; None when nobody has searched yet."""
        try:
            raw = cast("bytes | None", self._client.hget(self._keys.micro_batches(model), f"{version}:{device}"))
        except redis.RedisError as error:
            raise _unavailable(error) from error
        return record_from_json(MicroBatchRecord, raw, "the rows per call of a model") if raw else None

    def put_micro_batch(self, model: str, version: int, device: str, record: MicroBatchRecord) -> None:
        """Store what was found, replacing what stood there."""
        try:
            self._client.hset(self._keys.micro_batches(model), f"{version}:{device}", orjson.dumps(record))
        except redis.RedisError as error:
            raise _unavailable(error) from error

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
        return self._table(model).activate(version, force=force)

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
        self._table(model).label(name, version, share=share or 0.0)

    def remove_label(self, model: str, name: str) -> None:
        """Take a label away. A canary's answers are not read from then on.

        Raises:
            BadInput: no version has it.
        """
        if name not in self.labels(model).versions:
            raise BadInput(f"no version of model {model!r} is labelled {name}", field="label")
        self._table(model).label(name, None)

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
        with reading(f"the wishes for new versions of model {model!r}"):
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

    def stored_rows(self, model: str) -> Block:
        """Return some rows of a model's feature table by column; empty when none is stored."""
        kind = TableKind.FEATURES
        return RedisTable(self._client, self._keys.table(kind, model), kind=kind, model=model).some_rows()

    def _table(self, model: str) -> RedisTable:
        kind = TableKind.PREDICTIONS
        return RedisTable(self._client, self._keys.table(kind, model), kind=kind, model=model)


def _unavailable(error: redis.RedisError) -> StoreUnavailable:
    return StoreUnavailable(f"the cache Redis did not answer: {error}")
