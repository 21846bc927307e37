"""`init`: the first settings for one's own model and table, tried on one row before they are written."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from app.cli.context import log_warnings_only

_NIGHTLY = "0 3 * * *"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(init)


def init(
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A model: its folder, that of its versions 1/, 2/, …, or a lone file."),
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="FILE", help="A Parquet file or folder with one row per entity.")
    ] = None,
    entity_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of ids that predictions are asked for by.")
    ] = None,
    event_time_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column that says how old a row's features are.")
    ] = None,
    rows: Annotated[
        Literal["one", "newest"],
        typer.Option(help="Rows that an entity has in the table: one, or several of which the newest counts."),
    ] = "one",
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="The columns of a model with one input tensor, in the tensor's order."),
    ] = None,
    signature: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of a SavedModel's signatures is served; else found.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the model is called; else made from its folder's name.")
    ] = None,
    schedule: Annotated[
        str, typer.Option(metavar="WHEN", help="When runs start: a cron line (UTC), or a duration such as 30m.")
    ] = _NIGHTLY,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Load a model whose loading runs its author's code, such as a pickle.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are already there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take the guesses.")] = False,
) -> None:
    """Look at your model and table, score one row, and write a forecache.toml.

    On a terminal it asks for what is missing. Nothing is written unless the row could be scored, and nothing
    that is already there is replaced without --force.
    """
    from app.cli.asking import Asker
    from app.cli.onboarding import Onboarding, Options

    log_warnings_only()
    options = Options(
        model=model,
        features=features,
        entity_column=entity_column,
        event_time_column=event_time_column,
        columns=columns,
        name=name,
        schedule=schedule,
        force=force,
        allow_code=allow_code,
        rows=rows,
        signature=signature,
    )
    Onboarding(options, Asker.for_terminal(accepts=yes)).run()
