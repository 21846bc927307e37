"""A run, its plan and its chunks: the records that Redis holds of them, and the views that callers see."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, ConfigDict, Field, FiniteFloat, Json, PlainSerializer

from inference.batch.chunk_states import ChunkCounts, ChunkStates, chunk_map
from inference.batch.gates import BadRows, Gate
from inference.clock import to_iso
from inference.errors import BadInput, cut, quoted, shown_name
from inference.redis.keys import TableKind
from inference.sources import Slice, SourceFile
from inference.stored_data import (
    DATA_FORMAT,
    FIRST_FORMAT,
    json_of,
    record_from_hash,
    record_from_json,
    unknown_format,
)

#: a run's id is a part of paths and of keys
_RUN_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
#: reasons for left-out rows that the details of a run name
_MAX_REASONS = 20

#: a number that Redis counted
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
#: epoch seconds of Redis' clock; ISO 8601 in JSON
Instant = Annotated[FiniteFloat, PlainSerializer(to_iso, return_type=str)]
RunId = Annotated[str, Field(pattern=f"^{_RUN_ID}$")]
#: text that is empty in Redis when there is none
TextOrNone = Annotated[str | None, BeforeValidator(lambda text: text or None)]


def is_run_id(value: object) -> bool:
    """Return whether a run may have this id: in a path it names no other folder."""
    return isinstance(value, str) and re.fullmatch(_RUN_ID, value) is not None


class RunState(StrEnum):
    """Where a run is. All but the first three are ends; `failed` and `cancelled` can be resumed, `held` published."""

    #: requested; nobody has looked at source and model yet
    QUEUED = "queued"
    #: planned; workers score its chunks
    RUNNING = "running"
    #: every chunk is done; the reconciler checks the gates and publishes
    PUBLISHING = "publishing"
    #: scored, and passed its gates; waits until somebody publishes or cancels it
    HELD = "held"
    #: its generation serves, or served until a later one did
    PUBLISHED = "published"
    #: its source, its model, a chunk or a gate ended it; the previous generation still serves
    FAILED = "failed"
    #: stopped on request, or held until a newer run took its place
    CANCELLED = "cancelled"
    #: a shadow run, scored and compared with what serves; it never serves
    COMPARED = "compared"

    @property
    def is_over(self) -> bool:
        """Whether the model is free for another run."""
        return self not in (RunState.QUEUED, RunState.RUNNING, RunState.PUBLISHING)


class Trigger(StrEnum):
    """Who requested a run."""

    #: the schedule
    BEAT = "beat"
    #: `forecache batch run`
    CLI = "cli"
    #: `POST /runs`, or another application's message `forecache.start_run`
    API = "api"


class RunKind(StrEnum):
    """Which rows a run scores, and what for."""

    #: all rows, or those of the active set
    FULL = "full"
    #: only those whose vectors changed; the others are carried over
    DELTA = "delta"
    #: some entities, or what changed since an instant, into the overlay
    PARTIAL = "partial"
    #: all rows by a version that does not serve, only to compare
    SHADOW = "shadow"


class Engine(StrEnum):
    """Who scores a run's chunks."""

    #: batch workers, a message for each chunk
    CELERY = "celery"
    #: a Spark driver and its executors
    SPARK = "spark"
    #: a Ray driver and its actors
    RAY = "ray"

    @classmethod
    def named(cls, name: str) -> Engine:
        """Return the engine of that name.

        Raises:
            BadInput: there is none.
        """
        try:
            return cls(name)
        except ValueError as error:
            raise BadInput(f"engine {quoted(name)} is none of {', '.join(cls)}", field="engine") from error


#: file, row group, offset, length; mask of the rows to read ("" for all); mask of the rows to score
_Slices = list[tuple[int, int, int, int] | tuple[int, int, int, int, str] | tuple[int, int, int, int, str, str]]


@dataclass(frozen=True)
class Chunk:
    """The rows that one task scores. `files`: by number, the files of its slices; empty while a plan is made."""

    number: int
    slices: tuple[Slice, ...]
    files: Mapping[int, SourceFile] = field(default_factory=dict, compare=False)

    @property
    def rows(self) -> int:
        """Rows of the chunk."""
        return sum(part.rows for part in self.slices)

    @property
    def rows_to_score(self) -> npt.NDArray[np.bool_] | None:
        """Which of its rows to score, in the order of reading; None for all."""
        if all(part.chosen is None for part in self.slices):
            return None
        return np.concatenate([part.rows_to_score for part in self.slices])

    def to_json(self) -> list[list[Any]]:
        """Return the slices as plain values."""
        return [[part.file, part.row_group, part.offset, part.length, *_masks(part)] for part in self.slices]

    @classmethod
    def from_json(cls, number: int, text: bytes | str) -> Chunk:
        """Rebuild a chunk from the JSON of `to_json`.

        Raises:
            Unreadable: the text is no such JSON.
        """
        return cls(number, tuple(_slice(*part) for part in record_from_json(_Slices, text, f"chunk {number}")))


def _masks(part: Slice) -> list[str]:
    if part.chosen is not None:
        return [part.mask or "", part.chosen]
    return [part.mask] if part.mask else []


def _slice(file: int, row_group: int, offset: int, length: int, mask: str = "", chosen: str | None = None) -> Slice:
    return Slice(file, row_group, offset, length, mask or None, chosen)


@dataclass(frozen=True)
class Fingerprint:
    """The facts that a plan and its finished chunks rest on. A run is resumed only if none of them changed.

    `files`: a digest of all files (names, sizes, stamps, footers), however many there are.
    """

    files: str
    entity_column: str
    event_time_column: str | None
    model_version: int
    contract_hash: str
    rows_per_chunk: int
    bytes_per_chunk: int
    #: older releases wrote none of these and knew no other
    rows: str = "one"
    entities: str = "all"

    def differences(self, before: Fingerprint) -> list[str]:
        """Return in words what changed since `before`, without the files; empty for nothing."""
        now, then = asdict(self), asdict(before)
        return [f"{key}: {then[key]!r} is now {now[key]!r}" for key in now if key != "files" and then[key] != now[key]]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The fields of a run that everybody sees. None: not known yet."""

    __pydantic_config__ = ConfigDict(json_schema_serialization_defaults_required=True)

    run_id: RunId
    model: str
    state: RunState
    trigger: Trigger
    source: str
    created_at: Instant
    #: of a partial run: how many entities were requested, and since when its rows changed. A whole run has neither
    entities_asked: Count | None = None
    since: Instant | None = None
    engine: Engine = Engine.CELERY
    #: whether rows whose vectors have not changed should be carried over; the run whose rows they are, or why there is
    #: none and all rows are scored; how many rows were carried over, scored anew, and gone from the source
    delta: bool = False
    base_run: TextOrNone = None
    full_reason: TextOrNone = None
    rows_carried: Count | None = None
    rows_rescored: Count | None = None
    rows_removed: Count | None = None
    #: which rows a delta run left unread since the table tells that they did not change, or why it read all; None: the
    #: source is no Delta or Iceberg table
    change_feed: TextOrNone = None
    started_at: Instant | None = None
    #: when the last chunk was done
    scored_at: Instant | None = None
    finished_at: Instant | None = None
    chunks_total: Count | None = None
    chunks_done: Count = 0
    rows_total: Count | None = None
    rows_done: Count = 0
    rows_quarantined: Count = 0
    #: of a whole run: the rule in its settings that says which rows it scores, the number of rows outside that set, and
    #: how the set came about
    entities_rule: str = "all"
    rows_outside: Count = 0
    entities_note: str | None = None
    #: of the last days' requests, the share that such a set would have answered; None: all, or not known
    entities_share: FiniteFloat | None = None
    gates: Json[tuple[Gate, ...]] = ()
    error: str | None = None
    model_version: Count | None = None
    generation: Count | None = None
    #: of the feature table, from the same pass
    feature_generation: Count | None = None
    #: who published it although a gate had failed, and when; None for nobody
    forced_by: str | None = None
    forced_at: Instant | None = None
    #: it waits before its publication until somebody approves it
    hold: bool = False
    approved_by: str | None = None
    approved_at: Instant | None = None
    #: it only compares `model_version` with what serves
    shadow: bool = False

    @property
    def took_s(self) -> float | None:
        """Seconds from the request to the publication, but not those in which a held run waited; None: not over."""
        end = self.finished_at if self.approved_at is None else self.scored_at
        return None if end is None or self.finished_at is None else end - self.created_at


@dataclass(frozen=True, kw_only=True)
class RunRecord(RunStatus):
    """A run as its hash in Redis holds it."""

    #: when the run was last resumed, and how many rows were done by then
    resumed_at: Instant | None = None
    rows_before: Count = 0
    #: how often a worker took a chunk
    attempts: Count = 0
    #: None before the run is planned
    fingerprint: Json[Fingerprint] | None = None
    #: folder of the Parquet parts; None for none
    parquet_folder: TextOrNone = None
    #: folder of the left-out rows; it exists only if there are any
    quarantine_folder: str = ""
    #: why rows were left out; known once the gates were checked
    bad_rows: Json[tuple[BadRows, ...]] = ()
    #: of the digests of vectors, in hex; None if the run keeps none
    vector_key: TextOrNone = None
    #: fingerprint of the model's files when the run was planned
    model_files: str = ""
    #: the generation whose rows are carried over, and how many delta runs there were since the last full one
    base_generation: Count | None = None
    deltas: Count = 0
    #: where the rows of `source` were written as Parquet for this run; None: the run reads `source` itself
    snapshot: TextOrNone = None
    #: `Source.version`, and how many rows a delta run carried over without reading them; None: it read all
    table_version: str = ""
    rows_unread: Count | None = None
    #: its scored rows are given up, whatever `resumable` says
    spent: bool = False
    #: the error of the last failed attempt at a chunk
    last_error: str | None = None
    #: the data format of the release that opened the run
    format: Count = FIRST_FORMAT

    def check_format(self) -> None:
        """Refuse a run whose plan may have a form that this release does not know.

        Raises:
            UnknownFormat: a release with another data format opened the run.
        """
        if self.format != DATA_FORMAT:
            raise unknown_format(f"run {self.run_id}", self.format)

    def generation_of(self, kind: TableKind) -> int | None:
        """Return the generation that the run fills in a table; None for none, or before the run is planned."""
        number: int | None = getattr(self, self.field_of(kind))
        return number

    @staticmethod
    def field_of(kind: TableKind) -> str:
        """Return the field that holds the number of the run's generation in a table."""
        return "generation" if kind is TableKind.PREDICTIONS else "feature_generation"

    @property
    def is_partial(self) -> bool:
        """Whether the run scores only some rows, into the overlay, and publishes no generation."""
        return self.entities_asked is not None or self.since is not None

    @property
    def kind(self) -> RunKind:
        """Which rows the run scores, and what for. Of a delta run it is known only once it is planned."""
        if self.is_partial:
            return RunKind.PARTIAL
        if self.shadow:
            return RunKind.SHADOW
        return RunKind.DELTA if self.delta and not self.full_reason else RunKind.FULL

    def keeps_rows(self, now: float, resumable_s: float) -> bool:
        """Whether the rows that it scored are still kept, so that a failed or cancelled run can go on."""
        return self.finished_at is not None and not self.spent and now - self.finished_at < resumable_s

    @property
    def read_from(self) -> str:
        """The path of the rows that the run reads."""
        return self.snapshot or self.source

    @property
    def waits(self) -> bool:
        """Whether the run may not be published before somebody approves it."""
        return self.hold and self.approved_by is None and not self.forced

    @property
    def forced(self) -> bool:
        """Whether somebody had the run published although a gate had failed."""
        return self.forced_by is not None

    @classmethod
    def from_hash(cls, data: Mapping[bytes, bytes]) -> RunRecord:
        """Decode the reply to HGETALL.

        Raises:
            Unreadable: it is no record that this release knows.
        """
        run_id = shown_name(cut(data.get(b"run_id", b"?").decode(errors="replace")))
        return record_from_hash(cls, data, f"the record of run {run_id}")

    def hash_after_loss(self, error: str) -> dict[str, str]:
        """Return the hash of this run as a failed one, without what Redis lost: plan, gates, generations."""
        lost = replace(
            self, state=RunState.FAILED, error=error, generation=None, feature_generation=None, finished_at=None
        )
        plain = {name: str(value) for name, value in vars(lost).items() if isinstance(value, str | int | float)}
        return plain | {"spent": "1"}


@dataclass(frozen=True, kw_only=True)
class RunView(RunStatus):
    """A run as callers see it. `rows_per_s` and `eta_s` go by the rate since the run was started or resumed."""

    #: rows scored a second
    rows_per_s: float | None
    #: seconds until the last chunk
    eta_s: float | None
    forced: bool
    kind: RunKind

    @classmethod
    def of(cls, record: RunRecord, *, now: float) -> RunView:
        """Return the view of a record at an instant (epoch seconds of Redis' clock)."""
        return cls(**_shown(record, now))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; instants are ISO 8601 UTC."""
        values: dict[str, Any] = json_of(type(self), self)
        return values


@dataclass(frozen=True)
class Phases:
    """How long each phase took, or has taken so far, in seconds; None: not reached yet."""

    queued_s: float | None
    scoring_s: float | None
    publishing_s: float | None


@dataclass(frozen=True)
class LeftOut:
    """Where the left-out rows are, and why they were left out."""

    folder: str | None
    reasons: Sequence[BadRows]


@dataclass(frozen=True, kw_only=True)
class RunDetails(RunView):
    """A run looked at closely.

    `can_resume`: a resume can do the rest, as far as Redis tells. It is refused nevertheless if the table or the model
    has changed.
    """

    can_resume: bool
    chunks: ChunkCounts
    attempts: int
    phases: Phases
    quarantine: LeftOut
    parquet_folder: str | None
    last_error: str | None

    @classmethod
    def look_at(
        cls, record: RunRecord, chunks: ChunkStates, bad_rows: Sequence[BadRows], *, can_resume: bool, now: float
    ) -> RunDetails:
        """Return the details of a record and its chunks at an instant (epoch seconds of Redis' clock)."""
        return cls(
            **_shown(record, now),
            can_resume=can_resume,
            chunks=_count(record, chunks),
            attempts=record.attempts,
            phases=Phases(
                queued_s=_between(record.created_at, record.started_at or record.finished_at or now),
                scoring_s=_between(record.started_at, record.scored_at or record.finished_at or now),
                publishing_s=_between(record.approved_at or record.scored_at, record.finished_at or now),
            ),
            quarantine=LeftOut(
                record.quarantine_folder if record.rows_quarantined else None, tuple(bad_rows[:_MAX_REASONS])
            ),
            parquet_folder=record.parquet_folder,
            last_error=record.last_error,
        )


def _shown(record: RunRecord, now: float) -> dict[str, Any]:
    shown = {one.name: getattr(record, one.name) for one in fields(RunStatus)}
    if record.is_partial:  # its generations are never current: nobody can roll back to them
        shown |= {"generation": None, "feature_generation": None}
    return {
        **shown, "rows_per_s": _rows_per_s(record, now), "eta_s": _eta_s(record, now), "forced": record.forced,
        "kind": record.kind,
    }  # fmt: skip


def _rows_per_s(record: RunRecord, now: float) -> float | None:
    since = record.resumed_at or record.started_at
    until = record.scored_at or record.finished_at or now
    rows = record.rows_done - record.rows_before
    if since is None or rows <= 0 or until <= since:
        return None
    return round(rows / (until - since), 1)


def _eta_s(record: RunRecord, now: float) -> float | None:
    rate = _rows_per_s(record, now)
    if record.state is not RunState.RUNNING or not rate:
        return None
    return round(max((record.rows_total or 0) - record.rows_done, 0) / rate, 1)


def _count(record: RunRecord, chunks: ChunkStates) -> ChunkCounts:
    if record.state.is_over:  # nobody works on it, whatever was sent
        chunks = ChunkStates(chunks.done)
    total, scoring, waiting = record.chunks_total or 0, len(chunks.scoring), len(chunks.waiting)
    unsent = max(total - record.chunks_done - scoring - waiting, 0)
    return ChunkCounts(record.chunks_done, scoring, waiting, unsent, chunk_map(chunks, total))


def _between(start: float | None, end: float) -> float | None:
    return None if start is None else round(max(end - start, 0.0), 3)
