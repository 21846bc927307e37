"""The records of models in Redis: versions, the active one, labels, loads under way. Every process reads them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import orjson
from pydantic import FiniteFloat, PlainValidator

from inference.errors import BadInput, ContractError, ModelUnavailable
from inference.features import FeatureContract
from inference.protocols.tensorflow_calls import DEFAULT_SIGNATURE, SignatureCall
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import Block, GraphSignature, Signature
from inference.store import CANARY, STABLE, Labels, Pointer, Table
from inference.store.versions import LABEL
from inference.stored_data import count_in, reading, record_from_json

VersionState = Literal["ready", "refused"]
_WHAT = "marking the load of a model"
#: a version that no worker has loaded for so long may crash one more worker
_REMEMBERED_S = 30 * 86_400
#: an hour after the last request to reload, nobody waits for it any more
RELOAD_REMEMBERED_S = 3600
#: no name of a worker, which has a host and a process id
_REQUESTED = "asked"


@dataclass(frozen=True)
class MicroBatchRecord:
    """The best number of rows a call, for the version with this `fingerprint` on one kind of device.

    `others`: the share of the processors' time that other processes took during the search, 0 to 1. `found_at`: epoch
    seconds.
    """

    rows: int
    fingerprint: str
    others: FiniteFloat = 0.0
    found_at: FiniteFloat = 0.0


def _contract(data: Any) -> FeatureContract:
    try:
        return FeatureContract.from_json(data) if data != {"features": []} else FeatureContract(())
    except ContractError as error:
        raise ValueError(error.message) from error


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """One version: `ready` after a good warm-up, or `refused` with the reason in `error`.

    The signature's outputs are the fields of its predictions. `fingerprint` changes with every file of the version.
    `format`: its name in `inference.models.formats`. A refused version has an empty signature and contract, and no
    format. `inspected_at`: epoch seconds. `unproven`: why a ready version has not answered any row yet, so that it must
    not replace another one; None if it has. `notice`: a warning about a version that may answer nevertheless. The
    contract is empty if the model's features are not listed: it takes tensors only. `signatures`: those of a SavedModel
    by name, each callable over the serving protocols; empty for other formats. `own_signature`: the one behind
    `signature`, which is empty if that one computes no rows. `class_labels`: names of the classes that its outputs
    score, by number; empty if it has none.
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
    signatures: dict[str, GraphSignature] = field(default_factory=dict)
    own_signature: str = ""
    class_labels: tuple[str, ...] = ()

    @property
    def computes_rows(self) -> bool:
        """Whether it predicts for entities and instances. Otherwise clients of `/v1` call its signatures, no more."""
        return bool(self.signature.outputs)

    @property
    def is_proved(self) -> bool:
        """Whether it has answered rows, and so may replace the active version."""
        return self.state == "ready" and self.unproven is None

    @property
    def remark(self) -> str | None:
        """Its error, else why it waits, else its notice, in one line; None for neither."""
        return self.error or self.unproven or self.notice

    @property
    def contract_hash(self) -> str:
        """The feature contract's hash; "" for a refused version."""
        return self.contract.hash if self.state == "ready" else ""

    def all_signatures(self) -> dict[str, GraphSignature]:
        """Return every signature by name. A format without signatures has one, of the protocol's default name."""
        return self.signatures or {DEFAULT_SIGNATURE: GraphSignature.of_rows(self.signature)}

    def signature_call(self, name: str, *, chosen: str | None = None) -> SignatureCall | None:
        """Return the way to call the signature of that name; None if there is none.

        A SavedModel without one of the protocol's default name answers to that by its own signature. `chosen`: the
        settings' choice, another name of the own signature in the record of an older release.
        """
        if self.signatures:
            named = name if name in self.signatures or name != DEFAULT_SIGNATURE else self.own_signature
            return SignatureCall(named, self.signatures[named]) if named in self.signatures else None
        if name not in (DEFAULT_SIGNATURE, chosen):
            return None
        return SignatureCall(None, GraphSignature.of_rows(self.signature), self.signature)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        signature, contract = self.signature.to_json(), self.contract.to_json()
        signatures = {name: one.to_json() for name, one in self.signatures.items()}
        own = {"signature": signature, "contract": contract, "signatures": signatures}
        return vars(self) | own | {"contract_hash": self.contract_hash}

    @classmethod
    def from_json(cls, text: bytes | str) -> VersionRecord:
        """Read the JSON of `to_json`.

        Raises:
            Unreadable: the text is something else.
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


class UnfinishedLoads:
    """The loads of one model that have not ended: a hash in Redis, version, host and process id → count.

    A version whose code ends the process would end it again after each restart by the supervisor. So a worker marks
    each load before it begins. A later worker of the host that finds the mark of a dead process tries the version in a
    process of its own first, and refuses it after several.

    Every method raises StoreUnavailable when Redis does not answer in time.
    """

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self._key = key
        self._host = socket.gethostname()

    def interrupted(self, version: int) -> int:
        """Return how many loads of that version ended with their process on this host, since the last one that ended
        by itself. Must not be called during a load.
        """
        # in a container, each process may have the same id
        return sum(count for pid, count in self._loads(version).items() if pid == os.getpid() or not _is_alive(pid))

    @contextmanager
    def mark(self, version: int) -> Iterator[None]:
        """Mark a load while the block runs. Its end, even by an error, removes earlier marks of this host too."""
        mark = self._field(version, os.getpid())
        with self._client.pipeline() as pipe:
            pipe.hincrby(self._key, mark)
            pipe.expire(self._key, _REMEMBERED_S)
            pipe.execute()
        try:
            yield
        finally:
            gone = [self._field(version, pid) for pid in self._loads(version) if not _is_alive(pid)]
            self._client.hdel(self._key, mark, *gone)

    def forget(self) -> None:
        """Remove all marks, so that every version may be loaded again."""
        self._client.delete(self._key)

    def _field(self, version: int, pid: int) -> str:
        return f"{version} {self._host} {pid}"

    def _loads(self, version: int) -> dict[int, int]:
        """Return process id → unfinished loads of that version on this host."""
        marks = cast("dict[bytes, bytes]", self._client.hgetall(self._key))
        prefix = f"{version} {self._host} "
        with reading(_WHAT):
            found = [(mark.decode(), count) for mark, count in marks.items()]
            return {
                _pid(mark.removeprefix(prefix)): count_in(count) for mark, count in found if mark.startswith(prefix)
            }


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
    except PermissionError:  # another user's
        return True
    return True


@dataclass(frozen=True)
class RegistryChoice:
    """The version that a registry named last for a model's `path`. `created_at`: epoch milliseconds."""

    path: str
    version: int
    created_at: int | None = None


@dataclass(frozen=True)
class Reloads:
    """Requests to reload a model: the number of the newest one, and by worker the newest one that it has done."""

    requested: int
    done: Mapping[str, int]


class ModelRegistry:
    """Reads and writes the records of versions. The pointer of the prediction table holds the active version.

    Every method raises StoreUnavailable when Redis does not answer in time.
    """

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def versions(self, model: str) -> dict[int, VersionRecord]:
        """Return all records of a model by version, oldest version first."""
        raw = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.model_record(model)))
        with reading(f"the records of model {model!r}"):
            return {int(version): VersionRecord.from_json(raw[version]) for version in sorted(raw, key=int)}

    def put(self, model: str, record: VersionRecord) -> None:
        """Store a record in place of the version's earlier one."""
        self._client.hset(self._keys.model_record(model), str(record.version), orjson.dumps(record.to_json()))

    def get(self, model: str, version: int) -> VersionRecord:
        """Return the record of a ready version.

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
        """Return the micro-batch of a version on a kind of device; None before the first search."""
        raw = cast("bytes | None", self._client.hget(self._keys.micro_batches(model), f"{version}:{device}"))
        return record_from_json(MicroBatchRecord, raw, "the rows per call of a model") if raw else None

    def put_micro_batch(self, model: str, version: int, device: str, record: MicroBatchRecord) -> None:
        """Store a micro-batch in place of the earlier one."""
        self._client.hset(self._keys.micro_batches(model), f"{version}:{device}", orjson.dumps(record))

    def unfinished_loads(self, model: str) -> UnfinishedLoads:
        """Return the loads of a model that have not ended."""
        return UnfinishedLoads(self._client, self._keys.loads(model))

    def active_version(self, model: str) -> int | None:
        """Return the active version, which answers requests; None before the first activation."""
        return self.pointer(model).active_version

    def active(self, model: str) -> VersionRecord:
        """Return the record of the active version.

        Raises:
            ModelUnavailable: none has been activated yet.
        """
        version = self.active_version(model)
        if version is None:
            raise ModelUnavailable(f"model {model!r} has no active version yet: a worker must load it first")
        return self.get(model, version)

    def choice(self, model: str, path: str) -> RegistryChoice | None:
        """Return the version that the registry named last for this path; None for none."""
        raw = cast("bytes | None", self._client.get(self._keys.choice(model)))
        found = record_from_json(RegistryChoice, raw, "the version that the registry named") if raw else None
        return found if found is not None and found.path == path else None

    def put_choice(self, model: str, choice: RegistryChoice) -> None:
        """Store the version that the registry names."""
        self._client.set(self._keys.choice(model), orjson.dumps(choice))

    def activate(self, model: str, version: int, *, force: bool = False, backwards: bool = False) -> bool:
        """Make a version the active one. Returns False if it is older than the active one, or held.

        `backwards`: activate it even if it is older. `force`: activate it in any case, and release a hold.
        """
        return self._table(model).versions.activate(version, force=force, backwards=backwards)

    def labels(self, model: str) -> Labels:
        """Return the labels of versions."""
        return self.pointer(model).labels

    def label(self, model: str, name: str, version: int, *, share: float | None = None) -> None:
        """Give a label to a version, and take it from the version that has it.

        `stable`: the version that is to answer. Workers load it, and activate it once all have it. `canary`: the
        version on trial. It computes `share`, 0 to 1, of the entities (None for none), and never becomes active by
        itself.

        Raises:
            BadInput: the name is no label, the share is out of range or not the canary's, or the canary is active.
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
        """Remove a label. Predictions of a canary are not read from then on.

        Raises:
            BadInput: no version has it.
        """
        if name not in self.labels(model).versions:
            raise BadInput(f"no version of model {model!r} is labelled {name}", field="label")
        self._table(model).versions.label(name, None)

    def ask_reload(self, model: str) -> int:
        """Ask all workers to look for new versions now. Returns the number of this request."""
        key = self._keys.reload(model)
        with self._client.pipeline() as pipe:
            pipe.hincrby(key, _REQUESTED, 1)
            pipe.expire(key, RELOAD_REMEMBERED_S)
            number = pipe.execute()[0]
        return int(number)

    def reloads(self, model: str) -> Reloads:
        """Return the newest request to reload, and which requests each worker has done."""
        raw = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.reload(model)))
        with reading(f"the requests to reload model {model!r}"):
            numbers = {name.decode(): int(number) for name, number in raw.items()}
        return Reloads(numbers.pop(_REQUESTED, 0), numbers)

    def put_reloaded(self, model: str, worker: str, number: int) -> None:
        """Note that a worker has done the request of that number."""
        key = self._keys.reload(model)
        with self._client.pipeline() as pipe:
            pipe.hset(key, worker, str(number))
            pipe.expire(key, RELOAD_REMEMBERED_S)
            pipe.execute()

    def pointer(self, model: str) -> Pointer:
        """Return the prediction table's pointer, which has the active and the held versions."""
        return self._table(model).pointer()

    def stored_rows(self, model: str) -> Block:
        """Return some rows of a model's feature table by column; empty if no row is stored."""
        kind = TableKind.FEATURES
        return Table(self._client, self._keys.table(kind, model), kind=kind, model=model).generations.some_rows()

    def _table(self, model: str) -> Table:
        kind = TableKind.PREDICTIONS
        return Table(self._client, self._keys.table(kind, model), kind=kind, model=model)
