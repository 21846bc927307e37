"""The worker's side of real time: entities or instances in, predictions out as JSON. No Celery."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import (
    ContractError,
    DeadlineExceeded,
    ForecacheError,
    PredictionFailed,
    StoreUnavailable,
    UnknownEntity,
)
from inference.features import FeatureRows
from inference.features.rows import take
from inference.logs import get_logger
from inference.models import LoadedModel, ModelHost, prediction_values, score_rows
from inference.schema import Block
from inference.serving.messages import check_message, illegal_ids
from inference.settings import ModelSettings, Settings
from inference.store import Entry, Origin, Table

log = get_logger(__name__)

#: how long this process trusts what it measured of Redis' clock
CLOCK_MAX_AGE_S = 5.0

Result = dict[str, Any]


@dataclass
class _Answers:
    """Predictions and errors by position of the request; instants in epoch seconds, Redis time."""

    count: int
    predictions: dict[int, Any] = field(default_factory=dict)
    as_of: dict[int, float] = field(default_factory=dict)
    errors: dict[int, ForecacheError] = field(default_factory=dict)
    version: int | None = None
    #: of rows that another version than `version` computed
    versions: dict[int, int] = field(default_factory=dict)

    def to_json(self, model: str | None, entity_ids: Sequence[str | None], computed_at: float) -> Result:
        items = [self._item(position, entity_id) for position, entity_id in enumerate(entity_ids)]
        return {
            "model": model,
            "model_version": self.version,
            "computed_at": computed_at,
            "predictions": items,
        }

    def fail_all(self, error: ForecacheError) -> None:
        self.errors = dict.fromkeys(range(self.count), error)

    def computed_by(self, version: int, positions: Sequence[int]) -> None:
        if version != self.version:
            self.versions.update(dict.fromkeys(positions, version))

    def _item(self, position: int, entity_id: str | None) -> dict[str, Any]:
        error = self.errors.get(position)
        if error is not None:
            return {"entity_id": entity_id, "error": error.to_json()}
        item = {
            "entity_id": entity_id,
            "prediction": self.predictions[position],
            "as_of": self.as_of[position],
        }
        if position in self.versions:
            item["model_version"] = self.versions[position]
        return item


@dataclass
class _Wanted:
    """Rows to compute: features by name, and for each row its position in the request and its age."""

    block: Block
    positions: npt.NDArray[np.intp]
    as_of: npt.NDArray[np.float64]


class RealtimeScorer:
    """Computes predictions on demand and keeps them in the overlay.

    What goes wrong becomes the `error` of the rows it concerns, so that the others are answered; only a message
    that cannot be answered row by row is refused as a whole (BadInput). None as the model means the only one
    configured. A result is `{"model", "model_version", "computed_at", "predictions"}`; each prediction is
    `{"entity_id", "prediction", "as_of"}` or `{"entity_id", "error": {"code", "message", "field"}}`, in the
    order asked. `model_version` is None when no row reached a model; a prediction has one of its own where the canary
    computed it. `deadline`: epoch seconds in Redis time;
    later than that, the model is not touched.
    """

    def __init__(
        self,
        settings: Settings,
        host: ModelHost,
        predictions: Callable[[str], Table],
        features: Callable[[str], Table],
    ) -> None:
        self._settings = settings
        self._host = host
        self._predictions = predictions
        self._features = features
        self._clock_measured: tuple[float, float] | None = None

    def predict_entities(
        self,
        model: str | None,
        entity_ids: Sequence[str],
        *,
        overrides: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        recompute: bool = True,
    ) -> Result:
        """Compute the predictions of entities from their stored features, and keep them.

        `overrides` replace features of every entity; such answers are not kept. Without `recompute`, an
        entity whose kept answer is younger than `min_recompute_interval` is answered with that.
        """
        check_message(
            "entity_ids", entity_ids, model=model, deadline=deadline, overrides=overrides, recompute=recompute
        )
        answers = _Answers(len(entity_ids), errors=dict(illegal_ids(entity_ids)))
        now = time.time()
        try:
            model, of_model = self._settings.model(model)
            now = self.in_time(model, deadline)
            loaded = self._host.get(model)
            answers.version = loaded.record.version
            todo = [position for position in range(len(entity_ids)) if position not in answers.errors]
            for loaded, positions in self._host.share_out(model, entity_ids, todo):
                answers.computed_by(loaded.record.version, positions)
                if not recompute and not overrides:
                    positions = self._answer_recent(model, of_model, loaded, entity_ids, positions, answers, now)
                wanted = self._find_features(model, of_model, loaded, entity_ids, positions, overrides, answers, now)
                outputs, done = _compute(loaded, wanted, answers)
                if not overrides:
                    self._keep(model, of_model, loaded, entity_ids, done, outputs, now)
        except ForecacheError as error:
            answers.fail_all(error)
        return answers.to_json(model, entity_ids, now)

    def predict_instances(
        self, model: str | None, instances: Sequence[Any], *, deadline: float | None = None
    ) -> Result:
        """Compute the predictions of feature rows that the request brought along. Nothing is kept."""
        check_message("instances", instances, model=model, deadline=deadline)
        answers = _Answers(len(instances))
        now = time.time()
        try:
            model, _ = self._settings.model(model)
            now = self.in_time(model, deadline)
            loaded = self._host.get(model)
            answers.version = loaded.record.version
            rows = loaded.vectoriser.features_from_rows(instances)
            positions = np.arange(len(instances))
            _compute(loaded, _usable(rows, positions, np.full(len(instances), now), answers), answers)
        except ForecacheError as error:
            answers.fail_all(error)
        return answers.to_json(model, [None] * len(instances), now)

    def in_time(self, model: str, deadline: float | None) -> float:
        """Return the present instant in Redis time, unless the deadline has passed."""
        now = self._now(model)
        if deadline is not None and now > deadline:
            raise DeadlineExceeded(f"the task was taken up {now - deadline:.3f} s after its deadline")
        return now

    def _now(self, model: str) -> float:
        """Return Redis' time by this host's clock, which is set against it every few seconds."""
        monotonic = time.monotonic()
        if self._clock_measured is None or monotonic - self._clock_measured[0] > CLOCK_MAX_AGE_S:
            redis_time = self._predictions(model).now()
            # half the round trip has passed since Redis read its clock; from here on the steady clock counts
            answered = time.monotonic()
            self._clock_measured = (answered, redis_time + (answered - monotonic) / 2 - answered)
        return time.monotonic() + self._clock_measured[1]

    def _answer_recent(
        self,
        model: str,
        of_model: ModelSettings,
        loaded: LoadedModel,
        entity_ids: Sequence[str],
        todo: list[int],
        answers: _Answers,
        now: float,
    ) -> list[int]:
        """Answer what was computed moments ago, perhaps by another worker; return the positions left."""
        left = []
        since = now - of_model.realtime.min_recompute_interval
        entries = self._predictions(model).read([entity_ids[position] for position in todo])
        for position, entry in zip(todo, entries, strict=True):
            if entry is not None and _is_recent(entry, loaded.record.version, since):
                values = entry.values
                answers.predictions[position] = next(iter(values.values())) if len(values) == 1 else values
                answers.as_of[position] = entry.as_of
            else:
                left.append(position)
        return left

    def _find_features(
        self,
        model: str,
        of_model: ModelSettings,
        loaded: LoadedModel,
        entity_ids: Sequence[str],
        todo: list[int],
        overrides: Mapping[str, Any] | None,
        answers: _Answers,
        now: float,
    ) -> _Wanted:
        positions = np.array(todo, dtype=np.intp)
        stored = self._features(model).read_block([entity_ids[position] for position in todo]) if todo else None
        found = np.zeros(len(todo), dtype=bool) if stored is None else stored.found
        as_of = np.full(len(todo), now)
        block: Block = {}
        if stored is not None:
            as_of = np.where(found, np.minimum(stored.as_of, now), now)
            block = stored.block
        vectoriser = loaded.vectoriser
        known = vectoriser.features_from_block(take(block, found), int(found.sum()), overrides=overrides)
        wanted = _usable(known, positions[found], as_of[found], answers)
        unknown = positions[~found]
        if not len(unknown):
            return wanted
        if of_model.realtime.unknown_entity == "error":
            for position in unknown:
                answers.errors[int(position)] = _unknown(model, entity_ids[position])
            return wanted
        made_up = vectoriser.features_from_block({}, len(unknown), overrides=overrides)
        usable = _usable(made_up, unknown, as_of[~found], answers)
        for position in unknown:
            if int(position) in answers.errors:  # a feature without a default: the entity stays unknown
                answers.errors[int(position)] = _unknown(model, entity_ids[position])
        return _joined(wanted, usable)

    def _keep(
        self,
        model: str,
        of_model: ModelSettings,
        loaded: LoadedModel,
        entity_ids: Sequence[str],
        done: _Wanted,
        outputs: Block,
        now: float,
    ) -> None:
        if not len(done.positions):
            return
        try:
            self._predictions(model).upsert(
                [entity_ids[position] for position in done.positions],
                loaded.record.signature.outputs,
                outputs,
                as_of=done.as_of,
                computed_at=now,
                model_version=loaded.record.version,
                origin=Origin.REALTIME,
                keep_s=of_model.realtime.keep,
            )
        except StoreUnavailable as error:
            # the answer is right all the same; the next request computes it again
            log.warning("prediction.not_kept", model=model, rows=len(done.positions), error=error.message)


def _compute(loaded: LoadedModel, wanted: _Wanted, answers: _Answers) -> tuple[Block, _Wanted]:
    """Compute the rows, answer them, and return the outputs of those that are good."""
    if not len(wanted.positions):
        return {}, wanted
    scored = score_rows(loaded, wanted.block)
    if scored.reasons:
        # the API tells nobody the model's own words: they belong here
        why = next(iter(scored.reasons.values()))
        log.warning("prediction.failed", model=loaded.model, rows=len(scored.reasons), error=why)
    for row, reason in scored.reasons.items():
        answers.errors[int(wanted.positions[row])] = PredictionFailed(reason)
    good = ~scored.failed
    outputs = take(scored.outputs, good)
    done = _Wanted({}, wanted.positions[good], wanted.as_of[good])
    for position, as_of, value in zip(done.positions, done.as_of, prediction_values(outputs), strict=True):
        answers.predictions[int(position)] = value
        answers.as_of[int(position)] = float(as_of)
    return outputs, done


def _usable(
    rows: FeatureRows, positions: npt.NDArray[np.intp], as_of: npt.NDArray[np.float64], answers: _Answers
) -> _Wanted:
    """Return the rows that can be computed; the others get the reason as their error."""
    for row, why in rows.first_reasons().items():
        named = why.feature and why.feature not in why.reason
        message = f"feature {why.feature!r}: {why.reason}" if named else why.reason
        answers.errors[int(positions[row])] = ContractError(message, field=why.feature or "instances")
    good = ~rows.rejected
    return _Wanted(rows.usable(), positions[good], as_of[good])


def _joined(first: _Wanted, second: _Wanted) -> _Wanted:
    return _Wanted(
        {name: np.concatenate([values, second.block[name]]) for name, values in first.block.items()},
        np.concatenate([first.positions, second.positions]),
        np.concatenate([first.as_of, second.as_of]),
    )


def _is_recent(entry: Entry, version: int, since: float) -> bool:
    return entry.origin is Origin.REALTIME and entry.model_version == version and entry.computed_at >= since


def _unknown(model: str, entity_id: str) -> UnknownEntity:
    return UnknownEntity(
        f"model {model!r} knows no entity {entity_id!r}: its features were never loaded", field="entity_id"
    )
