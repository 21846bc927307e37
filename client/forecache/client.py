"""`Client`: the API's calls over pooled connections."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

import httpx

from forecache.answers import Failed, Forgotten, HitRate, Prediction, Predictions, Run, Update
from forecache.calls import Answer, Caller, Pause, Send, Steps
from forecache.errors import ForecacheError
from forecache.job_wait import JobWait
from forecache.keywords import check_all_keywords
from forecache.requests import AT_ONCE, OVER, Priority, Requests, Rows, predictions_of, result_of
from forecache.transport import answer_of, connection_options, no_answer, public_url, request_options
from forecache.version import __version__

T = TypeVar("T")


@check_all_keywords
class Client:
    """Asks one deployment over HTTP. Threads may share it; a forked process opens connections of its own.

    `url`: of the API, with its root path if it has one. `model`: of all calls that name none; None: the only one that
    is configured. `timeout_s`: seconds for a call with all its repetitions; the server's budget for an answer is
    `timeout_ms`. `retries`: how often a call is sent again after an outage or a broken connection; 0 where a user
    waits. `ssl_ca_certs`: file of the authority that signed the server's certificate. `transport`: httpx's, for tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 5.0,
        retries: int = 2,
        ssl_ca_certs: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._options = {"transport": transport, **connection_options(url, api_key, ssl_ca_certs)}
        self._open()
        self._requests = Requests(Caller(public_url(self._url), timeout_s, retries, __version__), model)

    def __repr__(self) -> str:
        return f"<Client of {public_url(self._url)}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._http = httpx.Client(**self._options)
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def _open_in_a_fork(self) -> None:
        """Leave its parent's connections to the parent; the parent's threads do not exist here."""
        if self._process != os.getpid():
            self._open()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        if self._threads is not None:
            self._threads.shutdown()

    def predict(
        self,
        entity_id: str | int,
        *,
        model: str | None = None,
        max_staleness_hours: float | None = None,
        timeout_ms: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        explain: str | None = None,
    ) -> Prediction:
        """Return the prediction of one entity.

        `max_staleness_hours`: age limit of a stored answer; 0 forces computing. `timeout_ms`: the server's budget;
        None: the model's own. `overrides`: features that replace stored ones for this answer. `explain`: `"features"`.

        Raises:
            UnknownEntity: no features of it were ever loaded.
            Unavailable: no answer, not even an old one or a default, can be given now.
            ForecacheError: any other refusal.
        """
        return self._run(self._requests.predict(entity_id, model, max_staleness_hours, timeout_ms, overrides, explain))

    def predict_many(
        self,
        entity_ids: Any = None,
        *,
        instances: Any = None,
        model: str | None = None,
        max_staleness_hours: float | None = None,
        timeout_ms: int | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Predictions:
        """Return predictions in order: of ids (a list, a Series), or of instances (rows of features, a DataFrame).

        Any number is cut into requests, eight of which are under way at a time. A row that fails is a `Failed` in its
        place.

        Raises:
            ForecacheError: a request as a whole failed.
        """
        rows = Rows.of(entity_ids, instances)
        parts = self._requests.predict_parts(rows, model, max_staleness_hours, timeout_ms, overrides)
        return predictions_of(self._at_once(parts), rows.index)

    def enqueue(
        self,
        entity_ids: Any = None,
        *,
        instances: Any = None,
        model: str | None = None,
        priority: Priority = "normal",
        timeout_ms: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Enqueue up to 100 000 predictions that workers compute anew, and return the job.

        `idempotency_key`: of calls that shall make only one job, even after a restart of the caller.

        Raises:
            ForecacheError: the job is refused.
        """
        rows = Rows.of(entity_ids, instances)
        return self.job(
            self._run(self._requests.enqueue(rows, model, priority, timeout_ms, overrides, idempotency_key))
        )

    def job(self, job_id: str) -> Job:
        """Return a job by its id, such as one that another process has enqueued. Asks nothing yet."""
        return Job(self, job_id)

    def put_features(
        self,
        entity_id: str | int,
        features: Mapping[str, Any] | list[Any],
        *,
        event_time: datetime | str | None = None,
        model: str | None = None,
    ) -> Update:
        """Store features of an entity, which the next answer uses. `event_time`: they hold since then; None: now.

        Raises:
            ForecacheError: they are refused.
        """
        return self.put_features_of([(entity_id, features, event_time)], model=model)[0]

    def put_features_of(
        self, items: Iterable[tuple[str | int, Any, datetime | str | None]], *, model: str | None = None
    ) -> list[Update]:
        """Store features of many entities; items are (entity id, features, event time or None).

        Each thousand is stored as a whole, or not at all.

        Raises:
            ForecacheError: a part is refused; parts before it are stored.
        """
        return [update for part in self._requests.put_features(items, model) for update in self._run(part)]

    def forget(
        self, entity_id: str | int, *, model: str | None = None, until: datetime | str | None = None
    ) -> Forgotten:
        """Have an entity forgotten: removes what is held of it, and stores nothing of it until `until`, or `lift`.

        If the result is not `done`, call it again later: it may run twice.

        Raises:
            ForecacheError: it is refused, or the deployment cannot do it now.
        """
        return self._run(self._requests.forget(entity_id, model, until))

    def lift(self, entity_id: str | int, *, model: str | None = None) -> Forgotten:
        """Let a forgotten entity be known again, from the next run or update on."""
        return self._run(self._requests.lift(entity_id, model))

    def runs(self, *, model: str | None = None, limit: int = 50) -> list[Run]:
        """Return the last runs, newest first; of all models unless one is named."""
        return self._run(self._requests.runs(model, limit))

    def run(self, run_id: str) -> Run:
        """Return one run with its progress."""
        return self._run(self._requests.run(run_id))

    def start_run(self, *, model: str | None = None, **options: Any) -> Run:
        """Start a run. `options`: the fields of `POST /runs`, such as `delta=True`.

        Raises:
            Conflict: another run of the model goes on.
        """
        return self._run(self._requests.start_run(model, options))

    def hit_rate(self, *, model: str | None = None, window_s: int = 3600) -> HitRate:
        """Return the outcomes of a model's requests in the last `window_s` seconds."""
        return self._run(self._requests.hit_rate(model, window_s))

    def _at_once(self, calls: Sequence[Steps[T]]) -> list[T]:
        if len(calls) == 1:
            return [self._run(calls[0])]
        self._open_in_a_fork()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="forecache")
        return list(self._threads.map(self._run, calls))

    def _run(self, steps: Steps[T]) -> T:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(steps)
                else:
                    step = steps.send(self._send(step))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # StopIteration is not generic

    def _send(self, send: Send) -> Answer:
        self._open_in_a_fork()
        try:
            return answer_of(self._http.request(send.method, self._url + send.path, **request_options(send)))
        except httpx.TransportError as error:
            return no_answer(error)


class Job:
    """A job of `Client.enqueue`. Iterating waits until it is over, and gives its predictions."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def state(self) -> str:
        """Return `queued`, `running`, `done`, `failed` or `cancelled`."""
        return str(self._client._run(self._client._requests.job(self.id, 0))["state"])

    def cancel(self) -> str:
        """Let workers compute no more of it; return its state."""
        return self._client._run(self._client._requests.cancel(self.id))

    def result(self, timeout_s: float | None = None) -> Predictions:
        """Wait until the job is over; return its predictions. None waits as long as it takes, through outages.

        Raises:
            DeadlineExceeded: it is not over within `timeout_s`.
            Conflict: it was cancelled.
            ForecacheError: it failed.
        """
        wait = JobWait(self.id, timeout_s)
        while True:
            try:
                answer = self._client._run(self._client._requests.job(self.id, wait.next_s()))
            except ForecacheError as error:
                time.sleep(wait.pause_after(error))
                continue
            if answer["state"] in OVER:
                return result_of(self.id, answer)

    def __iter__(self) -> Iterator[Prediction | Failed]:
        return iter(self.result())
