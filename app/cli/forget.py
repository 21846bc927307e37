"""`forget`: removes what is held of an entity, and keeps it away; shows and ends that."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.context import complete_model, model_and, models_of, open_deployment
from app.cli.output import AsJson, print_json
from inference.clock import to_iso

if TYPE_CHECKING:
    from inference.forgetting import ForgetReport, Forgetting
    from inference.settings import Settings


def forget(
    first: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|ENTITY", help="The model, if several are configured.", autocompletion=complete_model
        ),
    ] = None,
    second: Annotated[
        str | None, typer.Argument(metavar="ENTITY", help="The entity id; one that begins with - after a lone --.")
    ] = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Forget the entity in every model.")] = False,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When it may come back: ISO 8601, or a duration such as 90d. By default never."
        ),
    ] = None,
    lift: Annotated[bool, typer.Option("--lift", help="End it: runs and answers may use the entity again.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show who is forgotten, by keyed digests, not ids.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is held of an entity, and leave it out of all runs and answers from now on.

    Says place by place what was removed; exit 1 if something is left. It may run twice: then it finds less.
    """
    with open_deployment() as deployment:
        forgetting, settings = deployment.forgetting, deployment.settings
        if show:
            _print_list(forgetting, models_of(first, settings), as_json=as_json)
            return
        names, entity = _named(first, second, settings, all_models=all_models)
        if lift:
            was_listed = {name: forgetting.lift(name, entity) for name in names}
            if as_json:
                print_json([{"model": name, "lifted": done} for name, done in was_listed.items()])
            else:
                for name, done in was_listed.items():
                    typer.echo(f"{name}: {'may be known again' if done else 'it was not forgotten'}")
            return
        ends = None if until is None else _instant(until, deployment.cache.now())
        reports = [forgetting.forget(name, entity, until=ends) for name in names]
    if as_json:
        print_json([asdict(report) for report in reports])
    else:
        for report in reports:
            _print_report(report)
    if not all(report.done for report in reports):
        raise typer.Exit(1)


def _named(first: str | None, second: str | None, settings: Settings, *, all_models: bool) -> tuple[list[str], str]:
    """Return the models and the entity."""
    if first is None:
        raise typer.BadParameter("give the ENTITY to forget, or --list")
    if all_models:
        if second is not None:
            raise typer.BadParameter("give either MODEL or --all-models")
        return models_of(None, settings), first
    model, entity = model_and(first, second, settings)
    return [model], entity


def _instant(text: str, now: float) -> float:
    """Return epoch seconds of an instant (UTC if it names no zone), or of a duration after `now`."""
    from datetime import UTC, datetime

    from inference.settings import parse_duration

    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        try:
            return now + parse_duration(text)
        except ValueError as error:
            message = f"--until {text!r} is no instant: write 2027-01-31T06:00:00Z, or a duration such as 90d"
            raise typer.BadParameter(message) from error


def _print_report(report: ForgetReport) -> None:
    until = "until it is lifted" if report.until is None else f"until {to_iso(report.until)}"
    typer.echo(f"{report.model}: forgotten since {to_iso(report.at)}, {until}")
    for item in report.items:
        typer.echo(f"  {item.place}: {f'LEFT: {item.left}' if item.left else f'{item.removed:,} removed'}")
    typer.echo("  not removed:")
    for text in report.stays:
        typer.echo(f"    {text}")


def _print_list(forgetting: Forgetting, models: list[str], *, as_json: bool) -> None:
    rows = []
    for model in models:
        listed = forgetting.listed(model)
        rows += [{"model": model, **asdict(entry)} for entry in listed.entries if entry.holds(listed.now)]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        until = "until it is lifted" if row["until"] is None else f"until {to_iso(row['until'])}"
        done = "all removed" if row["done_at"] else "not finished: forget it again"
        typer.echo(f"{row['model']}  {row['digest']}  since {to_iso(row['at'])}, {until}  ({done})")
    if not rows:
        typer.echo("nobody is forgotten")
