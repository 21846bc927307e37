"""`batch …`: starts, shows and ends runs, and chooses which generation serves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import AnyModel, RunId, open_deployment
from app.cli.context import OneModel as Model
from app.cli.output import AsJson, cell_text, note, print_fields, print_json, print_rows, shortened
from inference.wording import counted

if TYPE_CHECKING:
    from inference.batch import RunDetails, Runs, RunState, RunView, Serving
    from inference.deployment import Deployment
    from inference.store import Pointer

#: what to do about a run in a state
_LOOKED_AT = {
    "held": "it is held: `forecache batch diff {0}` compares it, `forecache batch publish {0}` lets it serve",
    "compared": "`forecache batch diff {0}` prints how it differs from what serves",
}
#: characters of an error in a list on a terminal
_ERROR_SHOWN = 60

app = typer.Typer(help="Runs that score a whole table ahead.", no_args_is_help=True)


@app.command()
def run(
    model: Model = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is over; exit 1 if it fails.")] = False,
    entities: Annotated[
        str | None, typer.Option(metavar="FILE", help="Only the ids in this file: one a line, or Parquet.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only rows changed since 2026-01-31T06:00Z, or since 6h ago.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="ENGINE", help="celery, spark or ray; by default as in the settings.")
    ] = None,
    delta: Annotated[
        bool, typer.Option("--delta", help="Score only rows that changed since the run that serves; keep the others.")
    ] = False,
    hold: Annotated[bool, typer.Option("--hold", help="Wait before the publication for `batch publish`.")] = False,
    model_version: Annotated[
        int | None, typer.Option("--model-version", metavar="N", help="The version that a shadow run scores.")
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Only compare that version's predictions with what serves.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run of a model over its table of features. With --wait, join a run that is in progress.

    With --entities or --since, score only those rows; their predictions are served at once, beside all others.
    """
    from inference.batch import Trigger, read_entities

    with open_deployment() as deployment:
        name, of_model = deployment.settings.model(model)
        ids = None if entities is None else read_entities(entities, of_model.entity_column)
        if wait and ids is None and since is None and not (hold or shadow or model_version is not None):
            view = start_or_join(deployment.runs, name, engine, delta=delta)
        else:
            view = deployment.runs.request(
                name, trigger=Trigger.CLI, entities=ids, since=since, engine=engine, delta=delta, hold=hold,
                model_version=model_version, shadow=shadow,
            )  # fmt: skip
        _wake_maintenance(deployment)
        if wait:
            view = follow(deployment.runs.show, view)
        details = deployment.runs.details(view.run_id)
    print_details(details, as_json=as_json)
    if details.state.value in _LOOKED_AT and not as_json:
        note(_LOOKED_AT[details.state.value].format(view.run_id))
    elif wait and details.state.value not in ("published", *_LOOKED_AT):
        raise typer.Exit(1)
    elif not wait and not as_json:
        note(f"`forecache batch show {view.run_id}` follows it")


def _wake_maintenance(deployment: Deployment) -> None:
    """Tell the maintenance worker to look at the run now. Without this it would do so within seconds."""
    from inference.failures import sentence_of

    try:
        deployment.broker.poke()
    except Exception as error:  # noqa: BLE001 - printed; the run exists, whatever the broker's library raises
        note(f"{sentence_of(error)}; the run goes on once the broker is back")


@app.command("list")
def list_runs(
    model: AnyModel = None,
    as_json: AsJson = False,
) -> None:
    """Print the latest runs, newest first, with their generations and which of them serves."""
    with open_deployment() as deployment:
        found = deployment.runs.list(model)
        pointers = {name: deployment.predictions(name).pointer() for name in {view.model for view in found}}
        views = [view.to_json() | {"serves": _serves(view, pointers[view.model])} for view in found]
    if as_json:
        print_json(views)
        return
    if sys.stdout.isatty():  # a whole error would break the table apart; `batch show` prints it
        views = [view | {"error": shortened(view["error"], _ERROR_SHOWN)} for view in views]
    columns = ("run_id", "model", "state", "generation", "serves", "kind", "trigger", "created_at", "rows_done",
               "rows_total", "rows_outside", "entities_rule", "forced_by", "error")  # fmt: skip
    print_rows(columns, [[view[column] for column in columns] for view in views])


def _serves(view: RunView, pointer: Pointer) -> str | None:
    """Return "now" for the run whose generation serves, "before" for the one that a rollback serves; else None."""
    if view.generation is None or view.state.value != "published":
        return None
    return {pointer.current: "now", pointer.previous: "before"}.get(view.generation)


@app.command()
def show(run_id: RunId, as_json: AsJson = False) -> None:
    """Print one run: its chunks, phases, gates, rows that it left out, and why it failed."""
    with open_deployment() as deployment:
        details = deployment.runs.details(run_id)
    print_details(details, as_json=as_json)


@app.command()
def cancel(run_id: RunId, as_json: AsJson = False) -> None:
    """Stop a run. The served predictions stay."""
    with open_deployment() as deployment:
        view = deployment.runs.cancel(run_id)
    _say(view, f"{run_id} cancelled", as_json=as_json)


@app.command()
def resume(run_id: RunId, as_json: AsJson = False) -> None:
    """Continue a failed or cancelled run with its remaining work."""
    with open_deployment() as deployment:
        view = deployment.runs.resume(run_id)
        _wake_maintenance(deployment)
    _say(view, f"{run_id} resumed", as_json=as_json)


@app.command()
def publish(
    run_id: RunId,
    force: Annotated[bool, typer.Option("--force", help="Publish although a gate has failed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a held run or, with --force, one that its gates refused. The run keeps who did it."""
    with open_deployment() as deployment:
        view = deployment.runs.publish(run_id, force=force, by=_who())
        deployment.runs.prepare(run_id)  # now, and not only when the maintenance worker looks
        view = follow(deployment.runs.show, view)
    _say(view, f"{run_id} {view.state.value}", as_json=as_json)
    if view.state.value != "published":
        note(view.error or "")
        raise typer.Exit(1)


@app.command()
def diff(
    run_id: RunId,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Decisions flip here; by default flips_threshold.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, help="Smaller changes do not count; by default float noise.")
    ] = None,
    segment: Annotated[
        str | None, typer.Option("--segment", metavar="COLUMN", help="A column of the source to tell entities apart.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=1000, help="How many ids that moved most.")] = 10,
    features: Annotated[bool, typer.Option("--features/--no-features", help="Compare the features too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare a run's predictions with those that serve, or served before it. Kept with the run for 30 days."""
    from app.cli.diff import print_diff
    from inference.batch import DiffOptions

    with open_deployment() as deployment:
        options = DiffOptions(threshold=threshold, tolerance=tolerance, segment=segment, top=top, features=features)
        found = deployment.runs.diff(run_id, options)
    print_diff(found, as_json=as_json)


@app.command()
def rollback(
    model: Model = None,
    generation: Annotated[
        int | None, typer.Option("--from", metavar="GENERATION", help="Only if this generation serves now.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve the previous generation again. If it has another model version, the newer is held until `batch release`.

    If both generations have the same model version, nothing is held, and the next scheduled run publishes again: stop
    the schedule, or correct the source.
    """
    with open_deployment() as deployment:
        name, _ = deployment.settings.model(model)
        after = deployment.runs.rollback(name, generation=generation)
    _say_serving(after, f"generation {after.generation} of model version {after.model_version} serves", as_json)


@app.command()
def release(
    model: Model = None,
    version: Annotated[
        int | None, typer.Option("--version", help="By default the newest version that is held.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a model version answer again that a rollback holds back. The next run scores with it."""
    with open_deployment() as deployment:
        name, _ = deployment.settings.model(model)
        after = deployment.runs.release(name, version=version)
    _say_serving(after, f"model version {after.model_version} answers; its next run scores with it", as_json)


def start_or_join(runs: Runs, model: str, engine: str | None = None, *, delta: bool = False) -> RunView:
    """Return a new run, or the run in progress. Right after `forecache up`, beat has already started one."""
    from inference.batch import Trigger
    from inference.errors import Conflict

    try:
        return runs.request(model, trigger=Trigger.CLI, engine=engine, delta=delta)
    except Conflict:
        running = runs.in_progress(model)
        if running is None or (engine is not None and running.engine.value != engine):
            raise
    note(f"run {running.run_id} of {model} is in progress already: waiting for it")
    return running


def _say(view: RunView, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(view.to_json())
    else:
        typer.echo(text)


def _say_serving(after: Serving, text: str, as_json: bool) -> None:
    if as_json:
        print_json(after.to_json())
        return
    typer.echo(f"{after.model}: {text}")
    if after.held_versions:
        print_fields({"held back": ", ".join(map(str, after.held_versions))})


def _who() -> str:
    """Return the user and host that give this command."""
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"


# --- progress and details ---

_POLL_S = 0.5
#: a live maintenance worker prepares a queued run within seconds
_NO_WORKER_AFTER_S = 10.0
_NO_WORKER = "no worker has taken it up yet: is `forecache up`, or a maintenance worker, running?"
#: a delta run is queued until its copy is whole
_COPIES = "Redis copies the rows that are carried over; or "
_LEGEND = "# done  > being scored  o waiting for a worker  + some done  . not sent yet"


def follow(look: Callable[[str], RunView], view: RunView) -> RunView:
    """Wait until the run is over, with its progress on stderr, and return it."""
    if not sys.stderr.isatty():
        return until_over(look, view, tell_changes(note), say=note)
    with _bar(view.run_id) as (draw, say):
        return until_over(look, view, draw, say=say)


def until_over(
    look: Callable[[str], RunView],
    view: RunView,
    draw: Callable[[RunView], None],
    *,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> RunView:
    """Wait until the run is over, and return it. Calls `draw` with each state, and `say` if no worker takes it up."""
    waited_s = 0.0
    while not view.state.is_over:
        draw(view)
        if view.state.value == "queued" and waited_s == _NO_WORKER_AFTER_S:
            say(_COPIES + _NO_WORKER if view.kind.value == "delta" else _NO_WORKER)
        sleep(_POLL_S)
        waited_s += _POLL_S
        view = look(view.run_id)
    draw(view)
    return view


def print_details(details: RunDetails, *, as_json: bool) -> None:
    """Print all details of a run."""
    data = details.to_json()
    if as_json:
        print_json(data)
        return
    gates, chunks, phases = data.pop("gates"), data.pop("chunks"), data.pop("phases")
    quarantine, chunk_map = data.pop("quarantine"), chunks.pop("map")
    print_fields({name: value for name, value in data.items() if value is not None})
    if chunk_map:
        typer.echo(f"chunks  {_pairs(chunks)}\n  {chunk_map}\n  {_LEGEND}")
    typer.echo(f"phases  {_pairs(phases)}")
    for gate in gates:
        typer.echo(f"gate {gate['name']}: {'passed' if gate['passed'] else 'FAILED'} ({gate['detail']})")
    if quarantine["folder"]:
        typer.echo(f"left out, with their values in {quarantine['folder']}:")
    for bad in quarantine["reasons"]:
        at_fault = f"{bad['feature']}: " if bad["feature"] else ""
        typer.echo(f"  {counted(bad['rows'], 'row')}, {at_fault}{bad['reason']}, such as {', '.join(bad['examples'])}")


def progress_text(view: RunView) -> str:
    """Return the progress of a run in one line: chunks, speed, remaining time."""
    if not view.chunks_total:
        return f"{view.run_id} {view.state.value}"
    rate = f", {view.rows_per_s:,.0f} rows/s" if view.rows_per_s else ""
    left = f", {view.eta_s:.0f} s left" if view.eta_s else ""
    return f"{view.run_id} {view.state.value}: chunk {view.chunks_done} of {view.chunks_total}{rate}{left}"


def _pairs(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name.removesuffix('_s')} {_with_unit(name, value)}" for name, value in facts.items())


def _with_unit(name: str, value: Any) -> str:
    return f"{value:.1f} s" if name.endswith("_s") and value is not None else cell_text(value)


def tell_changes(tell: Callable[[str], None]) -> Callable[[RunView], None]:
    """Return a function that prints a run's progress, one line per 5 % of its chunks."""
    printed: tuple[RunState, int] | None = None

    def draw(view: RunView) -> None:
        nonlocal printed
        now = (view.state, view.chunks_done * 20 // (view.chunks_total or 1))
        if now != printed and not view.state.is_over:
            tell(progress_text(view))
            printed = now

    return draw


@contextmanager
def _bar(run_id: str) -> Iterator[tuple[Callable[[RunView], None], Callable[[str], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), TaskProgressColumn(), BarColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        progress.console.print(run_id)  # on its own line: beside the bar there is no room in 80 columns
        task = progress.add_task("", total=None, pace="")

        def draw(view: RunView) -> None:
            pace = [f"{view.rows_per_s:,.0f} rows/s"] if view.rows_per_s else []
            pace += [f"{view.eta_s:.0f} s left"] if view.eta_s else []
            progress.update(
                task,
                description=view.state.value,
                total=view.rows_total,
                completed=view.rows_done,
                pace=", ".join(pace),
            )

        yield draw, progress.console.print
