"""A run as it stands in Redis, and as it is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from inference.batch.engine import Engine
from inference.batch.gates import BadRows, Gate
from inference.clock import to_iso
from inference.errors import cut, shown_name
from inference.redis.keys import TableKind
from inference.stored_data import DATA_FORMAT, count_in, reading, record_from_json, unknown_format

#: an id is a part of paths and of keys
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def is_run_id(value: object) -> bool:
    """Return whether a run may have this id: it names no other folder when it is put into a path."""
    return isinstance(value, str) and _RUN_ID.fullmatch(value) is not None


class RunState(StrEnum):
    """Where a run is. `published`, `failed` and `cancelled` are ends; the last two can be taken up again."""

    #: asked for; source and model not looked at yet
    QUEUED = "queued"
    #: planned; its chunks are being scored
    RUNNING = "running"
    #: every chunk is done; the gates are being checked, then one pointer flips
    PUBLISHING = "publishing"
    #: its generation serves, or served until a later one did
    PUBLISHED = "published"
    #: refused by its source, its model, a chunk or a gate; what served before still does
    FAILED = "failed"
    #: stopped on request
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether the model is free for another run."""
        return self in (RunState.PUBLISHED, RunState.FAILED, RunState.CANCELLED)


class Trigger(StrEnum):
    """Who asked for a run."""

    #: the schedule
    BEAT = "beat"
    #: `forecache batch run`
    CLI = "cli"
    #: `POST /runs`, or another application's message `forecache.start_run`
    API = "api"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its hash in Redis holds it. Instants: epoch seconds of Redis' clock; None is not known yet."""

    run_id: str
    model: str
    state: RunState
    trigger: Trigger
    source: str
    created_at: float
    #: how many entities a partial run was asked for, and since when their rows changed; both None for a whole run
    entities_asked: int | None = None
    since: float | None = None
    #: what scores its chunks
    engine: Engine = Engine.CELERY
    started_at: float | None = None
    #: when the last chunk was done
    scored_at: float | None = None
    finished_at: float | None = None
    #: when the run was last taken up again, and how many rows were done by then
    resumed_at: float | None = None
    rows_before: int = 0
    chunks_total: int | None = None
    chunks_done: int = 0
    #: how often a worker took a chunk up
    attempts: int = 0
    rows_total: int | None = None
    rows_done: int = 0
    rows_quarantined: int = 0
    model_version: int | None = None
    generation: int | None = None
    #: of the feature table, from the same pass
    feature_generation: int | None = None
    #: what the plan rests on, as `Fingerprint.to_json` gives it
    fingerprint: dict[str, Any] = field(default_factory=dict)
    #: folder of the Parquet parts; None for none
    parquet_folder: str | None = None
    #: folder of the rows that were left out; there only if there are any
    quarantine_folder: str = ""
    gates: tuple[Gate, ...] = ()
    #: why rows were left out, known once the gates were checked
    bad_rows: tuple[BadRows, ...] = ()
    #: who published it although a gate had failed, and when; None for nobody
    forced_by: str | None = None
    forced_at: float | None = None
    #: what it scored is given up whatever `resumable` says
    spent: bool = False
    error: str | None = None
    #: what the last failed attempt at a chunk said
    last_error: str | None = None
    #: that of the release which was asked for it
    format: int = DATA_FORMAT

    def check_format(self) -> None:
        """Refuse to go on with a run whose plan may be of a form that is not known here.

        Raises:
            UnknownFormat: another release was asked for it.
        """
        if self.format != DATA_FORMAT:
            raise unknown_format(f"run {self.run_id}", self.format)

    def generation_of(self, kind: TableKind) -> int | None:
        """Return the generation that it fills in a table; None for none, or before it is planned."""
        number: int | None = getattr(self, self.field_of(kind))
        return number

    @staticmethod
    def field_of(kind: TableKind) -> str:
        """Return the field that holds the number of its generation in a table."""
        return "generation" if kind is TableKind.PREDICTIONS else "feature_generation"

    @property
    def is_partial(self) -> bool:
        """Whether it scores only some rows, into the overlay, and publishes no generation."""
        return self.entities_asked is not None or self.since is not None

    @property
    def forced(self) -> bool:
        """Whether it was published although a gate had failed."""
        return self.forced_by is not None

    @classmethod
    def from_hash(cls, data: Mapping[bytes, bytes]) -> RunRecord:
        """Decode what HGETALL returned.

        Raises:
            Unreadable: it is no record that this release knows.
        """
        with reading(f"the record of run {shown_name(cut(data.get(b'run_id', b'?').decode(errors='replace')))}"):
            return cls._from_text({key.decode(): value.decode() for key, value in data.items()})

    @classmethod
    def _from_text(cls, text: Mapping[str, str]) -> RunRecord:
        return cls(
            run_id=_run_id(text["run_id"]),
            model=text["model"],
            state=RunState(text["state"]),
            trigger=Trigger(text["trigger"]),
            source=text["source"],
            created_at=_instant(text["created_at"]),
            entities_asked=_count_if_known(text.get("entities_asked")),
            since=_instant_if_known(text.get("since")),
            engine=Engine(text.get("engine", Engine.CELERY)),
            started_at=_instant_if_known(text.get("started_at")),
            scored_at=_instant_if_known(text.get("scored_at")),
            finished_at=_instant_if_known(text.get("finished_at")),
            resumed_at=_instant_if_known(text.get("resumed_at")),
            rows_before=count_in(text.get("rows_before", "0")),
            chunks_total=_count_if_known(text.get("chunks_total")),
            chunks_done=count_in(text.get("chunks_done", "0")),
            attempts=count_in(text.get("attempts", "0")),
            rows_total=_count_if_known(text.get("rows_total")),
            rows_done=count_in(text.get("rows_done", "0")),
            rows_quarantined=count_in(text.get("rows_quarantined", "0")),
            model_version=_count_if_known(text.get("model_version")),
            generation=_count_if_known(text.get("generation")),
            feature_generation=_count_if_known(text.get("feature_generation")),
            fingerprint=record_from_json(dict[str, Any], text.get("fingerprint", "{}"), "fingerprint"),
            parquet_folder=text.get("parquet_folder") or None,
            quarantine_folder=text.get("quarantine_folder", ""),
            gates=record_from_json(tuple[Gate, ...], text.get("gates", "[]"), "gates"),
            bad_rows=record_from_json(tuple[BadRows, ...], text.get("bad_rows", "[]"), "bad_rows"),
            forced_by=text.get("forced_by"),
            forced_at=_instant_if_known(text.get("forced_at")),
            spent=text.get("spent") == "1",
            error=text.get("error"),
            last_error=text.get("last_error"),
            format=count_in(text.get("format", str(DATA_FORMAT))),
        )

    def to_hash(self) -> dict[str, str]:
        """Return the facts that tell what became of the run, as its hash holds them, without what its parts hold."""
        told: dict[str, str | int | float | None] = {
            name: getattr(self, name)
            for name in (
                "run_id", "model", "source", "engine", "created_at", "entities_asked", "since", "started_at",
                "chunks_total", "chunks_done", "attempts", "rows_total", "rows_done", "rows_quarantined",
                "model_version", "parquet_folder", "quarantine_folder",
            )
        }  # fmt: skip
        return {"trigger": self.trigger.value} | {name: str(value) for name, value in told.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as callers see it. Instants: epoch seconds, in `to_json` ISO 8601; None is not known yet."""

    run_id: str
    model: str
    state: RunState
    trigger: Trigger
    source: str
    created_at: float
    entities_asked: int | None
    since: float | None
    engine: Engine
    started_at: float | None
    scored_at: float | None
    finished_at: float | None
    chunks_total: int | None
    chunks_done: int
    rows_total: int | None
    rows_done: int
    rows_quarantined: int
    #: rows scored a second, since the run was started or taken up again
    rows_per_s: float | None
    #: seconds until the last chunk at the rate so far
    eta_s: float | None
    gates: tuple[Gate, ...]
    error: str | None
    model_version: int | None
    generation: int | None
    feature_generation: int | None
    forced: bool
    forced_by: str | None
    forced_at: float | None

    @classmethod
    def of(cls, record: RunRecord, *, now: float) -> RunView:
        """Return the view of a record at an instant (epoch seconds of Redis' clock)."""
        computed: dict[str, Any] = {"rows_per_s": _rows_per_s(record, now), "eta_s": _eta_s(record, now)}
        own = {name: getattr(record, name) for name in cls.__dataclass_fields__ if name not in computed}
        if record.is_partial:  # its generations are never current: nobody can go back to them
            own |= {"generation": None, "feature_generation": None}
        return cls(**own, **computed)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        body = asdict(self)
        body["state"], body["trigger"], body["engine"] = self.state.value, self.trigger.value, self.engine.value
        body["gates"] = [gate.to_json() for gate in self.gates]
        for name in ("created_at", "since", "started_at", "scored_at", "finished_at", "forced_at"):
            body[name] = None if body[name] is None else to_iso(body[name])
        return body


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


def _run_id(text: str) -> str:
    if not is_run_id(text):
        raise ValueError("its id is none that a run may have")
    return text


def _instant(text: str) -> float:
    instant = float(text)
    if not math.isfinite(instant):
        raise ValueError("it holds a number that is not finite")
    return instant


def _instant_if_known(text: str | None) -> float | None:
    return None if text is None else _instant(text)


def _count_if_known(text: str | None) -> int | None:
    return None if text is None else count_in(text)
