"""Bodies that tell of runs, for the OpenAPI document. Instants are ISO 8601 UTC; null is not known yet."""

from __future__ import annotations

from pydantic import BaseModel


class GateBody(BaseModel):
    """One check before publishing, and what it saw."""

    name: str
    passed: bool
    detail: str


class RunStatusBody(BaseModel):
    """A run. `rows_per_s` and `eta_s` go by the rate since it was started or taken up again."""

    run_id: str
    model: str
    state: str
    trigger: str
    source: str
    created_at: str
    entities_asked: int | None
    since: str | None
    engine: str
    started_at: str | None
    scored_at: str | None
    finished_at: str | None
    chunks_total: int | None
    chunks_done: int
    rows_total: int | None
    rows_done: int
    rows_quarantined: int
    rows_per_s: float | None
    eta_s: float | None
    gates: list[GateBody]
    error: str | None
    model_version: int | None
    generation: int | None
    feature_generation: int | None
    forced: bool
    forced_by: str | None
    forced_at: str | None


class ChunksBody(BaseModel):
    """How many chunks are where; `map` has a character for each, or for each of 60 stretches of them."""

    done: int
    scoring: int
    waiting: int
    unsent: int
    map: str


class PhasesBody(BaseModel):
    """How long each phase took, or has taken so far, in seconds."""

    queued_s: float | None
    scoring_s: float | None
    publishing_s: float | None


class BadRowsBody(BaseModel):
    """Rows left out for one reason; `feature` is null when the whole row or its id is at fault."""

    feature: str | None
    reason: str
    rows: int
    examples: list[str]
    non_finite: bool


class QuarantineBody(BaseModel):
    """Where the rows are that were left out, and why."""

    folder: str | None
    reasons: list[BadRowsBody]


class RunDetailsBody(RunStatusBody):
    """A run looked at closely."""

    chunks: ChunksBody
    attempts: int
    phases: PhasesBody
    quarantine: QuarantineBody
    parquet_folder: str | None
    last_error: str | None


class RunListBody(BaseModel):
    """Runs, the newest first."""

    runs: list[RunStatusBody]


class ServingBody(BaseModel):
    """What serves after a rollback; `held_versions` are not activated again until someone insists."""

    model: str
    generation: int | None
    model_version: int | None
    held_versions: list[int]
