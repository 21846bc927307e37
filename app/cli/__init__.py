"""The `forecache` command: one file per noun; what is heavy is imported inside the commands."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from app.cli import advise, batch, bench, cost, doctor, features, hits, init, keys, models, predict, processes
from app.cli.examples import add_examples
from inference.errors import ForecacheError, SettingsError, UnknownModel
from inference.stored_data import installed_release

#: exit codes of the contract
FAILED = 1
USAGE = 2
#: environment variable: show where an error came from that nobody foresaw
DEBUG = "FORECACHE_DEBUG"

app = typer.Typer(
    name="forecache",
    help="Predictions computed ahead, served from Redis, computed on demand when they are missing.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich costs 0.17 s at every start
    pretty_exceptions_enable=False,
    # wider than click's 80 columns where the terminal is, so that fewer summaries are cut
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
init.register(app)
processes.register(app)
doctor.register(app)
predict.register(app)
app.add_typer(features.app, name="features")
app.add_typer(batch.app, name="batch")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
hits.register(app)
bench.register(app)
cost.register(app)
advise.register(app)
add_examples(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"forecache {installed_release() or '(not installed: run from its sources)'}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Settings come from forecache.toml in this folder, or from the file that FORECACHE_CONFIG names."""


def main() -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage. Errors are one line on stderr.

    With FORECACHE_DEBUG in the environment, an error that nobody foresaw shows its traceback.
    """
    try:
        _require_text(sys.argv[1:])
        app(prog_name="forecache")
    except ForecacheError as error:
        typer.echo(f"forecache: {error.message}", err=True)
        sys.exit(USAGE if isinstance(error, SettingsError | UnknownModel) else FAILED)
    except Exception as error:
        # what runs for long has a log, in which the traceback belongs
        if os.environ.get(DEBUG) or sys.argv[1:2] in processes.SERVICES:
            raise
        typer.echo(f"forecache: {_unforeseen(error)}", err=True)
        sys.exit(FAILED)


def _require_text(arguments: list[str]) -> None:
    """Refuse what is no UTF-8: neither Redis, nor JSON, nor a table has such text."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            text = argument.encode(errors="backslashreplace").decode()
            fix = "give it as UTF-8, in a locale of UTF-8 such as LC_ALL=C.UTF-8"
            raise SettingsError(f"the argument {text} is no text in UTF-8: {fix}") from error


def _unforeseen(error: Exception) -> str:
    from inference.failures import sentence_of

    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{sentence_of(error)} (a fault of Forecache's: {DEBUG}=1 shows where; please report it)"


__all__ = ["FAILED", "USAGE", "app", "main"]
