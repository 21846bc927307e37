"""`AsyncClient`: the same calls for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
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
        self._http = httpx.AsyncClient(transport=transport, **connection_options(url, api_key, ssl_ca_certs))
        self._requests = Requests(Caller(public_url(self._url), timeout_s, retries, __version__), model)

    def __repr__(self) -> str:
        return f"<AsyncClient of {public_url(self._url)}>"

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
                return answer_of(await self._http.request(send.method, self._url + send.path, **request_options(send)))
        except httpx.TransportError as error:
            return no_answer(error)
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
        wait = JobWait(self.id, timeout_s)
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
