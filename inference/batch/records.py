"""A run as it stands in Redis, and as it is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from inference.batch.gates import Gate
from inference.clock import to_iso


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
    started_at: float | None = None
    finished_at: float | None = None
    chunks_total: int | None = None
    chunks_done: int = 0
    rows_total: int | None = None
    rows_done: int = 0
    rows_quarantined: int = 0
    model_version: int | None = None
    generation: int | None = None
    #: what the plan rests on, as `Fingerprint.to_json` gives it
    fingerprint: dict[str, Any] = field(default_factory=dict)
    #: folder of the Parquet parts; None for none
    parquet_folder: str | None = None
    gates: tuple[Gate, ...] = ()
    #: published although a gate had failed
    forced: bool = False
    error: str | None = None
    #: what the last failed attempt at a chunk said
    last_error: str | None = None

    @property
    def is_partial(self) -> bool:
        """Whether it scores only some rows, into the overlay, and publishes no generation."""
        return self.entities_asked is not None or self.since is not None

    @classmethod
    def from_hash(cls, data: Mapping[bytes, bytes]) -> RunRecord:
        """Decode what HGETALL returned."""
        text = {key.decode(): value.decode() for key, value in data.items()}
        return cls(
            run_id=text["run_id"],
            model=text["model"],
            state=RunState(text["state"]),
            trigger=Trigger(text["trigger"]),
            source=text["source"],
            created_at=float(text["created_at"]),
            entities_asked=_whole(text.get("entities_asked")),
            since=_number(text.get("since")),
            started_at=_number(text.get("started_at")),
            finished_at=_number(text.get("finished_at")),
            chunks_total=_whole(text.get("chunks_total")),
            chunks_done=int(text.get("chunks_done", 0)),
            rows_total=_whole(text.get("rows_total")),
            rows_done=int(text.get("rows_done", 0)),
            rows_quarantined=int(text.get("rows_quarantined", 0)),
            model_version=_whole(text.get("model_version")),
            generation=_whole(text.get("generation")),
            fingerprint=json.loads(text.get("fingerprint", "{}")),
            parquet_folder=text.get("parquet_folder") or None,
            gates=tuple(Gate(**gate) for gate in json.loads(text.get("gates", "[]"))),
            forced=text.get("forced") == "1",
            error=text.get("error"),
            last_error=text.get("last_error"),
        )


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
    started_at: float | None
    finished_at: float | None
    chunks_total: int | None
    chunks_done: int
    rows_total: int | None
    rows_done: int
    rows_quarantined: int
    #: seconds until the last chunk at the rate so far
    eta_s: float | None
    gates: tuple[Gate, ...]
    error: str | None
    model_version: int | None
    generation: int | None
    forced: bool

    @classmethod
    def of(cls, record: RunRecord, *, now: float) -> RunView:
        """Return the view of a record at an instant (epoch seconds of Redis' clock)."""
        own = {name: getattr(record, name) for name in cls.__dataclass_fields__ if name != "eta_s"}
        return cls(**own, eta_s=_eta_s(record, now))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        body = asdict(self)
        body["state"], body["trigger"] = self.state.value, self.trigger.value
        body["gates"] = [gate.to_json() for gate in self.gates]
        for name in ("created_at", "since", "started_at", "finished_at"):
            body[name] = None if body[name] is None else to_iso(body[name])
        return body


def _eta_s(record: RunRecord, now: float) -> float | None:
    if record.state is not RunState.RUNNING or not record.rows_done or not record.started_at:
        return None
    elapsed_s = max(now - record.started_at, 0.0)
    left = max((record.rows_total or 0) - record.rows_done, 0)
    return round(elapsed_s * left / record.rows_done, 1)


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)
