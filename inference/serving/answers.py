"""Makes answers from stored entries and workers' replies, and judges their freshness."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from inference.clock import to_iso
from inference.errors import (
    ERRORS_BY_CODE,
    BadInput,
    ContractError,
    Defect,
    ForecacheError,
    ModelError,
    PredictionFailed,
    Unavailable,
    reported_error,
)
from inference.outcomes import AnswerSource, Outcome
from inference.protocols.tensors import unpack
from inference.schema import Block
from inference.settings import ModelSettings
from inference.store import Entry, Origin, Pointer
from inference.stored_data import UNREADABLE

#: most fragments of answers that are remembered, of each kind
_FRAGMENTS = 4096


class Answer(NamedTuple):
    """One prediction as a client gets it.

    `entity_id` is None for an instance from the request; `model_version` and `as_of` are
    None for a default, which no model computed. Instants are epoch seconds. `imputed_features`: the features whose
    missing value a default replaced, for an answer just computed; empty for a stored one.
    """

    entity_id: str | None
    model: str
    model_version: int | None
    prediction: Any
    source: AnswerSource
    outcome: Outcome
    as_of: float | None
    computed_at: float
    imputed_features: tuple[str, ...] = ()

    @property
    def cache_hit(self) -> bool:
        """Whether it was stored and fresh."""
        return self.outcome.is_hit

    @property
    def stale(self) -> bool:
        """Whether it is older than requested."""
        return self.outcome.is_stale

    @property
    def degraded(self) -> bool:
        """Whether it is worse than requested."""
        return self.outcome.is_degraded

    def to_json_text(self) -> bytes:
        """Return the body of the HTTP contract; numbers that are not finite become null.

        Most fragments are the same for all rows of a generation; spelling them anew takes five times as long.
        """
        text = b"".join(
            (
                b'{"entity_id":',
                orjson.dumps(self.entity_id),
                _of_model(self.model, self.model_version),
                orjson.dumps(self.prediction),
                _of_outcome(self.source, self.outcome),
                _instant(self.as_of),
                _of_computing(self.computed_at),
            )
        )
        if self.imputed_features:
            return b'%b,"imputed_features":%b}' % (text[:-1], orjson.dumps(self.imputed_features))
        return text


@lru_cache(maxsize=_FRAGMENTS)
def _of_model(model: str, version: int | None) -> bytes:
    return b',"model":%b,"model_version":%b,"prediction":' % (orjson.dumps(model), orjson.dumps(version))


@lru_cache(maxsize=_FRAGMENTS)
def _of_outcome(source: AnswerSource, outcome: Outcome) -> bytes:
    words = {
        "source": source.value,
        "outcome": outcome.value,
        "cache_hit": outcome.is_hit,
        "stale": outcome.is_stale,
        "degraded": outcome.is_degraded,
    }
    return b',%b,"as_of":' % orjson.dumps(words)[1:-1]


@lru_cache(maxsize=_FRAGMENTS)
def _instant(epoch_s: float | None) -> bytes:
    return orjson.dumps(None if epoch_s is None else to_iso(epoch_s))


@lru_cache(maxsize=_FRAGMENTS)
def _of_computing(computed_at: float) -> bytes:
    return b',"computed_at":%b,"timestamp":%b}' % (_instant(computed_at), orjson.dumps(computed_at))


@dataclass(frozen=True, slots=True)
class Computed:
    """One prediction as a worker reports it; instants in epoch seconds."""

    prediction: Any
    model_version: int
    as_of: float | None
    computed_at: float
    imputed_features: tuple[str, ...] = ()


#: the result of one row: a prediction or an error. An error is a value here, so that one bad row of a micro-batch
#: does not fail the others
Reply = Computed | ForecacheError


def prediction_of(values: Mapping[str, Any]) -> Any:
    """Return a single output's value, or the outputs by name when there are several."""
    return next(iter(values.values())) if len(values) == 1 else dict(values)


def answer_stored(model: str, entity_id: str, entry: Entry, outcome: Outcome | None = None) -> Answer:
    """Return the answer from a stored entry. `outcome`: if it is not within its age limit."""
    source, hit = _BY_ORIGIN[entry.origin is _REALTIME]
    return Answer(
        entity_id,
        model,
        entry.model_version,
        prediction_of(entry.values),
        source,
        outcome or hit,
        entry.as_of,
        entry.computed_at,
    )


def answer_computed(model: str, entity_id: str | None, reply: Computed) -> Answer:
    """Return the answer from a worker's reply."""
    return Answer(
        entity_id=entity_id,
        model=model,
        model_version=reply.model_version,
        prediction=reply.prediction,
        source=AnswerSource.REALTIME,
        outcome=Outcome.COMPUTED,
        as_of=reply.as_of,
        computed_at=reply.computed_at,
        imputed_features=reply.imputed_features,
    )


def replies_from_result(result: Mapping[str, Any], rows: int) -> list[Reply]:
    """Return a worker's result (the JSON of `RealtimeScorer`) as one reply per row, in order.

    A result with a wrong number of rows fails every row: nobody knows which result belongs to which row.
    """
    with _reading_result():
        items = result.get("predictions", ())
        if len(items) != rows:
            failed = Defect(f"a worker answered {len(items)} of {rows} rows")
            return [failed] * rows
        return [_reply(item, result) for item in items]


def failed_by_version(result: Mapping[str, Any], rows: Sequence[int], *, brought: bool) -> dict[int, int]:
    """Return each version that a worker called for a task, and how many of the rows failed by its fault.

    `rows`: of each call that the task held. `brought`: the features come from the request, so the client is at fault
    if they do not fit. Empty if the result, that of `RealtimeScorer` or `TensorScorer`, names no version or cannot be
    read.
    """
    faults = PredictionFailed if brought else (PredictionFailed, ContractError, ModelError)
    found: dict[int, int] = {}
    try:
        # of tensors, one result for all rows of a call
        of_calls = (one for times, call in zip(rows, results_of_calls(result), strict=False) for one in [call] * times)
        items = result.get("predictions", of_calls)
        for item in items:
            error, version = item.get("error"), item.get("model_version") or result.get("model_version")
            if type(version) is int:
                failed = error is not None and issubclass(ERRORS_BY_CODE.get(error.get("code"), Defect), faults)
                found[version] = found.get(version, 0) + failed
    except UNREADABLE:  # the request gets an error that says so
        return {}
    return found


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What to call with a request's own tensors.

    `version` None: the active one. `signature` None: the model's own, whose rows have the declared shapes; a signature
    of a SavedModel takes any shapes. `splits`: whether rows may be computed apart, in several calls.
    """

    version: int | None = None
    signature: str | None = None
    splits: bool = True


class Spent(NamedTuple):
    """Microseconds that workers took for calls of a model: to read the inputs, to compute, to pack the outputs."""

    input_us: int = 0
    infer_us: int = 0
    output_us: int = 0


_NOTHING_SPENT = Spent()


@dataclass(frozen=True, slots=True)
class Outputs:
    """A model's own output tensors, by name, and the version that computed them, in how many calls of the model.

    `spent`: by all calls together; `longest_us`: by the one of them that took the most time.
    """

    tensors: Block
    version: int
    calls: int = 1
    spent: Spent = _NOTHING_SPENT
    longest_us: int = 0


def results_of_calls(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the result of each call of a message (the JSON of `TensorScorer`), in order; perhaps not of the last ones.

    Raises:
        Defect: it is no such result.
    """
    with _reading_result():
        return [result, *result.get("more", ())]


def outputs_from_result(result: Mapping[str, Any]) -> Outputs:
    """Return a worker's result (the JSON of `TensorScorer`) as tensors.

    Raises:
        ForecacheError: the error that the worker reports.
    """
    with _reading_result():
        _raise_error(result)
        try:
            # a worker of an earlier release does not tell what it spent
            spent = Spent(*map(int, result.get("spent_us", ())))
            return Outputs(
                unpack(result["outputs"]), _version(result["model_version"]), spent=spent, longest_us=sum(spent)
            )
        except BadInput as error:  # BadInput would blame the client
            raise ValueError(error.message) from error


def explanation_from_result(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a worker's explanation (see `inference.features.gathering`); None if the row has an error.

    Raises:
        ForecacheError: the error that the worker reports.
    """
    with _reading_result():
        _raise_error(result)
        explanation: dict[str, Any] | None = result["explanation"]
        return explanation


@contextmanager
def _reading_result() -> Iterator[None]:
    """Turn parsers' errors inside the block into Defect: the data is not a worker's result."""
    try:
        yield
    except UNREADABLE as error:
        raise Defect(f"a worker's result cannot be read ({type(error).__name__})") from error


def _raise_error(result: Mapping[str, Any]) -> None:
    error = result.get("error")
    if error is not None:
        raise reported_error(error)


def _version(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("it is not a version")
    return value


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError("it is not an instant")
    return float(value)


def _reply(item: Mapping[str, Any], result: Mapping[str, Any]) -> Reply:
    error = item.get("error")
    if error is not None:
        return reported_error(error)
    as_of = item.get("as_of")
    return Computed(
        prediction=item["prediction"],
        model_version=_version(item.get("model_version") or result["model_version"]),
        as_of=None if as_of is None else _finite(as_of),
        computed_at=_finite(result["computed_at"]),
        imputed_features=tuple(item.get("imputed_features", ())),
    )


class Freshness(Enum):
    """What to do with a stored prediction."""

    #: within its age limit: it is the answer
    FRESH = auto()
    #: too old, but computed so recently that computing again would read the same old features
    JUST_COMPUTED = auto()
    #: too old, but within `stale_while_revalidate`: it is the answer, and is computed anew in the background
    REVALIDATE = auto()
    #: too old: compute, and fall back on it if that fails
    STALE = auto()


# looking up enum members takes 5 % of a hit in Python 3.11
_FRESH, _REALTIME = Freshness.FRESH, Origin.REALTIME
#: where an entry came from, and the outcome of a fresh one; index: whether it was computed on demand
_BY_ORIGIN = ((AnswerSource.BATCH, Outcome.HIT_BATCH), (AnswerSource.REALTIME, Outcome.HIT_REALTIME))


@dataclass(frozen=True, slots=True)
class FreshnessRules:
    """A model's age limits, in seconds."""

    batch_ttl_s: float
    realtime_ttl_s: float
    min_recompute_interval_s: float
    stale_while_revalidate_s: float = 0.0

    @classmethod
    def of(cls, model: ModelSettings) -> FreshnessRules:
        """Return the rules of a model's settings."""
        realtime = model.realtime
        return cls(
            batch_ttl_s=model.batch.ttl,
            realtime_ttl_s=realtime.ttl,
            min_recompute_interval_s=realtime.min_recompute_interval,
            stale_while_revalidate_s=realtime.stale_while_revalidate or 0.0,
        )

    def judge(self, entry: Entry, now: float, max_staleness_s: float | None = None) -> Freshness:
        """Judge an entry by the age of its oldest feature.

        An answer that was computed on demand is as fresh as the run's row that it is newer than, if that is fresher by
        its own `ttl`: otherwise an entity that was asked for while the run went on would be computed again and again.

        `max_staleness_s`: the request's own limit, which is strict: it excludes REVALIDATE. None
        means the `ttl` of the entry's origin, 0 forces computing at any age.
        """
        if max_staleness_s == 0 or entry.outdated:
            return Freshness.STALE
        limit = max_staleness_s
        if limit is None:
            limit = self.realtime_ttl_s if entry.origin is _REALTIME else self.batch_ttl_s
        over_s = now - entry.as_of - limit
        if over_s <= 0:
            return _FRESH
        if entry.row_as_of is not None and max_staleness_s is None:
            over_s = min(over_s, now - entry.row_as_of - self.batch_ttl_s)
            if over_s <= 0:
                return _FRESH
        if now - max(entry.computed_at, entry.retried_at or 0.0) < self.min_recompute_interval_s:
            return Freshness.JUST_COMPUTED
        if max_staleness_s is None and over_s <= self.stale_while_revalidate_s:
            return Freshness.REVALIDATE
        return Freshness.STALE


def step_down(
    model: str,
    entity_id: str | None,
    error: ForecacheError,
    *,
    stale: Entry | None = None,
    previous: Entry | None = None,
    default: Any = None,
    now: float,
) -> Answer | ForecacheError:
    """Return the best answer left after `error`, or the error when there is none.

    `default`: the model's declared one; None for none. It replaces only an outage, a missed deadline or our own
    fault. An entity that does not exist, or that the model fails on, gets no default.
    """
    if stale is not None and entity_id is not None:
        return answer_stored(model, entity_id, stale, Outcome.STALE)
    if previous is not None and entity_id is not None:
        return answer_stored(model, entity_id, previous, Outcome.PREVIOUS)
    if default is not None and isinstance(error, Unavailable | Defect):
        return Answer(entity_id, model, None, default, AnswerSource.DEFAULT, Outcome.DEFAULT, None, now)
    return error


def may_serve_previous(entry: Entry, pointer: Pointer) -> bool:
    """Whether a previous generation's entry may be served: not if its model version was rolled back."""
    return entry.model_version not in pointer.held_versions
