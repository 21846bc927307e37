"""The worker's side of real time: entities or instances in, predictions out as JSON. No Celery."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from inference.errors import DeadlineExceeded, Defect, FeaturesUnavailable, ForecacheError, quoted
from inference.failures import Failures
from inference.features import Fallback, FeatureGatherer, Gathered, explain
from inference.features.rows import take
from inference.models import LoadedModel, ModelHost
from inference.models.loaded import vector_hashes
from inference.schema import Block
from inference.serving.answer_sample import AnswerSample
from inference.serving.answering import Answers, Result, Wanted, compute, unknown_entity, usable
from inference.serving.messages import check_message, illegal_ids
from inference.settings import ModelSettings, Settings
from inference.store import Entry, Origin, Table

#: how long this process trusts what it measured of Redis' clock
CLOCK_MAX_AGE_S = 5.0


class RealtimeScorer:
    """Computes predictions on demand and keeps them in the overlay.

    What goes wrong becomes the `error` of the rows it concerns, so that the others are answered; only a message
    that cannot be answered row by row is refused as a whole (BadInput). None as the model means the only one
    configured. A result is `{"model", "model_version", "computed_at", "predictions"}`; each prediction is
    `{"entity_id", "prediction", "as_of"}`, with `"imputed_features"` where defaults stand for missing values, or
    `{"entity_id", "error": {"code", "message", "field"}}`, in the order asked. `model_version` is None when no row
    reached a model; a prediction has one of its own where the canary computed it. `deadline`: epoch seconds in Redis
    time; later than that, the model is not touched.
    """

    def __init__(
        self,
        settings: Settings,
        host: ModelHost,
        predictions: Callable[[str], Table],
        features: Callable[[str], Table],
        fallback: Callable[[str], Fallback | None] = lambda _: None,
        sample: AnswerSample | None = None,
    ) -> None:
        self._settings = settings
        self._host = host
        self._predictions = predictions
        self._features = features
        self._fallback = fallback
        self._sample = sample
        self._clock_measured: tuple[float, float] | None = None
        self._defects = Failures(__name__, "request")
        self._after = Failures(__name__, "prediction.keep")

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
        answers = Answers(len(entity_ids), errors=dict(illegal_ids(entity_ids)))
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
                outputs, done = compute(loaded, wanted, answers)
                if not overrides:
                    # what was made up in an outage is an answer for now only
                    doubtful = np.isin(done.positions, list(answers.doubtful))
                    kept = done.without(doubtful)
                    self._keep(model, of_model, loaded, entity_ids, kept, take(outputs, ~doubtful), now)
                    self._remember_one(model, loaded, entity_ids, wanted, kept, answers, now)
        except Exception as error:  # noqa: BLE001 - `_told` logs it
            answers.fail_rest(self._told(error, model))
        return answers.to_json(model, entity_ids, now)

    def predict_instances(
        self, model: str | None, instances: Sequence[Any], *, deadline: float | None = None
    ) -> Result:
        """Compute the predictions of feature rows that the request brought along. Nothing is kept."""
        check_message("instances", instances, model=model, deadline=deadline)
        answers = Answers(len(instances))
        now = time.time()
        try:
            model, _ = self._settings.model(model)
            now = self.in_time(model, deadline)
            loaded = self._host.get(model)
            answers.version = loaded.record.version
            rows = loaded.vectoriser.features_from_rows(instances, at=now)
            positions = np.arange(len(instances))
            compute(loaded, usable(rows, positions, np.full(len(instances), now), answers), answers)
        except Exception as error:  # noqa: BLE001 - `_told` logs it
            answers.fail_rest(self._told(error, model))
        return answers.to_json(model, [None] * len(instances), now)

    def explain_entity(
        self, model: str | None, entity_ids: Sequence[str], *, deadline: float | None = None, predict: bool = True
    ) -> Result:
        """Tell what one entity's features are now and where they are from; `predict`: with the prediction they make.

        The result has `"explanation"` (see `inference.features.gathering`) beside what `predict_entities` returns for
        the one entity; without `predict` it has no predictions, and `"error"` where nothing could be told.
        """
        check_message("entity_ids", entity_ids, model=model, deadline=deadline, recompute=predict)
        entity_ids = list(entity_ids)[:1]
        answers = Answers(1, errors=dict(illegal_ids(entity_ids)))
        now = time.time()
        explanation = None
        try:
            model, of_model = self._settings.model(model)
            now = self.in_time(model, deadline)
            [(loaded, _)] = self._host.share_out(model, entity_ids, [0])
            answers.version = loaded.record.version
            if not answers.errors:
                gathered = self._gatherer(model, loaded).gather(entity_ids, now=now)
                explanation = explain(gathered, loaded.vectoriser.contract, now, hash_of=partial(_hash_of, loaded))
                wanted = self._judge(model, of_model, gathered, entity_ids, [0], answers)
                if predict:
                    outputs, done = compute(loaded, wanted, answers)
                    if not answers.doubtful:
                        self._keep(model, of_model, loaded, entity_ids, done, outputs, now)
        except Exception as error:  # noqa: BLE001 - `_told` logs it
            answers.fail_rest(self._told(error, model))
        if predict:
            return {**answers.to_json(model, entity_ids, now), "explanation": explanation}
        # what makes no prediction is explained all the same, if anything is known of the entity
        wrong = None if explanation and explanation["known"] else answers.errors.get(0)
        return {"model": model, "explanation": explanation, "error": wrong and wrong.to_json()}

    def _told(self, error: Exception, model: str | None) -> ForecacheError:
        return error if isinstance(error, ForecacheError) else defect(self._defects, error, model)

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
        answers: Answers,
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
        answers: Answers,
        now: float,
    ) -> Wanted:
        asked = [entity_ids[position] for position in todo]
        gathered = self._gatherer(model, loaded).gather(asked, now=now, overrides=overrides)
        return self._judge(model, of_model, gathered, asked, todo, answers)

    def _gatherer(self, model: str, loaded: LoadedModel) -> FeatureGatherer:
        return FeatureGatherer(self._features(model), loaded.vectoriser, self._fallback(model))

    def _judge(
        self,
        model: str,
        of_model: ModelSettings,
        gathered: Gathered,
        asked: Sequence[str],
        todo: Sequence[int],
        answers: Answers,
    ) -> Wanted:
        """Return what can be computed of what was gathered for `asked`, which stand at `todo`; the rest gets errors."""
        wanted = usable(gathered.rows, np.array(todo, dtype=np.intp), gathered.as_of, answers)
        made_up = of_model.realtime.unknown_entity == "defaults"
        # without a default for some feature, the entity stays unknown
        unknown = ~gathered.known & (gathered.rows.rejected if made_up else True)
        for row in np.flatnonzero(unknown).tolist():
            answers.errors[todo[row]] = unknown_entity(model, asked[row])
        for row in np.flatnonzero(gathered.doubtful).tolist():
            answers.doubtful.add(todo[row])
            if todo[row] in answers.errors:  # an outage is never a miss
                answers.errors[todo[row]] = FeaturesUnavailable(f"not all that may know {quoted(asked[row])} answered")
        return wanted.without(unknown[~gathered.rows.rejected])

    def _remember_one(
        self,
        model: str,
        loaded: LoadedModel,
        entity_ids: Sequence[str],
        wanted: Wanted,
        kept: Wanted,
        answers: Answers,
        now: float,
    ) -> None:
        """Remember now and then an answer and what made it, for its parity to be checked."""
        if self._sample is None or not len(kept.positions) or not self._sample.wants(model):
            return
        position = int(kept.positions[0])
        with self._after.kept_here(f"{model} sample", model=model):
            inputs = loaded.vectoriser.inputs(take(wanted.block, wanted.positions == position))
            version = loaded.record.version
            self._sample.remember(model, entity_ids[position], inputs, answers.predictions[position], version, now)

    def _keep(
        self,
        model: str,
        of_model: ModelSettings,
        loaded: LoadedModel,
        entity_ids: Sequence[str],
        done: Wanted,
        outputs: Block,
        now: float,
    ) -> None:
        if not len(done.positions):
            return
        # the answer is right all the same; the next request computes it again
        with self._after.kept_here(model, model=model):
            self._predictions(model).overlay.upsert(
                [entity_ids[position] for position in done.positions],
                loaded.record.signature.outputs,
                outputs,
                as_of=done.as_of,
                computed_at=now,
                model_version=loaded.record.version,
                origin=Origin.REALTIME,
                keep_s=of_model.realtime.keep,
            )


def defect(failures: Failures, error: Exception, model: str | None) -> Defect:
    """Log what nobody foresaw, and return what the caller is told of it."""
    failures.tell_each(error, model=model)
    return Defect("a worker failed on this request, not the model; the worker's log says why")


def _hash_of(loaded: LoadedModel, row: Block) -> str:
    return vector_hashes(loaded.vectoriser.inputs(row))[0]


def _is_recent(entry: Entry, version: int, since: float) -> bool:
    return entry.origin is Origin.REALTIME and entry.model_version == version and entry.computed_at >= since
