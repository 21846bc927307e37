"""`bench`: what requests take here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from app.cli.context import OneModel, load_settings, log_warnings_only
from app.cli.output import AsJson, note, print_json, print_rows

if TYPE_CHECKING:
    import httpx

    from app.cli.pacing import Answered
    from inference.settings import ModelSettings, Settings

#: entities that are asked for, drawn from the head of the table
_MAX_ENTITIES = 100_000
#: a request that went out this much later than it was due was held up by this command, or by its connections
_LATE_S = 0.05
#: the API ends requests by itself; this is for one that does not answer at all
_PATIENCE_S = 30.0
_PERCENTILES = (50, 95, 99)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(bench)


def bench(
    model: OneModel = None,
    rate: Annotated[float, typer.Option(min=1, max=5000, metavar="RPS", help="Requests a second, held.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="For how long.")] = 10,
    miss_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the requests, how many force computing (max_staleness_hours 0).")
    ] = 0.1,
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Requests in flight at once.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Hold a rate of requests to the API and print what they took, by outcome.

    Entities come from the model's table. The requests count in the hit rate like any other.
    """
    settings = load_settings()
    log_warnings_only()
    name, of_model = settings.model(model)
    entities = _entities(name, of_model, settings)
    asks = _plan(entities, round(rate * seconds), miss_share)
    answered = asyncio.run(_ask_all(settings, name, asks, rate, connections))
    figures = _figures(answered, rate)
    if as_json:
        print_json({"model": name, **figures})
    else:
        _print(figures)


def _entities(name: str, of_model: ModelSettings, settings: Settings) -> list[str]:
    """Return ids of the model's table."""
    from inference.batch.sources import locate_source
    from inference.features import check_key_columns
    from inference.sources import open_source, read_ids, whole_slices

    column = of_model.entity_column
    source = open_source(locate_source(settings, name, of_model, None, confined=False), as_text=[column])
    check_key_columns(source, column, None)
    ids: list[str] = []
    for some in read_ids(source.files, whole_slices(source.files), column):
        ids += filter(None, some.to_pylist())
        if len(ids) >= _MAX_ENTITIES:
            break
    return ids[:_MAX_ENTITIES]


def _plan(entities: Sequence[str], count: int, miss_share: float) -> list[tuple[str, bool]]:
    """Return whom to ask for, uniformly, and whether the answer must be computed."""
    rng = random.Random(5)  # noqa: S311 - a load, no secret
    return [(rng.choice(entities), rng.random() < miss_share) for _ in range(max(1, count))]


async def _ask_all(
    settings: Settings, model: str, asks: Sequence[tuple[str, bool]], rate: float, connections: int
) -> list[Answered]:
    import httpx

    from app.cli.http import client_options
    from app.cli.pacing import hold_rate

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, timeout=_PATIENCE_S, **client_options(settings.api)) as client:
        await _check(client)
        return await hold_rate(asks, lambda ask: _ask(client, model, *ask), rate_rps=rate, connections=connections)


async def _check(client: httpx.AsyncClient) -> None:
    """Refuse to measure where nothing answers."""
    import httpx

    from app.cli.http import nobody_answers

    try:
        await client.get("/health/live")
    except httpx.TransportError as error:
        raise nobody_answers(str(client.base_url).rstrip("/")) from error


async def _ask(client: httpx.AsyncClient, model: str, entity: str, computed: bool) -> str:
    import httpx

    params: dict[str, Any] = {"model": model}
    if computed:
        params["max_staleness_hours"] = 0
    try:
        response = await client.get(f"/predict/{quote(entity, safe='')}", params=params)
    except httpx.TransportError as error:
        return f"failed: {type(error).__name__}"
    return str(response.json()["outcome"]) if response.is_success else f"failed: HTTP {response.status_code}"


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

    values = np.percentile([each.latency_s * 1000 for each in answered], _PERCENTILES)
    named: Iterable[tuple[int, Any]] = zip(_PERCENTILES, values, strict=True)
    return {"requests": len(answered), **{f"p{percent}_ms": round(float(value), 2) for percent, value in named}}


def _print(figures: dict[str, Any]) -> None:
    lines = [*figures["outcomes"].items(), ("all", figures["all"])]
    columns = ("outcome", "requests", *(f"p{percent}_ms" for percent in _PERCENTILES))
    print_rows(columns, [(name, *values.values()) for name, values in lines])
    note(f"{figures['rate_rps']:g} requests/s; latency counts from the instant at which each was due")
    if figures["late"]:
        note(
            f"{figures['late']} of {figures['requests']} went out over {_LATE_S * 1000:.0f} ms late: the service, this "
            "command or its --connections did not keep up; a lower --rate tells what an answer takes"
        )
