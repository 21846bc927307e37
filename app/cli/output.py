"""Prints results: JSON if requested, a table on a terminal, tab-separated columns in a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inference.errors import shown_name

if TYPE_CHECKING:
    from rich.console import Console

#: the option of every command that prints data
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

#: wider than any terminal: the width at which a table is measured
_WIDEST = 10_000


def print_json(data: Any) -> None:
    """Print one JSON value."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows: a table on a terminal, tab-separated lines with column names in a pipe.

    On a terminal that is too narrow for the table, print one line per value.
    """
    texts = [[cell_text(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(columns), *texts]:
            typer.echo("\t".join(line))
        return
    from rich import box
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        # one word a line, so that the names of `hits` fit into 80 columns; run ids stay whole, for copying
        table.add_column(column.replace("_", "\n"), overflow="fold", no_wrap=column == columns[0])
    for line in texts:
        table.add_row(*map(escape, line))
    console = terminal()
    if Measurement.get(console, console.options.update(max_width=_WIDEST), table).minimum <= console.width:
        console.print(table)
        return
    for row in rows:
        print_fields(dict(zip(columns, row, strict=True)))
        typer.echo()


def shortened(text: str | None, limit: int) -> str | None:
    """Return a text of at most `limit` characters, with an ellipsis if it was cut; None for None."""
    return text if text is None or len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def terminal() -> Console:
    """Return a console on stdout. With `NO_COLOR` set it writes no escape sequences, not even for bold text."""
    from rich.console import Console

    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one object: a name and a value per line."""
    shown = {shown_name(name): value for name, value in fields.items()}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        typer.echo(f"{name:<{width}}  {cell_text(value)}")


def note(text: str) -> None:
    """Print a text to stderr, so that stdout has only data."""
    typer.echo(text, err=True)


def cell_text(value: Any) -> str:
    """Return a value in readable form; None is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # six digits are enough, except for large whole numbers
        return repr(value) if abs(value) >= 100_000 else f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
