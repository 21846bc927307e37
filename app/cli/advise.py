"""`advise`: says what to precompute, and what to leave to real time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import AnyModel, load_settings, models_of, with_options
from app.cli.cost import InstanceType, Prices, measured_of
from app.cli.curves import print_summary
from app.cli.output import AsJson, cell_text, note, print_fields, print_json, print_rows
from inference.economics.inputs import FIELDS, Basis, Figure, check_figure, complete_figures, option_of
from inference.economics.rules import FACTS, Approach, check_fact, gather_facts
from inference.errors import SettingsError
from inference.wording import counted

if TYPE_CHECKING:
    from inference.economics.advice import Advice
    from inference.economics.prices import PriceTable
    from inference.settings import Settings

#: inputs of the cost among the options; all other given values are facts
_AMOUNTS = ("entities", "rps")
_OPTIONS = {
    name: Annotated[(bool if fact.is_flag else float) | None, typer.Option(help=fact.help)]
    for name, fact in FACTS.items()
    if fact.help is not None
} | {name: Annotated[float | None, typer.Option(help=FIELDS[name].help)] for name in _AMOUNTS}


@with_options(_OPTIONS)
def advise(
    model: AnyModel = None,
    *,
    instance_type: InstanceType = None,
    prices: Prices = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say where each number comes from.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Put schedule and ttl into the settings file.")] = False,
    as_json: AsJson = False,
    **given: float | bool | None,
) -> None:
    """Say for each model whether batch, real time or hybrid fits, why, and what follows.

    Facts that are not given come from the settings and from measurements.
    """
    from inference.economics.prices import read_prices

    known = {name: float(value) for name, value in given.items() if value is not None}
    settings = load_settings()
    names = models_of(model, settings)
    if not names:
        settings.model(None)  # raises an error that says what to do
    table = read_prices(prices)
    advices = [_advice(name, settings, known, instance_type, table) for name in names]
    if as_json:
        print_json([advice.to_json() for advice in advices])
    else:
        for advice in advices:
            _print(advice, table.currency, explain=explain)
    if write:
        _write(advices, quiet=as_json)


def _advice(
    name: str, settings: Settings, known: Mapping[str, float], instance: str | None, prices: PriceTable
) -> Advice:
    from inference.economics.advice import advise as advise_on
    from inference.economics.measured import Measured

    amounts = {each: check_figure(each, known[each]) for each in _AMOUNTS if each in known}
    answers = {each: check_fact(each, value) for each, value in known.items() if each not in _AMOUNTS}
    measured = measured_of(name) or Measured(name)
    model = settings.models[name]
    facts = gather_facts(_as_options(answers), model, measured)
    measured_figures = dict(measured.figures)
    if "rps" in amounts:  # the measured peak belongs to other traffic
        peak = amounts["rps"] * (facts["peak_ratio"].value if "peak_ratio" in facts else 1.0)
        measured_figures["peak_rps"] = Figure(peak, Basis.OPTION, "--rps, by the ratio of peak to mean")
    figures = complete_figures(_as_options(amounts), measured_figures, prices.figures(instance=instance))
    return advise_on(name, model, measured, facts, figures)


def _as_options(values: Mapping[str, float]) -> dict[str, Figure]:
    return {name: Figure(value, Basis.OPTION, option_of(name)) for name, value in values.items()}


def _print(advice: Advice, currency: str, *, explain: bool) -> None:
    values = {name: with_unit(name, number.value, currency) for name, number in advice.numbers.items()}
    typer.echo(f"{advice.model}: {advice.approach.value} (confidence {advice.confidence.value})")
    for reason in advice.reasons:
        typer.echo(f"  {reason}")
    for unknown in advice.unknowns:
        typer.echo(f"  not sure: {unknown}")
    typer.echo("")
    if explain:
        print_rows(
            ("number", "value", "because"),
            [(name, values[name], number.how) for name, number in advice.numbers.items()],
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
        print_fields({name.replace("_", " "): value for name, value in values.items()})
    typer.echo("")
    print_summary(advice.curves)


def with_unit(name: str, value: float | str | None, currency: str) -> float | str | None:
    """Return a number of the advice as people read it; None and texts as they are."""
    if value is None or isinstance(value, str):
        return value
    if name in ("hit_rate", "answers_within_ttl"):
        return f"{value:.1%}"
    if name in ("cost_per_day", "cost_per_1000_served"):
        return f"{value:.4g} {currency}"
    if name == "break_even":
        return counted(value, "request per entity and day", "requests per entity and day")
    return counted(value, "prediction") if name == "never_read" else value


# --- the settings file ---


def _write(advices: Sequence[Advice], *, quiet: bool) -> None:
    """Put all advice into the settings file or, if the new text cannot be loaded, none. Print the diff to stderr."""
    from inference.onboarding.files import staged
    from inference.settings import load_settings as load
    from inference.settings import settings_file
    from inference.small_files import read_small

    file = settings_file().resolve()  # a symbolic link stays one
    try:
        before = read_small(file).decode()  # keeps its line ends
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be read ({error.strerror or error}): there is nothing to write into"
        ) from error
    after = with_advice(before, advices)
    if after == before:
        note(f"{file} already has this advice: nothing was changed")
        return
    with staged({file: after}) as new:
        load(new.files[file])  # raises if the new file cannot be loaded
        new.commit()
    note(diff(before, after, file.name).rstrip())
    if not quiet:
        note(f"{file} was changed: restart what runs with it")


def with_advice(text: str, advices: Sequence[Advice]) -> str:
    """Return the file's text with the advised schedule and ttl in each `[models.M.batch]`.

    For real time, removes the schedule, so that no runs start. Stored predictions stay.

    Raises:
        SettingsError: the text is not TOML, lacks the section of a model, or cannot be changed safely.
    """
    import tomllib

    import tomlkit

    try:
        wanted = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"forecache.toml is not TOML: {error}") from error
    for advice in advices:
        _rewrite(wanted, advice, dict)
    # under a dotted key, tomlkit writes a new section under a wrong name; an inline table works
    for new_section in (tomlkit.table, tomlkit.inline_table):
        after = _rewritten(text, advices, new_section)
        if after is not None and tomllib.loads(after) == wanted:
            return after
    raise SettingsError("forecache.toml is spelled so that no program can change it: set schedule and ttl there")


def _rewritten(text: str, advices: Sequence[Advice], new_section: Callable[[], Any]) -> str | None:
    """Return the changed text; None if this kind of section is not possible here."""
    import tomlkit

    document = tomlkit.parse(text)
    try:
        for advice in advices:
            _rewrite(document, advice, new_section)
    except ValueError:  # an inline table holds only inline tables
        return None
    after = tomlkit.dumps(document)
    return after if text.endswith("\n\n") else after.rstrip("\n") + "\n"


def diff(before: str, after: str, name: str) -> str:
    """Return the changes as a unified diff; empty if there are none."""
    import difflib

    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), name, name)
    return "".join(lines)


def _rewrite(document: Any, advice: Advice, new_section: Callable[[], Any]) -> None:
    """Change parsed settings in place: plain values, or values of tomlkit."""
    import tomlkit
    from tomlkit.items import Table

    section = document.get("models", {}).get(advice.model)
    if section is None:
        raise SettingsError(
            f"forecache.toml has no section [models.{advice.model}]: it is set elsewhere, change it there",
            field="models",
        )
    if advice.approach is Approach.REALTIME:
        section.get("batch", {}).pop("schedule", None)
        return
    is_new = "batch" not in section
    if is_new:
        section["batch"] = new_section()
    for name in ("schedule", "ttl"):
        value = advice.numbers[name].value
        if section["batch"].get(name) != value:
            section["batch"][name] = value
    if is_new and isinstance(section["batch"], Table):
        section["batch"].add(tomlkit.nl())
