"""`streams`: shows what became of the messages of streams."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.context import open_deployment
from app.cli.output import AsJson, print_json, print_rows

if TYPE_CHECKING:
    from inference.streams.messages import Lag


def streams(
    stream: Annotated[str | None, typer.Argument(metavar="[STREAM]", help="By default all streams.")] = None,
    dead: Annotated[int, typer.Option(min=0, help="Show so many of the newest dead letters.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show each stream: messages that were applied, older than what is stored, or dead; the lag; dead letters."""
    from inference.settings.streams import chosen_streams
    from inference.streams.progress import OUTCOMES

    with open_deployment() as deployment:
        names = chosen_streams(deployment.settings.streams, [stream] if stream else [])
        found = {name: deployment.stream_progress(name) for name in names}
        rows = [{"stream": name, **each.counts(), **_lag_of(each.lag())} for name, each in found.items()]
        letters = [{"stream": name, **asdict(one)} for name in names for one in found[name].dead_letters(dead)]
    if as_json:
        print_json({"streams": rows, "dead": letters})
        return
    columns = ("stream", *OUTCOMES, "behind", "behind_s")
    print_rows(columns, [[row[column] for column in columns] for row in rows])
    if letters:
        print_rows(tuple(letters[0]), [tuple(letter.values()) for letter in letters])


def _lag_of(lag: Lag | None) -> dict[str, float | None]:
    """Return the lag; None for what nobody has told lately."""
    if lag is None:
        return {"behind": None, "behind_s": None}
    return {"behind": lag.messages, "behind_s": round(lag.oldest_s, 1)}
