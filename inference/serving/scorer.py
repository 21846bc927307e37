"""Computes real-time predictions in a worker: entities or instances in, JSON out. No Celery."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from inference.errors import (
    BadInput,
    DeadlineExceeded,
    Defect,
    FeaturesUnavailable,
    ForecacheError,
    NotFound,
    PredictionFailed,
    quoted,
)
from inference.failures import Failures
from inference.features import Fallback, FeatureGatherer, Gathered, explain
from inference.features.rows import take
from inference.logs import get_logger
from inference.models import LoadedModel, ModelHost
from inference.models.loaded import vector_hashes
from inference.models.runtimes.runtime import answering_by
from inference.protocols.tensors import (
    MAX_ANSWER_BYTES,
    bytes_of,
    check_outputs,
    check_tensors,
    most_rows,
    pack,
    unpack,
)
from inference.schema import Block, Signature
from inference.serving.answer_sample import AnswerSample
from inference.serving.answering import (
    Answers,
    Result,
    Wanted,
    check_calls,
    check_message,
    check_tensor_message,
    compute,
    illegal_ids,
    unknown_entity,
    usable,
)
from inference.serving.answers import prediction_of
from inference.settings import ModelSettings, Settings
from inference.store import Entry, Origin, Table, stored_id

log = get_logger(__name__)

#: seconds for which this process uses a measurement of Redis' clock
CLOCK_MAX_AGE_S = 5.0


class RealtimeScorer:
    """Computes predictions on demand and stores them in the overlay.

    A failure becomes the `error` of its rows, so that the other rows are answered; only a message that cannot be
    answered row by row is refused as a whole (BadInput). The model None means the only configured one.
    A result is `{"model", "model_version", "computed_at", "predictions"}`; each prediction is
    `{"entity_id", "prediction", "as_of"}`, with `"imputed_features"` if defaults replace missing values, or
    `{"entity_id", "error": {"code", "message", "field"}}`, in the order of the request. `model_version` is None if no
    row reached a model; a prediction has its own if the canary computed it. `deadline`: epoch seconds in Redis
    time; after it, no model is called.
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
        #: models of which a run was published
        self._published: set[str] = set()
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
        """Compute the predictions of entities from their stored features, and store them.

        `overrides` replace features of every entity; such answers are not stored. Without `recompute`, an
        entity gets its stored answer if that is younger than `min_recompute_interval`.
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
            self._refuse_forgotten(model, entity_ids, answers)
            todo = [position for position in range(len(entity_ids)) if position not in answers.errors]
            for loaded, positions in self._host.share_out(model, entity_ids, todo):
                answers.computed_by(loaded.record.version, positions)
                work = Work(model, of_model, loaded, entity_ids, answers, now)
                if not recompute and not overrides:
                    positions = self._answer_recent(work, positions)
                wanted = work.judge(self._gather(work, positions, overrides), positions, self._before_first_run)
                outputs, done = compute(loaded, wanted, answers)
                if not overrides:
                    if answers.doubtful:  # an answer made from defaults in an outage is not stored
                        doubtful = np.isin(done.positions, list(answers.doubtful))
                        outputs, done = take(outputs, ~doubtful), done.without(doubtful)
                    self._keep(work, done, outputs)
                    self._remember_one(work, wanted, done)
        except Exception as error:  # noqa: BLE001 - `_to_error` logs it
            answers.fail_rest(self._to_error(error, model))
        return answers.to_json(model, entity_ids, now)

    def predict_instances(
        self, model: str | None, instances: Sequence[Any], *, deadline: float | None = None
    ) -> Result:
        """Compute the predictions of the request's own feature rows. Stores nothing."""
        check_message("instances", instances, model=model, deadline=deadline)
        answers = Answers(len(instances))
        now = time.time()
        try:
            model, _ = self._settings.model(model)
            now = self.in_time(model, deadline)
            answer_by = _monotonic(deadline, now)
            loaded = self._host.get(model)
            answers.version = loaded.record.version
            rows = loaded.vectoriser.features_from_rows(instances, at=now)
            positions = np.arange(len(instances))
            # an entity's answer is kept, so there a late one still serves the next caller
            with answering_by(answer_by):
                compute(loaded, usable(rows, positions, np.full(len(instances), now), answers), answers)
        except Exception as error:  # noqa: BLE001 - `_to_error` logs it
            answers.fail_rest(self._to_error(error, model))
        return answers.to_json(model, [None] * len(instances), now)

    def explain_entity(
        self, model: str | None, entity_ids: Sequence[str], *, deadline: float | None = None, predict: bool = True
    ) -> Result:
        """Explain one entity's current features and their sources; with `predict`, also compute its prediction.

        The result is that of `predict_entities` for this entity, and `"explanation"` (see
        `inference.features.gathering`). Without `predict` it has no predictions, and an `"error"` if that fails.
        """
        check_message("entity_ids", entity_ids, model=model, deadline=deadline, recompute=predict)
        entity_ids = list(entity_ids)[:1]
        answers = Answers(1, errors=dict(illegal_ids(entity_ids)))
        now = time.time()
        explanation = None
        try:
            model, of_model = self._settings.model(model)
            now = self.in_time(model, deadline)
            self._refuse_forgotten(model, entity_ids, answers)
            [(loaded, _)] = self._host.share_out(model, entity_ids, [0])
            answers.version = loaded.record.version
            if not answers.errors:
                work = Work(model, of_model, loaded, entity_ids, answers, now)
                gathered = self._gather(work, [0], None)
                explanation = explain(gathered, loaded.vectoriser.contract, now, hash_of=partial(_hash_of, loaded))
                wanted = work.judge(gathered, [0], self._before_first_run)
                if predict:
                    outputs, done = compute(loaded, wanted, answers)
                    if not answers.doubtful:
                        self._keep(work, done, outputs)
        except Exception as error:  # noqa: BLE001 - `_to_error` logs it
            answers.fail_rest(self._to_error(error, model))
        if predict:
            return {**answers.to_json(model, entity_ids, now), "explanation": explanation}
        # a known entity is explained even if it gets no prediction
        wrong = None if explanation and explanation["known"] else answers.errors.get(0)
        return {"model": model, "explanation": explanation, "error": wrong and wrong.to_json()}

    def _refuse_forgotten(self, model: str, entity_ids: Sequence[str], answers: Answers) -> None:
        """Note the error of each entity that is forgotten: also a fallback, or defaults, must not answer for it."""
        legal = [position for position in range(len(entity_ids)) if position not in answers.errors]
        forgotten = self._predictions(model).forgotten
        found = forgotten.find([stored_id(entity_ids[position]) for position in legal])
        for at in np.flatnonzero(found).tolist():
            answers.errors[legal[at]] = forgotten.error()

    def _to_error(self, error: Exception, model: str | None) -> ForecacheError:
        return error if isinstance(error, ForecacheError) else defect(self._defects, error, model)

    def in_time(self, model: str, deadline: float | None) -> float:
        """Return the current Redis time; raise DeadlineExceeded if the deadline has passed."""
        now = self._now(model)
        if deadline is not None and now > deadline:
            raise DeadlineExceeded(f"a worker took the task {now - deadline:.3f} s after its deadline")
        return now

    def _now(self, model: str) -> float:
        """Return Redis' time by this host's clock, which is compared with Redis' clock every few seconds."""
        monotonic = time.monotonic()
        if self._clock_measured is None or monotonic - self._clock_measured[0] > CLOCK_MAX_AGE_S:
            redis_time = self._predictions(model).now()
            # half the round trip has passed since Redis read its clock; from here on the monotonic clock counts
            answered = time.monotonic()
            self._clock_measured = (answered, redis_time + (answered - monotonic) / 2 - answered)
        return time.monotonic() + self._clock_measured[1]

    def _answer_recent(self, work: Work, positions: list[int]) -> list[int]:
        """Use answers that were computed moments ago, perhaps by another worker; return the other positions."""
        left = []
        since = work.now - work.of_model.realtime.min_recompute_interval
        entries = self._predictions(work.model).read(work.ids_at(positions))
        for position, entry in zip(positions, entries, strict=True):
            if entry is not None and _is_recent(entry, work.version, since):
                work.answers.predictions[position] = prediction_of(entry.values)
                work.answers.as_of[position] = entry.as_of
            else:
                left.append(position)
        return left

    def _gather(self, work: Work, positions: Sequence[int], overrides: Mapping[str, Any] | None) -> Gathered:
        gatherer = FeatureGatherer(
            self._features(work.model),
            work.loaded.vectoriser,
            self._fallback(work.model),
            written_by=self._host.written_by(work.model),
        )
        return gatherer.gather(work.ids_at(positions), now=work.now, overrides=overrides)

    def _keep(self, work: Work, done: Wanted, outputs: Block) -> None:
        if not len(done.positions):
            return
        # a failure does not spoil the answer; the next request computes it again
        with self._after.kept_here(work.model, model=work.model):
            self._predictions(work.model).overlay.upsert(
                work.ids_at(done.positions),
                work.loaded.record.signature.outputs,
                outputs,
                as_of=done.as_of,
                computed_at=work.now,
                model_version=work.version,
                origin=Origin.REALTIME,
                keep_s=work.of_model.realtime.keep,
            )

    def _before_first_run(self, work: Work) -> bool:
        """Tell whether the model has a table, and no run of it was ever published."""
        if work.of_model.features is None or work.model in self._published:
            return False
        if self._predictions(work.model).pointer().current is None:
            return True
        self._published.add(work.model)
        return False

    def _remember_one(self, work: Work, wanted: Wanted, kept: Wanted) -> None:
        """Sample an answer and its inputs now and then, for the parity check."""
        if self._sample is None or not len(kept.positions) or not self._sample.wants(work.model):
            return
        position = int(kept.positions[0])
        with self._after.kept_here(f"{work.model} sample", model=work.model):
            inputs = work.loaded.vectoriser.inputs(take(wanted.block, wanted.positions == position))
            prediction = work.answers.predictions[position]
            entity_id = work.entity_ids[position]
            self._sample.remember(work.model, entity_id, inputs, prediction, work.version, work.now)
            if self._predictions(work.model).forgotten.find([stored_id(entity_id)]).any():  # meanwhile
                self._sample.forget(work.model, entity_id)


@dataclass(frozen=True)
class Work:
    """The entities of a request that one version of a model computes. `now`: epoch seconds, Redis time."""

    model: str
    of_model: ModelSettings
    loaded: LoadedModel
    entity_ids: Sequence[str]
    answers: Answers
    now: float

    @property
    def version(self) -> int:
        """The version that computes."""
        return self.loaded.record.version

    def ids_at(self, positions: Iterable[int]) -> list[str]:
        """Return the ids at positions of the request."""
        return [self.entity_ids[position] for position in positions]

    def judge(self, gathered: Gathered, positions: Sequence[int], before_first_run: Callable[[Work], bool]) -> Wanted:
        """Return the gathered rows that can be computed; the other rows get errors."""
        answers = self.answers
        wanted = usable(gathered.rows, np.array(positions, dtype=np.intp), gathered.as_of, answers)
        made_up = self.of_model.realtime.unknown_entity == "defaults"
        # without a default for some feature, the entity stays unknown
        unknown = ~gathered.known & (gathered.rows.rejected if made_up else True)
        is_new = bool(unknown.any()) and before_first_run(self)
        for row in np.flatnonzero(unknown).tolist():
            entity_id = self.entity_ids[positions[row]]
            answers.errors[positions[row]] = unknown_entity(self.model, entity_id, before_first_run=is_new)
        for row in np.flatnonzero(gathered.doubtful).tolist():
            position = positions[row]
            answers.doubtful.add(position)
            if position in answers.errors:  # an outage is never a miss
                entity = quoted(self.entity_ids[position])
                answers.errors[position] = FeaturesUnavailable(f"a source that may know {entity} did not answer")
        return wanted.without(unknown[~gathered.rows.rejected])


def defect(failures: Failures, error: Exception, model: str | None) -> Defect:
    """Log an unexpected error, and return the error for the caller."""
    failures.tell_each(error, model=model)
    return Defect("a worker failed on this request, not the model; the worker's log says why")


def _monotonic(deadline: float | None, now: float) -> float | None:
    """Return a deadline in Redis time as an instant of `time.monotonic`."""
    return None if deadline is None else time.monotonic() + deadline - now


def _hash_of(loaded: LoadedModel, row: Block) -> str:
    return vector_hashes(loaded.vectoriser.inputs(row))[0]


def _is_recent(entry: Entry, version: int, since: float) -> bool:
    return entry.origin is Origin.REALTIME and entry.model_version == version and entry.computed_at >= since


#: returns the current Redis time; raises DeadlineExceeded if the deadline has passed
InTime = Callable[[str, float | None], float]


class TensorScorer:
    """Computes tensors unchanged: the model gets NaN too, and all its outputs are returned.

    A result is `{"model", "model_version", "outputs", "spent_us"}` with packed tensors and the microseconds for reading
    the inputs, computing, and packing the outputs, or `{"error"}` with its code and message, and `"model_version"` if a
    version got the inputs.
    Each request is a call of its own, so that tensors of different shapes never meet.
    """

    def __init__(self, settings: Settings, host: ModelHost, in_time: InTime) -> None:
        self._settings = settings
        self._host = host
        self._in_time = in_time
        self._defects = Failures(__name__, "request")

    def predict_tensors(
        self,
        model: Any,
        inputs: Any,
        *,
        version: Any = None,
        deadline: Any = None,
        signature: Any = None,
        more: Any = None,
    ) -> dict[str, Any]:
        """Compute all rows in one call of the model. `version` None: the active one; another must be loaded already.

        `deadline`: epoch seconds in Redis time; after it, the model is not called. `signature`: one of a SavedModel's,
        which takes tensors of any shape; None for the model's own, which takes rows as declared. `more`: further calls,
        each with its `inputs`, `version` and `signature`. The result has theirs as `more`, in order: only the first
        ones if all would take more than an answer may.
        """
        try:
            check_calls(more)
        except BadInput as error:
            return {"error": error.to_json()}
        result, size = self._call(model, inputs, version, deadline, signature)
        if not more:
            return result
        results: list[dict[str, Any]] = []
        for call in more:
            one, more_bytes = self._call(
                model, call.get("inputs"), call.get("version"), deadline, call.get("signature")
            )
            size += more_bytes
            if size > MAX_ANSWER_BYTES:
                break
            results.append(one)
        return {**result, "more": results}

    def _call(self, model: Any, inputs: Any, version: Any, deadline: Any, signature: Any) -> tuple[dict[str, Any], int]:
        """Return the result of one call, and the bytes of its outputs."""
        loaded = None
        try:
            check_tensor_message(model=model, deadline=deadline, version=version, signature=signature)
            self._settings.model(model)
            answer_by = _monotonic(deadline, self._in_time(model, deadline))
            loaded = self._held(model, version)
            times = [time.perf_counter()]
            tensors = unpack(inputs)
            times.append(time.perf_counter())
            with loaded.traced(most_rows(tensors)), loaded.gpu_lock(), answering_by(answer_by):
                outputs = _rows(loaded, tensors) if signature is None else loaded.call(signature, tensors)
            times.append(time.perf_counter())
            check_outputs(outputs)
            packed = pack(outputs)
            times.append(time.perf_counter())
        except ForecacheError as error:
            if isinstance(error, PredictionFailed):
                # clients never see the model's own message: it belongs here
                log.warning("prediction.failed", model=model, error=error.message)
            called = {} if loaded is None else {"model_version": loaded.record.version}
            return {"error": error.to_json(), **called}, 0
        except Exception as error:  # noqa: BLE001 - `defect` logs it
            return {"error": defect(self._defects, error, model).to_json()}, 0
        spent_us = [round((end - start) * 1e6) for start, end in pairwise(times)]
        result = {"model": model, "model_version": loaded.record.version, "outputs": packed, "spent_us": spent_us}
        return result, bytes_of(outputs)

    def _held(self, model: str, version: int | None) -> LoadedModel:
        """Return a loaded version. A request never makes a worker load a version from disk."""
        if version is not None and version not in self._host.versions().get(model, ()):
            raise NotFound(f"version {version} of model {model!r} is not held by the worker that was asked")
        return self._host.get(model, version)


def _rows(loaded: LoadedModel, tensors: Block) -> Block:
    check_tensors(tensors, loaded.record.signature.inputs)
    return model_outputs(loaded.predict(tensors), loaded.record.signature)


def model_outputs(served: Block, signature: Signature) -> Block:
    """Return outputs in the model's own shapes, in the signature's order."""
    return {
        spec.name: served[spec.name][..., None] if spec.name in signature.columns else served[spec.name]
        for spec in signature.outputs
    }
