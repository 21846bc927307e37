"""`batch …`: runs, their states, and what is served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import clear_outage, load_settings, log_warnings_only
from app.cli.output import AsJson, note, print_fields, print_json, print_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.batch import Runs, RunView

app = typer.Typer(help="Runs: scoring a whole table ahead.", no_args_is_help=True)

_OVER = ("published", "failed", "cancelled")
_LOOK_EVERY_S = 0.5
#: a queued run is prepared within seconds when a maintenance worker lives
_NOBODY_ANSWERS_AFTER_S = 10.0

Model = Annotated[str | None, typer.Argument(help="May be left out when one is configured.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]


@app.command()
def run(
    model: Model = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is over; exit 1 when it fails.")] = False,
    entities: Annotated[
        str | None, typer.Option(metavar="FILE", help="Only the ids in this file: one a line, or Parquet.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only rows changed since: 2026-01-31T06:00Z, or 6h ago.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run of a model over its table of features; with --wait, one that is in progress will do.

    With --entities or --since only those rows are scored, and their predictions served at once, beside all others.
    """
    from inference.batch import Trigger, read_entities

    with _runs() as runs:
        name, own = load_settings().model(model)
        ids = None if entities is None else read_entities(entities, own.entity_column)
        if wait and ids is None and since is None:
            view = start_or_join(runs, name)
        else:
            view = runs.request(name, trigger=Trigger.CLI, entities=ids, since=since)
        if wait:
            view = until_over(runs.show, view, note)
    _print_run(view, as_json=as_json)
    if wait and view.state.value != "published":
        raise typer.Exit(1)
    if not wait and not as_json:
        note(f"`forecache batch show {view.run_id}` follows it")


@app.command("list")
def list_runs(
    model: Annotated[str | None, typer.Argument(help="Left out: all models.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the latest runs, newest first."""
    with _runs() as runs:
        views = [view.to_json() for view in runs.list(model)]
    if as_json:
        print_json(views)
        return
    columns = ("run_id", "model", "state", "trigger", "created_at", "rows_done", "rows_total", "error")
    print_rows(columns, [[view[column] for column in columns] for view in views])


@app.command()
def show(run_id: RunId, as_json: AsJson = False) -> None:
    """Print one run: how far it is, its gates, why it failed."""
    with _runs() as runs:
        view = runs.show(run_id)
    _print_run(view, as_json=as_json)


@app.command()
def cancel(run_id: RunId) -> None:
    """Stop a run; what is served stays as it is."""
    with _runs() as runs:
        runs.cancel(run_id)
    typer.echo(f"{run_id} cancelled")


@app.command()
def resume(run_id: RunId) -> None:
    """Take up a failed or cancelled run: only what is left is done."""
    with _runs() as runs:
        runs.resume(run_id)
    typer.echo(f"{run_id} resumed")


@app.command()
def publish(
    run_id: RunId,
    force: Annotated[bool, typer.Option("--force", help="Publish although a gate has failed.")] = False,
) -> None:
    """Publish a run that its gates held back."""
    with _runs() as runs:
        runs.publish(run_id, force=force)
    typer.echo(f"{run_id} published")


@app.command()
def rollback(model: Model = None) -> None:
    """Serve the previous generation again."""
    with _runs() as runs:
        name, _ = load_settings().model(model)
        after = runs.rollback(name)
    typer.echo(f"{name}: generation {after.generation} of model version {after.model_version} serves again")


def start_or_join(runs: Runs, model: str) -> RunView:
    """Return a new run, or the one in progress: right after `forecache up`, beat has started one already."""
    from inference.batch import Trigger
    from inference.errors import Conflict

    try:
        return runs.request(model, trigger=Trigger.CLI)
    except Conflict:
        running = runs.in_progress(model)
        if running is None:
            raise
    note(f"run {running.run_id} of {model} is in progress already: waiting for it")
    return running


def until_over(
    look: Callable[[str], RunView],
    view: RunView,
    tell: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> RunView:
    """Return the run once it is over, telling every change of its progress on the way."""
    told = ""
    waited_s = 0.0
    while view.state.value not in _OVER:
        text = _progress(view)
        if text != told:
            tell(text)
            told = text
        if view.state.value == "queued" and waited_s == _NOBODY_ANSWERS_AFTER_S:
            tell("no worker has taken it up yet: is `forecache up`, or a maintenance worker, running?")
        sleep(_LOOK_EVERY_S)
        waited_s += _LOOK_EVERY_S
        view = look(view.run_id)
    return view


def _progress(view: RunView) -> str:
    if not view.chunks_total:
        return f"{view.run_id} {view.state.value}"
    left = f", {view.eta_s:.0f} s left" if view.eta_s else ""
    return f"{view.run_id} {view.state.value}: chunk {view.chunks_done} of {view.chunks_total}{left}"


def _print_run(view: RunView, *, as_json: bool) -> None:
    data: dict[str, Any] = view.to_json()
    if as_json:
        print_json(data)
        return
    gates = data.pop("gates", [])
    print_fields(data)
    for gate in gates:
        typer.echo(f"gate {gate['name']}: {'passed' if gate['passed'] else 'FAILED'} ({gate['detail']})")


@contextmanager
def _runs() -> Iterator[Runs]:
    log_warnings_only()
    with clear_outage(load_settings()):
        from tasks.runs import runs

        yield runs()
