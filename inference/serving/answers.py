"""What a request gets back, and how a worker's reply or a stored entry becomes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from inference.clock import to_iso
from inference.errors import BadInput, Defect, ForecacheError, reported_error
from inference.outcomes import AnswerSource, Outcome
from inference.protocols.tensors import unpack
from inference.schema import Block
from inference.store import Entry
from inference.stored_data import UNREADABLE

#: pieces of answers that are remembered, of each kind
_FRAGMENTS = 4096


class Answer(NamedTuple):
    """One prediction as it leaves the system.

    `entity_id` is None for an instance that the request brought along; `model_version` and `as_of` are
    None for a default, which no model computed from no feature. Instants are epoch seconds. `imputed_features`: those
    in which a default stood for a missing value, of an answer just computed; a stored one does not tell.
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
        """Whether it is older than asked for."""
        return self.outcome.is_stale

    @property
    def degraded(self) -> bool:
        """Whether it is less than the request asked for."""
        return self.outcome.is_degraded

    def to_json_text(self) -> bytes:
        """Return the body of the HTTP contract; numbers that are not finite become null.

        Most of it is the same for all rows of a generation, and spelling it anew takes five times as long.
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


#: what a computation gives for one row: a prediction, or why there is none. An error is a value here, so
#: that one bad row of a micro-batch does not fail the others
Reply = Computed | ForecacheError


def prediction_of(values: Mapping[str, Any]) -> Any:
    """Return a single output's value, or the outputs by name when there are several."""
    return next(iter(values.values())) if len(values) == 1 else dict(values)


def answer_stored(model: str, entity_id: str, entry: Entry, source: AnswerSource, outcome: Outcome) -> Answer:
    """Return the answer that a stored entry gives."""
    return Answer(
        entity_id,
        model,
        entry.model_version,
        prediction_of(entry.values),
        source,
        outcome,
        entry.as_of,
        entry.computed_at,
    )


def answer_computed(model: str, entity_id: str | None, reply: Computed) -> Answer:
    """Return the answer that a worker just computed."""
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
    """Return a worker's result (the JSON of `RealtimeScorer`) as one reply per row, in the order asked.

    A result with another number of rows than asked for fails every row: nobody could tell which is whose.
    """
    with _reading_result():
        items = result.get("predictions", ())
        if len(items) != rows:
            failed = Defect(f"a worker answered {len(items)} of {rows} rows")
            return [failed] * rows
        return [_reply(item, result) for item in items]


@dataclass(frozen=True, slots=True)
class Outputs:
    """A model's own output tensors, by name, and the version that gave them."""

    tensors: Block
    version: int


def outputs_from_result(result: Mapping[str, Any]) -> Outputs:
    """Return a worker's result (the JSON of `TensorScorer`) as tensors.

    Raises:
        ForecacheError: what the worker reports instead.
    """
    with _reading_result():
        _raise_error(result)
        try:
            return Outputs(unpack(result["outputs"]), _version(result["model_version"]))
        except BadInput as error:  # of a request, it would be the client's fault
            raise ValueError(error.message) from error


def explanation_from_result(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a worker's explanation (see `inference.features.gathering`); None where it gives an error for a row.

    Raises:
        ForecacheError: what the worker reports instead.
    """
    with _reading_result():
        _raise_error(result)
        explanation: dict[str, Any] | None = result["explanation"]
        return explanation


@contextmanager
def _reading_result() -> Iterator[None]:
    """Within this, what is no result of a worker's, and which somebody else has written then, is a fault of ours."""
    try:
        yield
    except UNREADABLE as error:
        raise Defect(f"what stands in the place of a worker's result is none ({type(error).__name__})") from error


def _raise_error(result: Mapping[str, Any]) -> None:
    error = result.get("error")
    if error is not None:
        raise reported_error(error)


def _version(told: Any) -> int:
    if type(told) is not int:
        raise TypeError("it is no version")
    return told


def _finite(told: Any) -> float:
    if not math.isfinite(told):
        raise ValueError("it is no instant")
    return float(told)


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
