"""`init`: writes the first settings for a user's model and table, once one row has been scored."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from app.cli.context import log_warnings_only, with_options
from inference.errors import ForecacheError, SettingsError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command. For a value that is None, the command asks or guesses."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A model: its folder, the folder of its versions 1/, 2/, …, a single file, or models:/NAME@ALIAS.",
        ),
    ] = None
    features: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A table with one row per entity: a Parquet file or folder, a CSV file, delta:FOLDER, "
            "iceberg:CATALOG.NAMESPACE.TABLE or sql:FILE.",
        ),
    ] = None
    entity_column: Annotated[str | None, typer.Option(metavar="NAME", help="The column of entity ids.")] = None
    event_time_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column that says how old a row's features are.")
    ] = None
    rows: Annotated[
        Literal["one", "newest"],
        typer.Option(help="Rows per entity in the table: one, or several; then the newest counts."),
    ] = "one"
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="The columns of a model with one input tensor, in the tensor's order."),
    ] = None
    signature: Annotated[
        str | None, typer.Option(metavar="NAME", help="The signature of a SavedModel to serve; by default found.")
    ] = None
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name; by default made from its folder's name.")
    ] = None
    schedule: Annotated[
        str, typer.Option(metavar="WHEN", help="When runs start: a cron line (UTC), or a duration such as 30m.")
    ] = "0 3 * * *"
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Load a model whose loading runs its author's code, such as a pickle.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Replace files that are already there.")] = False
    add: Annotated[bool, typer.Option("--add", help="Add the model to a forecache.toml that is already there.")] = False


@with_options(get_type_hints(Options, include_extras=True), {each.name: each.default for each in fields(Options)})
def init(
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: accept the guesses.")] = False,
    **options: Any,
) -> None:
    """Look at your model and table, score one row, and write a forecache.toml.

    On a terminal it asks for missing values. It writes nothing unless the row could be scored, and changes no existing
    file without --add or --force.
    """
    from app.cli.onboarding import Onboarding

    log_warnings_only()
    Onboarding(Options(**options), Asker.for_terminal(accepts=yes)).run()


@dataclass(frozen=True)
class Asker:
    """Asks a person for missing values. `interactive`: there is one to ask; `accepts`: takes guesses without asking."""

    interactive: bool
    accepts: bool

    @classmethod
    def for_terminal(cls, *, accepts: bool) -> Asker:
        """Return an asker that asks if stdin and stdout are a terminal, unless it accepts the guesses."""
        return cls(not accepts and sys.stdin.isatty() and sys.stdout.isatty(), accepts)

    def need(
        self, option: str, question: str, given: str | None, check: Callable[[str], T], guess: str | None = None
    ) -> T:
        """Return a checked value: the given one, the person's answer, or the accepted guess.

        A wrong answer repeats the question with the reason. A wrong option is an error.

        Raises:
            SettingsError: there is no value and nobody to ask.
            ForecacheError: `check` refuses the given value or the accepted guess.
        """
        if given is not None:
            return check(given)
        if self.interactive:
            return self.ask(question, check, guess)
        if self.accepts and guess is not None:
            return check(guess)
        suggested = f" (the table suggests {guess!r})" if guess is not None else ""
        raise SettingsError(f"{option} is missing: {question}{suggested}", field=option)

    def ask(self, question: str, check: Callable[[str], T], guess: str | None = None) -> T:
        """Ask until the answer is right. Ctrl-C and Ctrl-D end the command."""

        def checked(answer: str) -> T:
            try:
                return check(answer.strip())
            except ForecacheError as error:
                raise typer.BadParameter(error.message) from error

        value: T = typer.prompt(question, default=guess, value_proc=checked)
        return value
