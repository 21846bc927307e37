"""`simulate`: replays a trace of requests against several policies, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import OneModel, load_settings, with_options
from app.cli.cost import InstanceType, Prices, measured_of
from app.cli.output import AsJson, note, print_json, print_rows
from inference.economics.inputs import FIELDS, Basis, CostInputs, Figure, check_figure, complete_figures, option_of
from inference.errors import SettingsError

if TYPE_CHECKING:
    from inference.economics.policies import Policy
    from inference.economics.traces import Trace

#: inputs of a cost that the replay finds out
_FOUND_OUT = ("runs_per_day", "rps", "peak_rps", "hit_rate")
_OPTIONS = {
    name: Annotated[float | None, typer.Option(help=field.help)]
    for name, field in FIELDS.items()
    if name not in _FOUND_OUT
}


@with_options(_OPTIONS)
def simulate(
    model: OneModel = None,
    *,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requests: .csv, .parquet or libCacheSim's .oracleGeneral.")
    ] = None,
    entity_column: Annotated[str, typer.Option(help="Column of the entities.")] = "entity",
    time_column: Annotated[str, typer.Option(help="Column of the times.")] = "time",
    time_unit: Annotated[str, typer.Option(help="Unit of times that are numbers: s, ms, us or ns.")] = "s",
    zipf: Annotated[float | None, typer.Option(min=0, max=10, help="Draw requests: Zipf's exponent.")] = None,
    requests: Annotated[int, typer.Option(min=1, max=10**9, help="Drawn requests.")] = 10_000_000,
    days: Annotated[float, typer.Option(min=0.001, max=3660, help="Days that drawn requests take.")] = 7,
    policy: Annotated[
        list[str] | None, typer.Option(metavar="'KEY=VALUE …'", help="A policy to compare; may be repeated.")
    ] = None,
    skip: Annotated[str | None, typer.Option(metavar="DURATION", help="Do not count the first part.")] = None,
    at_entities: Annotated[float, typer.Option(min=1, help="Tell sizes for so many entities.")] = 1e9,
    instance_type: InstanceType = None,
    prices: Prices = None,
    as_json: AsJson = False,
    **given: float | None,
) -> None:
    """Replay requests against policies: hit rate, misses at the peak, workers and cost of each.

    Policies change today's settings, by `ttl`, `every`, `share`, `entities`, `realtime_ttl`, `workers` and others.
    """
    from inference.economics.prices import read_prices
    from inference.economics.simulate import simulate as replayed
    from inference.economics.simulate import to_json

    policies = _policies(model, policy or [])
    skip_s = _duration("--skip", skip)
    options = {
        name: Figure(check_figure(name, value), Basis.OPTION, option_of(name))
        for name, value in given.items()
        if value is not None
    }
    measured = measured_of(model)
    priced = read_prices(prices)
    figures = complete_figures(
        options, {} if measured is None else measured.figures, priced.figures(instance=instance_type)
    )
    read = _trace(trace, (entity_column, time_column, time_unit), zipf, requests, days, figures)
    inputs = _inputs(read, figures)
    _explain(policies, skip_s)
    found = [to_json(replayed(read, each, inputs, skip_s=skip_s), inputs, at_entities) for each in policies]
    if as_json:
        told = {"requests": len(read), "entities": inputs.entities, "days": read.span_s / 86_400, "skipped_s": skip_s}
        used = {name: figure.to_json() for name, figure in figures.items() if name in _OPTIONS}
        print_json({"trace": told, "currency": priced.currency, "policies": found, "inputs": used})
    else:
        _print(read, found, priced.currency)


def _policies(model: str | None, texts: Sequence[str]) -> list[Policy]:
    """Return today's settings, if a model is configured, and the policies of the texts.

    Raises:
        SettingsError: there is nothing to replay against, or a text is wrong.
        UnknownModel: the model is not configured.
    """
    from inference.economics.policies import DEFAULTS, Policy, parse_policy

    settings = load_settings()
    today = None
    if model is not None or len(settings.models) == 1:
        name, of_model = settings.model(model)
        today = Policy.of(f"today ({name})", of_model)
    elif not texts:
        settings.model(None)  # raises an error that says what to do
    base = today or Policy.of("defaults", DEFAULTS)
    return [*([today] if today else []), *(parse_policy(text, base) for text in texts)]


def _duration(option: str, text: str | None) -> float:
    from inference.settings import parse_duration

    try:
        return 0.0 if text is None else parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"{option}: {error}", field=option.strip("-")) from error


def _trace(
    file: Path | None,
    columns: tuple[str, str, str],
    zipf: float | None,
    requests: int,
    days: float,
    figures: dict[str, Figure],
) -> Trace:
    from inference.economics.traces import UNITS_MS, Columns, draw_trace, read_trace

    if (file is None) == (zipf is None):
        raise SettingsError("give either --trace FILE or --zipf EXPONENT", field="trace")
    if columns[2] not in UNITS_MS:
        raise SettingsError(f"--time-unit: {columns[2]!r} is none of {', '.join(UNITS_MS)}", field="time_unit")
    if file is not None:
        return read_trace(file, Columns(*columns))
    if "entities" not in figures:
        raise SettingsError("--zipf needs --entities: how many can be asked for", field="entities")
    entities = max(round(figures["entities"].value), 1)
    return draw_trace(exponent=zipf or 0.0, entities=entities, requests=requests, span_s=days * 86_400)


def _inputs(trace: Trace, figures: dict[str, Figure]) -> CostInputs:
    """Return the inputs of the costs; the table has at least the entities of the trace."""
    rate = Figure(len(trace) / trace.span_s, Basis.MEASURED, "the trace")
    entities = figures.get("entities")
    if entities is None or entities.value < trace.entities:
        figures["entities"] = Figure(trace.entities, Basis.MEASURED, "different entities of the trace")
    figures |= {"rps": rate, "peak_rps": rate}
    return CostInputs.of(figures)


def _explain(policies: Sequence[Policy], skip_s: float) -> None:
    from inference.economics.policies import ALL

    if skip_s == 0 and any(each.precomputed != ALL and each.schedule is not None for each in policies):
        note("runs know only the requests before them, and the first run computes all: --skip leaves such days out")


def _print(trace: Trace, found: Sequence[dict[str, Any]], currency: str) -> None:
    from inference.economics.traces import describe

    note(describe(trace))
    print_rows(
        (
            "policy",
            "hit_rate",
            "stale",
            "no answer",
            "misses_a_minute",
            "misses_a_second",
            "workers",
            f"{currency}_a_day",
        ),
        [_row(each) for each in found],
    )
    at = f"{found[0]['at_entities']['entities']:.3g}"
    typer.echo("")
    print_rows(
        ("policy", "rows_of_a_run", "run_s", f"rows_at_{at}", f"Redis_GB_at_{at}", f"run_h_at_{at}"),
        [
            (
                each["name"],
                each["runs"]["rows"],
                each["runs"]["seconds"],
                each["at_entities"]["rows"],
                each["at_entities"]["redis_bytes"] / 1e9,
                each["at_entities"]["run_s"] / 3600,
            )
            for each in found
        ],
    )


def _row(one: dict[str, Any]) -> tuple[Any, ...]:
    def share(*outcomes: str) -> str:
        return f"{sum(one['outcomes'][each] for each in outcomes) / max(one['requests'], 1):.2%}"

    return (
        one["name"],
        f"{one['hit_rate']:.2%}",
        share("stale", "previous"),
        share("default", "shed"),
        one["peak"]["computations_per_minute"],
        one["peak"]["computations_per_s"],
        one["workers"]["needed"],
        one["cost_per_day"]["total"],
    )
