"""Builds the calls of both clients: paths, bodies, and what is made of the answers."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from forecache.answers import Failed, Forgotten, HitRate, Prediction, Predictions, Run, Update, item_of
from forecache.calls import Caller, Steps
from forecache.errors import BadRequest, Conflict, ForecacheError, Unavailable, error_of
from forecache.inputs import body_of, entity_id_of, entity_ids_of, index_of, instances_of, instant_of, parts_of

#: rows of one request for predictions and updates, and of one job
MAX_ROWS, MAX_JOB_ROWS = 1_000, 100_000
#: bytes of one request's rows; the API takes 8 MiB
MAX_BYTES = 7 * 2**20
#: seconds that one question for a job's state waits at the server
ASK_S = 20.0
#: requests of one `predict_many` at a time
AT_ONCE = 8

Priority = Literal["low", "normal", "high"]
OVER = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Rows:
    """The rows of a request: ids or instances, by the name of their field; `index` is that of a pandas object."""

    field: Literal["entity_ids", "instances"]
    values: Sequence[Any]
    index: Any

    @classmethod
    def of(cls, entity_ids: Any, instances: Any) -> Rows:
        """Return the rows that a caller gave.

        Raises:
            BadRequest: both or none were given, or one is of a wrong kind.
        """
        if (entity_ids is None) == (instances is None):
            raise BadRequest("give either entity_ids or instances", field="entity_ids")
        if instances is not None:
            return cls("instances", instances_of(instances), index_of(instances))
        return cls("entity_ids", entity_ids_of(entity_ids), index_of(entity_ids))

    def parts(self) -> list[Sequence[Any]]:
        """Return the rows in parts that one request may hold."""
        parts: list[Sequence[Any]] = []
        for part in parts_of(self.values, MAX_ROWS):
            size = len(body_of(part)) if self.field == "instances" else 0
            parts += parts_of(part, max(1, len(part) * MAX_BYTES // size)) if size > MAX_BYTES else [part]
        return parts


class Requests:
    """Builds calls for one client. `model` is the model of calls that name none."""

    def __init__(self, caller: Caller, model: str | None) -> None:
        self._caller = caller
        self._model = model

    def predict(
        self,
        entity_id: Any,
        model: str | None,
        max_staleness_hours: float | None,
        timeout_ms: int | None,
        overrides: Mapping[str, Any] | None,
        explain: str | None,
    ) -> Steps[Prediction]:
        """Return the call that gives the prediction of one entity."""
        name, terms = entity_id_of(entity_id), self._terms(model, max_staleness_hours, timeout_ms)
        if overrides is None and name not in (".", ".."):
            answer = yield from self._caller.call(
                "GET",
                f"/predict/{quote(name, safe='')}",
                params={**terms, "explain": explain},
                timeout_s=self._patience(timeout_ms),
            )
            return Prediction.from_json(answer)
        if explain is not None:
            raise BadRequest("explain: cannot be combined with overrides", field="explain")
        [item] = yield from self._items({**terms, "entity_ids": [name], "overrides": overrides}, timeout_ms)
        if isinstance(item, Failed):
            raise item.error
        return item

    def predict_parts(
        self,
        rows: Rows,
        model: str | None,
        max_staleness_hours: float | None,
        timeout_ms: int | None,
        overrides: Mapping[str, Any] | None,
    ) -> list[Steps[list[Prediction | Failed]]]:
        """Return the calls that together give all predictions, in the order of the rows."""
        terms = {**self._terms(model, max_staleness_hours, timeout_ms), "overrides": overrides}
        return [self._items({**terms, rows.field: part}, timeout_ms) for part in rows.parts()]

    def _items(self, body: Mapping[str, Any], timeout_ms: int | None) -> Steps[list[Prediction | Failed]]:
        answer = yield from self._caller.call("POST", "/predict", body=body, timeout_s=self._patience(timeout_ms))
        return [item_of(item) for item in answer["predictions"]]

    def _patience(self, timeout_ms: int | None) -> float | None:
        """Return the seconds for a call: at least the client's own, and longer than the server's budget."""
        return None if timeout_ms is None else max(self._caller.timeout_s, timeout_ms / 1000 + 1.0)

    def _terms(self, model: str | None, max_staleness_hours: float | None, timeout_ms: int | None) -> dict[str, Any]:
        return {
            "model": model or self._model,
            "max_staleness_hours": max_staleness_hours,
            "timeout_ms": timeout_ms,
        }

    def enqueue(
        self,
        rows: Rows,
        model: str | None,
        priority: Priority,
        timeout_ms: int | None,
        overrides: Mapping[str, Any] | None,
        idempotency_key: str | None,
    ) -> Steps[str]:
        """Return the call that enqueues a job and gives its id."""
        if len(rows.values) > MAX_JOB_ROWS:
            raise BadRequest(f"{rows.field} holds {len(rows.values)}: at most {MAX_JOB_ROWS} a job", field=rows.field)
        answer = yield from self._caller.call(
            "POST",
            "/predictions",
            body={
                **self._terms(model, None, timeout_ms),
                rows.field: rows.values,
                "priority": priority,
                "overrides": overrides,
            },
            # so a repetition gives the same job
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )
        return str(answer["task_id"])

    def job(self, job_id: str, wait_s: float) -> Steps[dict[str, Any]]:
        """Return the call that gives a job's state, once it is over or after `wait_s` seconds."""
        path = f"/predictions/{quote(job_id, safe='')}"
        timeout_s = wait_s + self._caller.timeout_s
        answer: dict[str, Any] = yield from self._caller.call(
            "GET", path, params={"wait_s": round(wait_s, 3)}, timeout_s=timeout_s
        )
        return answer

    def cancel(self, job_id: str) -> Steps[str]:
        """Return the call that cancels a job and gives its state."""
        answer = yield from self._caller.call("DELETE", f"/predictions/{quote(job_id, safe='')}")
        return str(answer["state"])

    def put_features(
        self, items: Iterable[tuple[Any, Any, datetime | str | None]], model: str | None
    ) -> list[Steps[list[Update]]]:
        """Return the calls that store features; items are (entity id, features, event time)."""
        bodies = [_feature_item(*item) for item in items]
        return [self._put(part, model) for part in parts_of(bodies, MAX_ROWS)]

    def _put(self, items: Sequence[Mapping[str, Any]], model: str | None) -> Steps[list[Update]]:
        answer = yield from self._caller.call(
            "PUT",
            "/features",
            params={"model": model or self._model},
            body={"items": items},
            # without its time, an update that is repeated later could hide another one
            repeatable=all("event_time" in item for item in items),
        )
        return [Update.from_json(item) for item in answer["items"]]

    def forget(self, entity_id: Any, model: str | None, until: datetime | str | None) -> Steps[Forgotten]:
        """Return the call that forgets an entity."""
        params = {"until": instant_of(until, "until"), "wait_s": round(min(ASK_S, self._caller.timeout_s / 2), 3)}
        return (yield from self._entity("DELETE", entity_id, model, params))

    def lift(self, entity_id: Any, model: str | None) -> Steps[Forgotten]:
        """Return the call that takes an entity off the list of forgotten ones."""
        return (yield from self._entity("PUT", entity_id, model, {}))

    def _entity(self, method: str, entity_id: Any, model: str | None, params: Mapping[str, Any]) -> Steps[Forgotten]:
        path = f"/entities/{quote(entity_id_of(entity_id), safe='')}"
        answer = yield from self._caller.call(method, path, params={"model": model or self._model, **params})
        return Forgotten.from_json(answer)

    def runs(self, model: str | None, limit: int) -> Steps[list[Run]]:
        """Return the call that gives the last runs, newest first."""
        answer = yield from self._caller.call("GET", "/runs", params={"model": model or self._model, "limit": limit})
        return [Run.from_json(item) for item in answer["runs"]]

    def run(self, run_id: str) -> Steps[Run]:
        """Return the call that gives one run."""
        return Run.from_json((yield from self._caller.call("GET", f"/runs/{quote(run_id, safe='')}")))

    def start_run(self, model: str | None, options: Mapping[str, Any]) -> Steps[Run]:
        """Return the call that starts a run."""
        body = {"model": model or self._model, **options}
        return Run.from_json((yield from self._caller.call("POST", "/runs", body=body, repeatable=False)))

    def hit_rate(self, model: str | None, window_s: int) -> Steps[HitRate]:
        """Return the call that gives a hit rate."""
        params = {"model": model or self._model, "window_s": window_s}
        return HitRate.from_json((yield from self._caller.call("GET", "/hit-rate", params=params)))


def _feature_item(entity_id: Any, features: Any, event_time: datetime | str | None) -> dict[str, Any]:
    item = {"entity_id": entity_id_of(entity_id), "features": features}
    instant = instant_of(event_time, "event_time")
    return item if instant is None else {**item, "event_time": instant}


def predictions_of(parts: Iterable[Sequence[Prediction | Failed]], index: Any) -> Predictions:
    """Return the predictions of all parts in order."""
    return Predictions([item for part in parts for item in part], index)


def result_of(job_id: str, answer: Mapping[str, Any]) -> Predictions:
    """Return the result of a job that is over.

    Raises:
        Conflict: it was cancelled.
        ForecacheError: it failed; the error says why.
    """
    if answer["state"] == "done":
        return Predictions([item_of(item) for item in answer["result"]["predictions"]])
    if answer["state"] == "cancelled":
        raise Conflict(f"job {job_id} was cancelled", code="conflict")
    raise error_of(answer.get("error") or {"detail": f"job {job_id} failed", "status": 500})


def is_worth_waiting(error: ForecacheError) -> bool:
    """Return whether a question for a job's state should be asked again after this error."""
    return isinstance(error, Unavailable)
