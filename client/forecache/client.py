"""`Client` and `AsyncClient`: the API's calls over pooled connections."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

import httpx

from forecache.answers import Failed, Forgotten, HitRate, Prediction, Predictions, Run, Update
from forecache.calls import Answer, Caller, Pause, Send, Steps
from forecache.errors import DeadlineExceeded, ForecacheError
from forecache.keywords import check_all_keywords
from forecache.requests import ASK_S, OVER, Priority, Requests, Rows, is_worth_waiting, predictions_of, result_of
from forecache.version import __version__

#: requests of one `predict_many` at a time
AT_ONCE = 8
CONNECT_S = 5.0
#: errors after which the server has read nothing of a request
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)

T = TypeVar("T")


def _options(url: str, api_key: str | None, ssl_ca_certs: str | None) -> dict[str, Any]:
    headers = {"User-Agent": f"forecache-client/{__version__}"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    # making a context reads all certificates that the machine trusts: 25 ms that plain HTTP need not pay
    verify: Any = False
    if url.startswith("https:"):
        verify = ssl.create_default_context(cafile=ssl_ca_certs)
    return {
        "headers": headers,
        "verify": verify,
        "limits": httpx.Limits(max_connections=100),
        # a service on this machine is called without the proxy of the environment
        "trust_env": httpx.URL(url).host not in ("localhost", "127.0.0.1", "::1"),
    }


def _public(url: str) -> str:
    """Return a URL without user and password."""
    return str(httpx.URL(url).copy_with(userinfo=b""))


def _request(send: Send) -> dict[str, Any]:
    return {
        "params": dict(send.params),
        "headers": dict(send.headers),
        "content": send.content,
        "timeout": httpx.Timeout(send.timeout_s, connect=min(send.timeout_s, CONNECT_S)),
    }


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)


def _no_answer(error: httpx.TransportError) -> Answer:
    unsent = isinstance(
        error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol
    )
    timed_out = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        text += "; give the file of its authority as ssl_ca_certs"
    return Answer(None, error=text, sent=not unsent, timed_out=timed_out)


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
        self._options = {"transport": transport, **_options(url, api_key, ssl_ca_certs)}
        self._open()
        self._requests = Requests(Caller(_public(self._url), timeout_s, retries, __version__), model)

    def __repr__(self) -> str:
        return f"<Client of {_public(self._url)}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._process = os.getpid()
        self._http = httpx.Client(**self._options)
        self._threads: ThreadPoolExecutor | None = None

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
        if self._process != os.getpid():
            # a fork must not write to its parent's connections
            self._open()
        try:
            return _answer(self._http.request(send.method, self._url + send.path, **_request(send)))
        except httpx.TransportError as error:
            return _no_answer(error)


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
        wait = _Wait(self.id, timeout_s)
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


@check_all_keywords
class AsyncClient:
    """`Client` for asyncio: the same calls, to be awaited. One event loop uses it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 5.0,
        retries: int = 2,
        ssl_ca_certs: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(transport=transport, **_options(url, api_key, ssl_ca_certs))
        self._requests = Requests(Caller(_public(self._url), timeout_s, retries, __version__), model)

    def __repr__(self) -> str:
        return f"<AsyncClient of {_public(self._url)}>"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self,
        entity_id: str | int,
        *,
        model: str | None = None,
        max_staleness_hours: float | None = None,
        timeout_ms: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        explain: str | None = None,
    ) -> Prediction:
        """Return the prediction of one entity, as `Client.predict` does."""
        return await self._run(
            self._requests.predict(entity_id, model, max_staleness_hours, timeout_ms, overrides, explain)
        )

    async def predict_many(
        self,
        entity_ids: Any = None,
        *,
        instances: Any = None,
        model: str | None = None,
        max_staleness_hours: float | None = None,
        timeout_ms: int | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Predictions:
        """Return predictions in order, as `Client.predict_many` does."""
        rows = Rows.of(entity_ids, instances)
        parts = self._requests.predict_parts(rows, model, max_staleness_hours, timeout_ms, overrides)
        return predictions_of(await self._at_once(parts), rows.index)

    async def enqueue(
        self,
        entity_ids: Any = None,
        *,
        instances: Any = None,
        model: str | None = None,
        priority: Priority = "normal",
        timeout_ms: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncJob:
        """Enqueue up to 100 000 predictions, as `Client.enqueue` does; the job can be awaited."""
        rows = Rows.of(entity_ids, instances)
        return self.job(
            await self._run(self._requests.enqueue(rows, model, priority, timeout_ms, overrides, idempotency_key))
        )

    def job(self, job_id: str) -> AsyncJob:
        """Return a job by its id. Asks nothing yet."""
        return AsyncJob(self, job_id)

    async def put_features(
        self,
        entity_id: str | int,
        features: Mapping[str, Any] | list[Any],
        *,
        event_time: datetime | str | None = None,
        model: str | None = None,
    ) -> Update:
        """Store features of an entity, as `Client.put_features` does."""
        return (await self.put_features_of([(entity_id, features, event_time)], model=model))[0]

    async def put_features_of(
        self, items: Iterable[tuple[str | int, Any, datetime | str | None]], *, model: str | None = None
    ) -> list[Update]:
        """Store features of many entities, as `Client.put_features_of` does."""
        return [update for part in self._requests.put_features(items, model) for update in await self._run(part)]

    async def forget(
        self, entity_id: str | int, *, model: str | None = None, until: datetime | str | None = None
    ) -> Forgotten:
        """Have an entity forgotten, as `Client.forget` does."""
        return await self._run(self._requests.forget(entity_id, model, until))

    async def lift(self, entity_id: str | int, *, model: str | None = None) -> Forgotten:
        """Let a forgotten entity be known again, from the next run or update on."""
        return await self._run(self._requests.lift(entity_id, model))

    async def runs(self, *, model: str | None = None, limit: int = 50) -> list[Run]:
        """Return the last runs, newest first."""
        return await self._run(self._requests.runs(model, limit))

    async def run(self, run_id: str) -> Run:
        """Return one run with its progress."""
        return await self._run(self._requests.run(run_id))

    async def start_run(self, *, model: str | None = None, **options: Any) -> Run:
        """Start a run, as `Client.start_run` does."""
        return await self._run(self._requests.start_run(model, options))

    async def hit_rate(self, *, model: str | None = None, window_s: int = 3600) -> HitRate:
        """Return the outcomes of a model's requests in the last `window_s` seconds."""
        return await self._run(self._requests.hit_rate(model, window_s))

    async def _at_once(self, calls: Sequence[Steps[T]]) -> list[T]:
        room = asyncio.Semaphore(AT_ONCE)

        async def run(steps: Steps[T]) -> T:
            async with room:
                return await self._run(steps)

        tasks = [asyncio.ensure_future(run(steps)) for steps in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            # after an error nobody wants the others
            for task in tasks:
                task.cancel()

    async def _run(self, steps: Steps[T]) -> T:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(steps)
                else:
                    step = steps.send(await self._send(step))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # StopIteration is not generic

    async def _send(self, send: Send) -> Answer:
        try:
            async with asyncio.timeout(send.timeout_s):
                return _answer(await self._http.request(send.method, self._url + send.path, **_request(send)))
        except httpx.TransportError as error:
            return _no_answer(error)
        except TimeoutError:
            return Answer(None, error="timeout", timed_out=True)


class AsyncJob:
    """A job of `AsyncClient.enqueue`. Awaiting it waits until it is over, and gives its predictions."""

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id}>"

    async def state(self) -> str:
        """Return `queued`, `running`, `done`, `failed` or `cancelled`."""
        return str((await self._client._run(self._client._requests.job(self.id, 0)))["state"])

    async def cancel(self) -> str:
        """Let workers compute no more of it; return its state."""
        return await self._client._run(self._client._requests.cancel(self.id))

    async def result(self, timeout_s: float | None = None) -> Predictions:
        """Wait until the job is over; return its predictions, as `Job.result` does."""
        wait = _Wait(self.id, timeout_s)
        while True:
            try:
                answer = await self._client._run(self._client._requests.job(self.id, wait.next_s()))
            except ForecacheError as error:
                await asyncio.sleep(wait.pause_after(error))
                continue
            if answer["state"] in OVER:
                return result_of(self.id, answer)

    def __await__(self) -> Any:
        return self.result().__await__()

    async def __aiter__(self) -> AsyncIterator[Prediction | Failed]:
        for item in await self.result():
            yield item


class _Wait:
    """The time that is left to wait for a job."""

    def __init__(self, job_id: str, timeout_s: float | None) -> None:
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._end = None if timeout_s is None else time.monotonic() + timeout_s
        self._asked = False

    def next_s(self) -> float:
        """Return the seconds that the next question may wait; the first one may wait none.

        Raises:
            DeadlineExceeded: the time is up.
        """
        left = ASK_S if self._end is None else self._end - time.monotonic()
        if left <= 0 and self._asked:
            raise _TimeIsUp(f"job {self._job_id} is not over within {self._timeout_s:g} s", code="deadline-exceeded")
        self._asked = True
        return max(0.0, min(left, ASK_S))

    def pause_after(self, error: ForecacheError) -> float:
        """Return the seconds before the next question after an outage; raise any other error."""
        if isinstance(error, _TimeIsUp) or not is_worth_waiting(error):
            raise error
        left = ASK_S if self._end is None else self._end - time.monotonic()
        if left <= 0:
            raise error
        return min(left, error.retry_after_s or 1.0)


class _TimeIsUp(DeadlineExceeded):
    """Raised when the caller's own time for a job is up."""
