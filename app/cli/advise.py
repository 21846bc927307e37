"""`advise`: what to precompute, and what to leave to real time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.arguments import AnyModel
from app.cli.context import load_settings, models_of
from app.cli.cost import measured_of
from app.cli.output import AsJson, cell_text, note, print_fields, print_json, print_rows
from inference.errors import SettingsError

if TYPE_CHECKING:
    from inference.economics import Figure
    from inference.economics.advice import Advice
    from inference.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(advise)


def advise(
    context: typer.Context,
    model: AnyModel = None,
    latency_ms: Annotated[float | None, typer.Option(help="How long a reader may wait.")] = None,
    max_staleness_hours: Annotated[float | None, typer.Option(help="How old an answer may be.")] = None,
    stable_hours: Annotated[float | None, typer.Option(help="How long a prediction stays right.")] = None,
    feature_ms: Annotated[float | None, typer.Option(help="What one entity's features take to compute.")] = None,
    model_ms: Annotated[float | None, typer.Option(help="What one answer takes to compute.")] = None,
    coverage: Annotated[float | None, typer.Option(help="Share of entities that are asked for, 0 to 1.")] = None,
    peak_ratio: Annotated[float | None, typer.Option(help="Requests at the peak over the mean, from 1.")] = None,
    fresh_features: Annotated[bool | None, typer.Option(help="Features of this very moment are needed.")] = None,
    immediate_feedback: Annotated[bool | None, typer.Option(help="The reader's last action must count.")] = None,
    high_value: Annotated[bool | None, typer.Option(help="A single answer decides much.")] = None,
    mixed_latency: Annotated[bool | None, typer.Option(help="Some readers can wait, others cannot.")] = None,
    cost_matters: Annotated[bool | None, typer.Option(help="Low cost is a goal.")] = None,
    performance_matters: Annotated[bool | None, typer.Option(help="Fast answers are a goal.")] = None,
    must_answer: Annotated[bool | None, typer.Option(help="An answer is needed while a part is down.")] = None,
    uses_clock: Annotated[bool | None, typer.Option(help="The model is told the present time.")] = None,
    entities: Annotated[float | None, typer.Option(help="How many entities runs predict for.")] = None,
    rps: Annotated[float | None, typer.Option(help="Mean requests/s.")] = None,
    instance_type: Annotated[str | None, typer.Option(metavar="NAME", help="Instance of the price table.")] = None,
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own table of prices (TOML).")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say where each number comes from.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Put schedule and ttl into the settings file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say for each model whether batch, real time or hybrid fits, why, and what follows.

    What is not said is taken from the settings and from what was measured.
    """
    from inference.economics.rules import FACTS

    said = {name: value for name, value in context.params.items() if name in FACTS or name in _AMOUNTS}
    settings = load_settings()
    names = models_of(model, settings)
    if not names:
        settings.model(None)  # says what to do
    advices = [_advice(name, settings, said, instance_type, prices) for name in names]
    if as_json:
        print_json([advice.to_json() for advice in advices])
    else:
        for advice in advices:
            _print(advice, explain=explain)
    if write:
        _write(advices, quiet=as_json)


#: figures of the cost among what is said; all else are facts
_AMOUNTS = frozenset({"entities", "rps"})


def _advice(
    name: str, settings: Settings, said: Mapping[str, float | bool | None], instance: str | None, prices: Path | None
) -> Advice:
    from inference.economics import Basis, Figure, complete_figures, read_prices
    from inference.economics.advice import advise as advise_on
    from inference.economics.facts import check_fact, gather_facts
    from inference.economics.inputs import check_figure
    from inference.economics.measured import Measured

    known = {each: float(value) for each, value in said.items() if value is not None}
    amounts = {each: check_figure(each, known[each]) for each in known.keys() & _AMOUNTS}
    answers = {each: check_fact(each, known[each]) for each in known.keys() - _AMOUNTS}
    measured = measured_of(name) or Measured(name)
    own = settings.models[name]
    facts = gather_facts(_as_options(answers), own, measured)
    priced = read_prices(prices).figures(instance=instance)
    found = dict(measured.figures)
    if "rps" in amounts:  # the peak of other traffic says nothing about this one
        peak = amounts["rps"] * (facts["peak_ratio"].value if "peak_ratio" in facts else 1.0)
        found["peak_rps"] = Figure(peak, Basis.OPTION, "--rps, by the ratio of peak to mean")
    figures = complete_figures(_as_options(amounts), found, priced)
    return advise_on(name, own, measured, facts, figures)


def _as_options(values: Mapping[str, float]) -> dict[str, Figure]:
    from inference.economics import Basis, Figure
    from inference.economics.inputs import option_of

    return {name: Figure(value, Basis.OPTION, option_of(name)) for name, value in values.items()}


def _print(advice: Advice, *, explain: bool) -> None:
    typer.echo(f"{advice.model}: {advice.approach.value} (confidence {advice.confidence.value})")
    for reason in advice.reasons:
        typer.echo(f"  {reason}")
    for gap in advice.gaps:
        typer.echo(f"  not sure: {gap}")
    typer.echo("")
    if explain:
        print_rows(
            ("number", "value", "because"),
            [(name, number.value, number.how) for name, number in advice.numbers.items()],
        )
        typer.echo("")
        print_rows(
            ("rule", "speaks for", "holds", "facts"),
            [
                (each.rule.name, each.rule.approach.value, "unknown" if each.holds is None else each.holds,
                 "; ".join(f"{name} {cell_text(figure.value)} ({figure.origin.value}: {figure.how})"
                           for name, figure in each.seen.items()) or None)
                for each in advice.judgement.findings
            ],
        )  # fmt: skip
    else:
        print_fields({name.replace("_", " "): number.value for name, number in advice.numbers.items()})
    typer.echo("")


def _write(advices: Sequence[Advice], *, quiet: bool) -> None:
    """Put the advice into the settings file, whole and checked, or change nothing; the diff goes to stderr."""
    from inference.economics.rewriting import diff, with_advice
    from inference.onboarding import staged
    from inference.settings import load_settings as load
    from inference.settings import settings_file
    from inference.small_files import read_small

    file = settings_file().resolve()  # a link stays one
    try:
        before = read_small(file).decode()  # with the line ends that it has
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be read ({error.strerror or error}): there is nothing to write into"
        ) from error
    after = with_advice(before, advices)
    if after == before:
        note(f"{file} says so already: nothing was changed")
        return
    with staged({file: after}) as fresh:
        load(fresh.files[file])  # raises for what cannot be loaded again
        fresh.commit()
    note(diff(before, after, file.name).rstrip())
    if not quiet:
        note(f"{file} was changed: restart what runs with it")
