"""`cost`: what batch, real time and hybrid cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.arguments import OneModel
from app.cli.context import load_settings, open_deployment
from app.cli.output import AsJson, note, print_json, print_rows
from inference.errors import ForecacheError, SettingsError

if TYPE_CHECKING:
    from inference.economics import BriefEstimate, CostInputs, Estimate, Figure, PriceTable
    from inference.economics.measured import Measured

_BRIEF = "brief"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(cost)


def cost(
    context: typer.Context,
    model: OneModel = None,
    entities: Annotated[float | None, typer.Option(help="How many entities runs predict for.")] = None,
    runs_per_day: Annotated[float | None, typer.Option(help="Runs a day.")] = None,
    throughput: Annotated[float | None, typer.Option(help="Predictions/s of one batch instance.")] = None,
    startup_s: Annotated[float | None, typer.Option(help="Seconds billed before a run's first prediction.")] = None,
    batch_instance_price: Annotated[float | None, typer.Option(help="Price of a batch instance and hour.")] = None,
    spot_discount: Annotated[float | None, typer.Option(help="Discount on batch instances, 0 to 1.")] = None,
    retry_factor: Annotated[float | None, typer.Option(help="Batch work done twice, as a share.")] = None,
    rps: Annotated[float | None, typer.Option(help="Mean requests/s.")] = None,
    peak_rps: Annotated[float | None, typer.Option(help="Requests/s at the peak. Left out: the mean.")] = None,
    instance_price: Annotated[
        float | None, typer.Option(help="Price of an instance and hour; of batch ones too, unless they have their own.")
    ] = None,
    instance_rps: Annotated[float | None, typer.Option(help="Requests/s that one instance computes.")] = None,
    headroom: Annotated[float | None, typer.Option(help="Spare capacity over the peak, 0.5 for half more.")] = None,
    utilisation: Annotated[float | None, typer.Option(help="How far an instance may be used, 0 to 1.")] = None,
    min_replicas: Annotated[float | None, typer.Option(help="Real-time instances that always run.")] = None,
    hit_rate: Annotated[float | None, typer.Option(help="Share of requests that the cache answers, 0 to 1.")] = None,
    redis_price: Annotated[float | None, typer.Option(help="Price of a GB of Redis and month.")] = None,
    bytes_: Annotated[float | None, typer.Option("--bytes", help="Bytes of a prediction in Redis.")] = None,
    generations: Annotated[float | None, typer.Option(help="Generations kept in Redis at once.")] = None,
    replicas: Annotated[float | None, typer.Option(help="Copies of Redis, itself among them.")] = None,
    storage_price: Annotated[float | None, typer.Option(help="Price of a GB of files and month.")] = None,
    storage_bytes: Annotated[float | None, typer.Option(help="Bytes of a prediction in Parquet files.")] = None,
    storage_days: Annotated[float | None, typer.Option(help="Days that files are kept.")] = None,
    instance_type: Annotated[str | None, typer.Option(metavar="NAME", help="Instance of the price table.")] = None,
    batch_instance_type: Annotated[str | None, typer.Option(metavar="NAME", help="The same, for runs.")] = None,
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own table of prices (TOML).")] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="brief: the design brief's own example.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png or .svg.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what batch, real time and hybrid cost a day.

    What is not given is taken from what was measured here, then from the price table, then assumed; each figure says
    where it came from.
    """
    if preset not in (None, _BRIEF):
        raise SettingsError(f"--preset: {preset!r} is not known; the only one is {_BRIEF!r}", field="preset")
    from inference.economics import FIELDS, CostInputs, brief_estimate, estimate, read_prices

    given = {name.rstrip("_"): value for name, value in context.params.items() if value is not None}
    options = {name: given[name] for name in FIELDS if name in given}
    table = read_prices(prices)
    figures = _figures(options, table, model, preset == _BRIEF, instance_type, batch_instance_type)
    inputs = CostInputs.of(figures)
    compared = brief_estimate(inputs) if preset == _BRIEF else estimate(inputs)
    if picture is not None:
        from app.cli.pictures import draw_cost

        draw_cost(inputs, picture, currency=table.currency)
        note(f"drawn: {picture}")
    if as_json:
        print_json(_to_json(compared, inputs, figures, table))
        return
    _print(compared, inputs, figures, table)


def _figures(
    options: dict[str, float],
    table: PriceTable,
    model: str | None,
    is_brief: bool,
    instance: str | None,
    batch_instance: str | None,
) -> dict[str, Figure]:
    """Return each input from the options, else the preset or what was measured, else the prices, else its default."""
    from inference.economics import Basis, Figure, complete_figures
    from inference.economics.brief import BRIEF_FIGURES
    from inference.economics.inputs import check_figure, option_of

    said = {name: Figure(check_figure(name, value), Basis.OPTION, option_of(name)) for name, value in options.items()}
    if "instance_price" in said and batch_instance is None:  # one price is for both
        said.setdefault("batch_instance_price", said["instance_price"])
    priced = table.figures(instance=instance, batch_instance=batch_instance)
    named = {
        name: priced[name]
        for name, chosen in (("instance_price", instance), ("batch_instance_price", batch_instance or instance))
        if chosen is not None
    }
    measured = BRIEF_FIGURES if is_brief else measured_figures(model)
    return complete_figures(said, named, measured, priced)


def measured_figures(model: str | None) -> dict[str, Figure]:
    """Return what was measured of a model; without settings or Redis, nothing, and a note why."""
    found = measured_of(model)
    return {} if found is None else found.figures


def measured_of(model: str | None) -> Measured | None:
    """Return what was measured of one model; None, and a note why, when there is none to ask about or no Redis.

    Raises:
        SettingsError: the settings are wrong.
        UnknownModel: the model is not configured.
    """
    settings = load_settings()
    if model is None and len(settings.models) != 1:
        if settings.models:
            note("nothing measured: several models are configured, and none was named")
        return None
    name, _ = settings.model(model)
    try:
        with open_deployment() as deployment:
            return deployment.measured(name)
    except ForecacheError as error:
        note(f"nothing measured: {error.message}")
        return None


def _to_json(
    compared: Estimate | BriefEstimate, inputs: CostInputs, figures: dict[str, Figure], table: PriceTable
) -> dict[str, Any]:
    from inference.economics import break_even, sensitivity
    from inference.economics.curves import requests_per_entity

    return {
        **compared.to_json(),
        "requests_per_entity_and_day": requests_per_entity(inputs),
        "break_even": break_even(inputs).to_json(),
        "currency": table.currency,
        "prices_as_of": table.as_of.isoformat(),
        "sensitivity": [swing.to_json() for swing in sensitivity(inputs)],
        "inputs": {name: figure.to_json() for name, figure in figures.items()},
    }


def _print(
    compared: Estimate | BriefEstimate, inputs: CostInputs, figures: dict[str, Figure], table: PriceTable
) -> None:
    from inference.economics import FIELDS, BriefEstimate

    told = compared.as_written if isinstance(compared, BriefEstimate) else compared
    batch, realtime, hybrid = told.batch, told.realtime, told.hybrid
    print_rows(
        ("way", f"{table.currency} a day", "per prediction", "per 1000 served", "instances"),
        [
            ("batch", batch.daily, batch.per_prediction, batch.per_1000_served, None),
            ("real time", realtime.daily, realtime.per_prediction, realtime.per_prediction * 1000, realtime.instances),
            ("hybrid", hybrid.daily, None, hybrid.per_1000_served, hybrid.instances),
        ],
    )
    typer.echo("")
    for line in sentences(compared, inputs):
        typer.echo(line)
    typer.echo("")
    print_rows(
        ("input", "value", "unit", "from", "how"),
        [(name, each.value, FIELDS[name].unit, each.origin.value, each.how) for name, each in figures.items()],
    )


def sentences(compared: Estimate | BriefEstimate, inputs: CostInputs) -> list[str]:
    """Return in words what the table does not say."""
    from inference.economics import BriefEstimate, break_even
    from inference.economics.curves import requests_per_entity

    told = compared.as_written if isinstance(compared, BriefEstimate) else compared
    saved, even = told.savings_percent, break_even(inputs)
    lines = [
        f"batch is {abs(saved):.2f} % {'cheaper' if saved >= 0 else 'dearer'} than real time",
        f"of batch, {told.batch.compute:.6g} is computing, {told.batch.memory:.6g} Redis, "
        f"{told.batch.storage:.6g} files",
    ]
    whole = (
        "at any traffic, since real time keeps an instance up all day"
        if even.whole == 0
        else f"from {even.whole:.4g} requests per entity and day"
    )
    lines.append(
        f"break-even: batch is not dearer {whole}, or from {even.shared:.4g} where real-time instances are shared with "
        f"other models (today {requests_per_entity(inputs):.4g})"
    )
    if not told.hybrid.precomputes:
        lines.append(
            f"hybrid: runs cost more than the instances they spare, so the cheapest one caches answers and precomputes "
            f"nothing; with everything precomputed it costs {told.hybrid.everything:.6g}"
        )
    lines.append(f"if a run fails and nothing is cached, {told.hybrid.if_a_run_fails} instances answer all requests")
    if isinstance(compared, BriefEstimate):
        lines.append(f"slip: {compared.slip}")
    return lines
