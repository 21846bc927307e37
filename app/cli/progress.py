"""How a run is followed and shown: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from app.cli.output import cell_text, note, print_fields, print_json

if TYPE_CHECKING:
    from inference.batch import RunDetails, RunState, RunView

_LOOK_EVERY_S = 0.5
#: a queued run is prepared within seconds when a maintenance worker lives
_NOBODY_ANSWERS_AFTER_S = 10.0
_NOBODY_ANSWERS = "no worker has taken it up yet: is `forecache up`, or a maintenance worker, running?"
_LEGEND = "# done  > being scored  o waiting for a worker  + some done  . not sent yet"


def follow(look: Callable[[str], RunView], view: RunView) -> RunView:
    """Return the run once it is over, showing how far it is on stderr."""
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
    """Return the run once it is over; `draw` gets each look at it, `say` the hint that nobody works on it."""
    waited_s = 0.0
    while not view.state.is_over:
        draw(view)
        if view.state.value == "queued" and waited_s == _NOBODY_ANSWERS_AFTER_S:
            say(_NOBODY_ANSWERS)
        sleep(_LOOK_EVERY_S)
        waited_s += _LOOK_EVERY_S
        view = look(view.run_id)
    draw(view)
    return view


def print_details(details: RunDetails, *, as_json: bool) -> None:
    """Print all that is known of a run."""
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
        typer.echo(f"  {bad['rows']:,} rows, {at_fault}{bad['reason']}, such as {', '.join(bad['examples'])}")


def progress_text(view: RunView) -> str:
    """Return one line: how far a run is, how fast, how long it will take."""
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
    """Return what tells a run's progress, a line for every twentieth of it."""
    told: tuple[RunState, int] | None = None

    def draw(view: RunView) -> None:
        nonlocal told
        now = (view.state, view.chunks_done * 20 // (view.chunks_total or 1))
        if now != told and not view.state.is_over:
            tell(progress_text(view))
            told = now

    return draw


@contextmanager
def _bar(run_id: str) -> Iterator[tuple[Callable[[RunView], None], Callable[[str], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), TaskProgressColumn(), BarColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        progress.console.print(run_id)  # a line of its own: beside the bar it would leave no room in 80 columns
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
