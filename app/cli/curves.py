"""`curves`: draws hit rates against ttl, interval, and the share of entities that runs score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import AnyModel, models_of, open_deployment
from app.cli.cost import GRID, HYBRID, INK, InstanceType, Prices, draw, tidy
from app.cli.output import AsJson, note, print_json, print_rows
from inference.errors import SettingsError
from inference.wording import counted

if TYPE_CHECKING:
    from inference.economics.traffic_curves import CurvePoint, TrafficCurve, TrafficCurves


def curves(
    model: AnyModel = None,
    *,
    instance_type: InstanceType = None,
    prices: Prices = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png or .svg; one model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict hit rates from this deployment's own traffic: against ttl, interval, and the share precomputed.

    Each point has bounds, within which the true hit rate lies with 95 %, and its cost a day.
    """
    from inference.economics.prices import read_prices

    table = read_prices(prices)
    with open_deployment() as deployment:
        names = models_of(model, deployment.settings)
        if picture is not None and len(names) != 1:
            raise SettingsError("--picture: name one model, several are configured", field="picture")
        found = [_curves_of(deployment, name, table.figures(instance=instance_type)) for name in names]
    if picture is not None:
        if not found[0].curves:
            raise SettingsError(f"--picture: nothing to draw: {found[0].too_little}", field="picture")
        draw_curves(found[0], picture, currency=table.currency)
        note(f"drawn: {picture}")
    if as_json:
        print_json([each.to_json() for each in found])
        return
    for each in found:
        _print(each, table.currency)


def _curves_of(deployment: Any, name: str, priced: Any) -> TrafficCurves:
    from inference.economics.advice import advise
    from inference.economics.inputs import complete_figures
    from inference.economics.rules import gather_facts

    measured, settings = deployment.measured(name), deployment.settings.models[name]
    figures = complete_figures(measured.figures, priced)
    return advise(name, settings, measured, gather_facts({}, settings, measured), figures).curves


def _print(found: TrafficCurves, currency: str) -> None:
    measured = "" if found.measured is None else f"; measured hit rate within 24 h {found.measured.value:.1%}"
    sample = found.sample
    typer.echo(
        f"{found.model}: {counted(sample.total, 'access', 'accesses')} within {sample.hours:.1f} h, "
        f"{counted(sample.entities, 'entity', 'entities')} in the sample{measured}"
    )
    if found.too_little is not None:
        typer.echo(f"  nothing is advised: {found.too_little}")
    for curve in found.curves:
        typer.echo("")
        print_rows(
            (curve.name.words, "hit rate", "from", "to", f"{currency} a day", ""),
            [
                (
                    curve.label(point),
                    *(f"{each:.1%}" for each in _rates(point)),
                    point.cost_per_day,
                    _mark(curve, point),
                )
                for point in curve.points
            ],
        )
    typer.echo("")


def _rates(point: CurvePoint) -> tuple[float, float, float]:
    return point.hit_rate.value, point.hit_rate.low, point.hit_rate.high


def _mark(curve: TrafficCurve, point: CurvePoint) -> str:
    names = {"today": curve.today, f"advised: {curve.why}": curve.advised}
    return ", ".join(name for name, marked in names.items() if marked == point)


def print_summary(found: TrafficCurves) -> None:
    """Print today's and the advised point of each curve."""
    if found.too_little is not None:
        typer.echo(f"  no hit-rate curves: {found.too_little}")
        return
    print_rows(
        ("hit rate against", "today", "hit rate", "advised", "hit rate", "because"),
        [
            (curve.name.words, curve.label(curve.today), _percent(curve.today), curve.label(curve.advised),
             _percent(curve.advised), curve.why)
            for curve in found.curves
        ],
    )  # fmt: skip
    typer.echo("")


def _percent(point: CurvePoint | None) -> str | None:
    if point is None:
        return None
    value, low, high = _rates(point)
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


# --- the picture ---


def draw_curves(found: TrafficCurves, file: Path, *, currency: str) -> None:
    """Draw all curves into one file, with bounds, today's point and the advised one.

    Raises:
        SettingsError: the file's name does not end in .png or .svg, or matplotlib is not installed.
        ForecacheError: the file cannot be written.
    """
    shown = found.curves

    def paint(canvas: Any) -> None:
        columns = min(len(shown), 3)
        rows = -(-len(shown) // columns)
        axes = canvas.subplots(rows, columns, squeeze=False).ravel().tolist()
        for one, curve in zip(axes, shown, strict=False):
            _draw(one, curve, currency)
        for one in axes[len(shown) :]:
            one.set_axis_off()

    draw(paint, file, (12, 3.6 * -(-len(shown) // 3)))


def _draw(axes: Any, curve: TrafficCurve, currency: str) -> None:
    at = [point.at * (100 if curve.name.is_share else 1) for point in curve.points]
    value, low, high = ([100 * each for each in rates] for rates in zip(*map(_rates, curve.points), strict=True))
    axes.fill_between(at, low, high, color=HYBRID, alpha=0.15, linewidth=0)
    axes.plot(at, value, color=HYBRID, linewidth=2)
    # a ring around the dot, where both are one point
    for name, point, fill, size in (("advised", curve.advised, "white", 13), ("today", curve.today, INK, 7)):
        if point is not None:
            where = point.at * (100 if curve.name.is_share else 1)
            cost = "" if point.cost_per_day is None else f", {currency} {point.cost_per_day:.4g} a day"
            axes.plot([where], [100 * point.hit_rate.value], "o", color=INK, markerfacecolor=fill, markersize=size,
                      label=f"{name}: {curve.label(point)}, {point.hit_rate.value:.1%}{cost}")  # fmt: skip
    axes.set_title(curve.name.words, loc="left", fontweight="bold")
    axes.set(ylabel="hit rate, %", ylim=(0, 102))
    if curve.name.is_share:
        axes.set(xlabel="% of the entities")
    else:
        _scale_durations(axes, at, curve)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    tidy(axes)


def _scale_durations(axes: Any, at: Sequence[float], curve: TrafficCurve) -> None:
    labels = {at: curve.label(point) for at, point in zip(at, curve.points, strict=True)}
    chosen = list(labels)[:: max(len(labels) // 5, 1)]
    axes.set(xscale="log")
    axes.set_xticks(chosen, [labels[each] for each in chosen])
    axes.set_xticks([], minor=True)
