"""`cost`: compares what batch, real time and hybrid cost, and draws it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import OneModel, load_settings, open_deployment, with_options
from app.cli.output import AsJson, note, print_json, print_rows
from inference.economics.inputs import FIELDS, Basis, CostInputs, Figure, check_figure, complete_figures, option_of
from inference.errors import ForecacheError, SettingsError
from inference.wording import counted

if TYPE_CHECKING:
    from inference.economics.estimate import ArticleEstimate, Estimate
    from inference.economics.measured import Measured
    from inference.economics.prices import PriceTable

#: names of the design article's example; "brief" is an older one
_ARTICLE = ("article", "brief")

InstanceType = Annotated[str | None, typer.Option(metavar="NAME", help="Instance of the price table.")]
Prices = Annotated[Path | None, typer.Option(metavar="FILE", help="Your own table of prices (TOML).")]


@with_options({name: Annotated[float | None, typer.Option(help=field.help)] for name, field in FIELDS.items()})
def cost(
    model: OneModel = None,
    *,
    instance_type: InstanceType = None,
    batch_instance_type: Annotated[str | None, typer.Option(metavar="NAME", help="The same, for runs.")] = None,
    prices: Prices = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="article: the design article's example.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png or .svg.")] = None,
    as_json: AsJson = False,
    **given: float | None,
) -> None:
    """Compare what batch, real time and hybrid cost a day.

    A figure that is not given comes from measurements, else from the price table, else from an assumption; the output
    says from which.
    """
    if preset not in (None, *_ARTICLE):
        raise SettingsError(f"--preset: {preset!r} is not known; the only one is {_ARTICLE[0]!r}", field="preset")
    from inference.economics.estimate import ARTICLE_FIGURES, article_estimate, estimate
    from inference.economics.prices import read_prices

    table = read_prices(prices)
    options = _options(given)
    if "instance_price" in options and batch_instance_type is None:  # one price is for both
        options.setdefault("batch_instance_price", options["instance_price"])
    priced = table.figures(instance=instance_type, batch_instance=batch_instance_type)
    chosen = {
        "instance_price": instance_type is not None,
        "batch_instance_price": (batch_instance_type or instance_type) is not None,
    }
    named = {name: priced[name] for name, is_chosen in chosen.items() if is_chosen}
    figures = complete_figures(options, named, ARTICLE_FIGURES if preset else _measured_figures(model), priced)
    inputs = CostInputs.of(figures)
    compared = article_estimate(inputs) if preset else estimate(inputs)
    if picture is not None:
        draw_cost(inputs, picture, currency=table.currency)
        note(f"drawn: {picture}")
    if as_json:
        print_json(_to_json(compared, inputs, figures, table))
    else:
        _print(compared, inputs, figures, table)


def _options(given: dict[str, float | None]) -> dict[str, Figure]:
    return {
        name: Figure(check_figure(name, value), Basis.OPTION, option_of(name))
        for name, value in given.items()
        if value is not None
    }


def _measured_figures(model: str | None) -> dict[str, Figure]:
    measured = measured_of(model)
    return {} if measured is None else measured.figures


def measured_of(model: str | None) -> Measured | None:
    """Return the measurements of one model. Without one model, or without Redis: None, and a note why.

    Raises:
        SettingsError: the settings are wrong.
        UnknownModel: the model is not configured.
    """
    settings = load_settings()
    if model is None and len(settings.models) != 1:
        if settings.models:
            note("nothing measured: several models are configured, and none is given")
        return None
    name, _ = settings.model(model)
    try:
        with open_deployment() as deployment:
            return deployment.measured(name)
    except ForecacheError as error:
        note(f"nothing measured: {error.message}")
        return None


def _to_json(
    compared: Estimate | ArticleEstimate, inputs: CostInputs, figures: dict[str, Figure], table: PriceTable
) -> dict[str, Any]:
    from inference.economics.curves import break_even, requests_per_entity, sensitivity

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
    compared: Estimate | ArticleEstimate, inputs: CostInputs, figures: dict[str, Figure], table: PriceTable
) -> None:
    from inference.economics.estimate import ArticleEstimate

    shown = compared.as_written if isinstance(compared, ArticleEstimate) else compared
    batch, realtime, hybrid = shown.batch, shown.realtime, shown.hybrid
    print_rows(
        ("way", f"{table.currency} a day", "per prediction", "per 1000 served", "instances"),
        [
            ("batch", batch.daily, batch.per_prediction, batch.per_1000_served, None),
            ("real time", realtime.daily, realtime.per_prediction, realtime.per_prediction * 1000, realtime.instances),
            ("hybrid", hybrid.daily, None, hybrid.per_1000_served, hybrid.instances),
        ],
    )
    typer.echo("")
    for line in _sentences(shown, inputs):
        typer.echo(line)
    if isinstance(compared, ArticleEstimate):
        typer.echo(f"slip: {compared.slip}")
    typer.echo("")
    print_rows(
        ("input", "value", "unit", "from", "how"),
        [(name, each.value, FIELDS[name].unit, each.origin.value, each.how) for name, each in figures.items()],
    )


def _sentences(shown: Estimate, inputs: CostInputs) -> list[str]:
    """Return sentences with figures that are not in the table."""
    from inference.economics.curves import break_even, requests_per_entity

    saved, even = shown.savings_percent, break_even(inputs)
    whole = (
        "at any traffic, since real time keeps an instance up all day"
        if even.whole == 0
        else f"from {even.whole:.4g} requests per entity and day"
    )
    lines = [
        f"batch is {abs(saved):.2f} % {'cheaper' if saved >= 0 else 'dearer'} than real time",
        f"of batch, {shown.batch.compute:.6g} is computing, {shown.batch.memory:.6g} Redis, "
        f"{shown.batch.storage:.6g} files",
        f"break-even: batch is not dearer {whole}, or from {even.shared:.4g} where real-time instances are shared with "
        f"other models (today {requests_per_entity(inputs):.4g})",
    ]
    if not shown.hybrid.precomputes:
        lines.append(
            f"hybrid: runs cost more than the instances that they save, so the cheapest one caches answers and "
            f"precomputes nothing; with everything precomputed it costs {shown.hybrid.everything:.6g}"
        )
    alone = counted(shown.hybrid.if_a_run_fails, "instance answers", "instances answer")
    lines.append(f"if a run fails and nothing is cached, {alone} all requests")
    return lines


# --- the picture ---

#: colours that the colour-blind can tell apart: Okabe and Ito
BATCH, REALTIME, HYBRID, INK, GRID = "#009e73", "#d55e00", "#0072b2", "#333333", "#dddddd"
_LOWER, _HIGHER = "#56b4e9", "#e69f00"
_BARS, _FEWEST_ROWS = 8, 5
#: a bar shorter than this share of the longest is too short to see
_SHORTEST = 0.01


def draw_cost(inputs: CostInputs, file: Path, *, currency: str) -> None:
    """Draw two charts into one file: cost against traffic, and what moves the total. Writes the whole file or none.

    Raises:
        SettingsError: the file's name does not end in .png or .svg, or matplotlib is not installed.
        ForecacheError: the file cannot be written.
    """

    def paint(canvas: Any) -> None:
        left, right = canvas.subplots(1, 2, width_ratios=(1.25, 1))
        _draw_curve(left, inputs, currency)
        _draw_tornado(right, inputs, currency)

    draw(paint, file, (12, 4.8))


def draw(paint: Callable[[Any], None], file: Path, inches: tuple[float, float]) -> None:
    """Have `paint` draw on matplotlib's canvas, and write it whole or not at all. `inches`: width and height.

    Raises:
        SettingsError: the file's name does not end in .png or .svg, or matplotlib is not installed.
        ForecacheError: the file cannot be written.
    """
    suffix = file.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise SettingsError(f"--picture: {file.name!r} does not end in .png or .svg", field="picture")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed: pip install 'forecache[charts]'") from error
    unfinished = file.with_name(f".{file.name}.new{file.suffix}")
    # text stays text, and the same input gives the same file
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "forecache", "font.size": 10}):
        canvas = Canvas(figsize=inches, layout="constrained")
        paint(canvas)
        try:
            canvas.savefig(unfinished, dpi=150, metadata={"Date": None} if suffix == ".svg" else None)
            unfinished.replace(file)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise ForecacheError(f"--picture: {file} cannot be written ({error.strerror})", field="picture") from error


def _draw_curve(axes: Any, inputs: CostInputs, currency: str) -> None:
    from inference.economics.curves import break_even, cost_curve

    curve, even = cost_curve(inputs), break_even(inputs)
    axes.plot(curve.requests, curve.realtime, color=REALTIME, linewidth=2, label="real time")
    axes.plot(curve.requests, curve.hybrid, color=HYBRID, linewidth=2, linestyle=(0, (5, 2)), label="hybrid")
    axes.plot(curve.requests, curve.batch, color=BATCH, linewidth=2, label="batch")
    marks = (
        (curve.now, "today", "-"),
        (even.whole, "break-even", ":"),
        (even.shared, "break-even, shared instances", "--"),
    )
    for at, name, style in marks:
        if at > 0:  # the legend stands above the lines
            axes.axvline(at, ymax=0.68, color=INK, linewidth=1, linestyle=style, label=f"{name}, {at:.3g}")
    axes.set(xscale="log", yscale="log", xlabel="requests per entity and day", ylabel=f"{currency} a day")
    axes.set_title("Cost against traffic", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    tidy(axes)


def _draw_tornado(axes: Any, inputs: CostInputs, currency: str) -> None:
    from inference.economics.curves import SWING, sensitivity
    from inference.economics.estimate import estimate

    moved, now = sensitivity(inputs), estimate(inputs).hybrid.daily
    swings = [swing for swing in moved[:_BARS] if swing.span >= _SHORTEST * moved[0].span][::-1]
    for name, colour in (("at_low", _LOWER), ("at_high", _HIGHER)):
        widths = [getattr(swing, name) - now for swing in swings]
        label = f"{SWING:.0%} {'lower' if name == 'at_low' else 'higher'}"
        axes.barh(range(len(swings)), widths, left=now, color=colour, height=0.6, label=label)
    axes.set_yticks(range(len(swings)), [swing.name.replace("_", " ") for swing in swings])
    axes.axvline(now, color=INK, linewidth=1)
    axes.set(xlabel=f"hybrid, {currency} a day (now {now:.4g})")
    axes.set_title("What moves the hybrid total", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    # the longest bar on top; a few bars are no fatter than many
    axes.set_ylim(len(swings) - max(len(swings), _FEWEST_ROWS) - 1, len(swings) - 0.4)
    tidy(axes)


def tidy(axes: Any) -> None:
    """Leave only what helps to read a chart."""
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
