"""How commands print: JSON when asked, a table on a terminal, plain columns in a pipe."""

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

#: the option of every command whose output is data
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

#: no terminal is wider; a table is measured as if it had so much room
_WIDEST = 10_000


def print_json(data: Any) -> None:
    """Print one JSON value."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows: a ruled table on a terminal, tab-separated lines with a head in a pipe.

    On a terminal too narrow for the heads, each row has a line for each value.
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
        # a word a line, so that `hits` fits 80 columns with no head cut to `hit_…`; run ids stay whole to be copied
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
    """Return a text of at most `limit` characters, with an ellipsis for what was cut off; None stays None."""
    return text if text is None or len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def terminal() -> Console:
    """Return a console on stdout; with `NO_COLOR` set it writes no escape sequence at all, bold ones included."""
    from rich.console import Console

    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one thing, a name and a value a line."""
    shown = {shown_name(name): value for name, value in fields.items()}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        typer.echo(f"{name:<{width}}  {cell_text(value)}")


def note(text: str) -> None:
    """Say something beside the data: on stderr."""
    typer.echo(text, err=True)


def cell_text(value: Any) -> str:
    """Return a value as a person reads it; None is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # six digits are enough to read, unless they cut off whole ones
        return repr(value) if abs(value) >= 100_000 else f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
