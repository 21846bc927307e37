"""`bench`: holds a rate of requests to the API and prints their latencies by outcome.

A general load generator such as oha does not say what a hit takes and what a computed answer takes, since the outcome
is in the body of an answer. This command reads it, draws entities from the model's own table, and forces a share of the
answers to be computed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import typer

from app.cli.context import OneModel, load_settings, log_warnings_only
from app.cli.output import AsJson, note, print_json, print_rows

if TYPE_CHECKING:
    import httpx

    from inference.settings import ModelSettings, Settings

T = TypeVar("T")

#: entities are drawn from the first rows of the table
_MAX_ENTITIES = 100_000
#: a request sent this much after its due time was delayed by this command or by its connections
_LATE_S = 0.05
#: the API ends slow requests itself; this is for an API that does not answer at all
_PATIENCE_S = 30.0
_PERCENTILES = (50, 95, 99)


def bench(
    model: OneModel = None,
    rate: Annotated[float, typer.Option(min=1, max=5000, metavar="RPS", help="Requests a second.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Duration of the test.")] = 10,
    miss_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that force computing (max_staleness_hours 0).")
    ] = 0.1,
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Requests in flight at once.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Hold a rate of requests to the API and print their latencies by outcome.

    Entities come from the model's table. The requests count in the hit rate like any other.
    """
    import asyncio

    settings = load_settings()
    log_warnings_only()
    name, of_model = settings.model(model)
    entities = _entities(name, of_model, settings)
    rng = random.Random(5)  # noqa: S311 - a load, no secret
    requests = [(rng.choice(entities), rng.random() < miss_share) for _ in range(max(1, round(rate * seconds)))]
    answered = asyncio.run(_send_all(settings, name, requests, rate, connections))
    figures = _figures(answered, rate)
    if as_json:
        print_json({"model": name, **figures})
    else:
        _print(figures)


def _entities(name: str, of_model: ModelSettings, settings: Settings) -> list[str]:
    """Return the first ids of the model's table."""
    from inference.batch.paths import locate_source
    from inference.features import check_key_columns
    from inference.sources import open_any, read_ids, whole_slices

    column = of_model.entity_column
    source = open_any(locate_source(settings, name, of_model, None, confined=False), as_text=[column])
    check_key_columns(source, column, None)
    ids: list[str] = []
    for some in read_ids(source.files, whole_slices(source.files), column):
        ids += filter(None, some.to_pylist())
        if len(ids) >= _MAX_ENTITIES:
            break
    return ids[:_MAX_ENTITIES]


async def _send_all(
    settings: Settings, model: str, requests: Sequence[tuple[str, bool]], rate: float, connections: int
) -> list[Answered]:
    """Send each request (entity, whether its answer must be computed).

    Raises:
        Unavailable: no API answers.
    """
    import httpx

    from app.cli.api_client import client_options, nobody_answers

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, timeout=_PATIENCE_S, **client_options(settings.api)) as client:
        try:
            await client.get("/health/live")
        except httpx.TransportError as error:
            raise nobody_answers(str(client.base_url).rstrip("/")) from error
        return await hold_rate(
            requests, lambda request: _send(client, model, *request), rate_rps=rate, connections=connections
        )


async def _send(client: httpx.AsyncClient, model: str, entity: str, computed: bool) -> str:
    """Return the outcome of one request."""
    import httpx

    params: dict[str, Any] = {"model": model} | ({"max_staleness_hours": 0} if computed else {})
    try:
        response = await client.get(f"/predict/{quote(entity, safe='')}", params=params)
    except httpx.TransportError as error:
        return f"failed: {type(error).__name__}"
    return str(response.json()["outcome"]) if response.is_success else f"failed: HTTP {response.status_code}"


@dataclass(frozen=True)
class Answered:
    """One request. `latency_s` counts from its due time; `late_s` is the part of it before the request was sent."""

    outcome: str
    latency_s: float
    late_s: float


async def hold_rate(
    requests: Sequence[T], send: Callable[[T], Awaitable[str]], *, rate_rps: float, connections: int
) -> list[Answered]:
    """Send each request at its due time, at most `connections` at once; return the answers in the same order.

    `send` returns the outcome. Latency counts from the due time, so that a slow service cannot hide it by delaying
    later requests (coordinated omission).
    """
    import asyncio

    loop = asyncio.get_running_loop()
    begun = loop.time()
    free = asyncio.Semaphore(connections)

    async def send_when_due(position: int, request: T) -> Answered:
        due = begun + position / rate_rps
        await asyncio.sleep(max(0.0, due - loop.time()))
        async with free:
            sent = loop.time()
            outcome = await send(request)
            return Answered(outcome, loop.time() - due, sent - due)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send_when_due(*each)) for each in enumerate(requests)]
    return [task.result() for task in tasks]


def _figures(answered: Sequence[Answered], rate: float) -> dict[str, Any]:
    span_s = max(position / rate + each.latency_s for position, each in enumerate(answered))
    outcomes: dict[str, list[Answered]] = {}
    for each in answered:
        outcomes.setdefault(each.outcome, []).append(each)
    return {
        "requests": len(answered),
        "rate_rps": round(len(answered) / span_s, 1),
        "late": sum(each.late_s > _LATE_S for each in answered),
        "all": _latencies(answered),
        "outcomes": {name: _latencies(outcomes[name]) for name in sorted(outcomes)},
    }


def _latencies(answered: Sequence[Answered]) -> dict[str, Any]:
    import numpy as np

    values = np.percentile([each.latency_s * 1000 for each in answered], _PERCENTILES).tolist()
    named = {f"p{percent}_ms": round(value, 2) for percent, value in zip(_PERCENTILES, values, strict=True)}
    return {"requests": len(answered), **named}


def _print(figures: dict[str, Any]) -> None:
    lines = [*figures["outcomes"].items(), ("all", figures["all"])]
    columns = ("outcome", *figures["all"])
    print_rows(columns, [(name, *values.values()) for name, values in lines])
    note(f"{figures['rate_rps']:g} requests/s; latency counts from the time at which each was due")
    if figures["late"]:
        note(
            f"{figures['late']} of {figures['requests']} were sent over {_LATE_S * 1000:.0f} ms late: the service, "
            "this command or its --connections did not keep up; a lower --rate shows what an answer takes"
        )
