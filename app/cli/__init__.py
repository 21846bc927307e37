"""The `forecache` command. One file per noun; commands import heavy libraries inside their functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from typer.main import get_command_name

from app.cli import (
    advise,
    batch,
    bench,
    cost,
    curves,
    doctor,
    features,
    forget,
    hits,
    init,
    keys,
    models,
    predict,
    processes,
    simulate,
    streams,
)
from inference.errors import BadEntityId, BadInput, ForecacheError, SettingsError, UnknownModel
from inference.stored_data import installed_release

#: exit codes of the contract
FAILED = 1
USAGE = 2
#: environment variable: show the traceback of an unexpected error
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
for command in (
    init.init,
    processes.up,
    processes.demo,
    processes.api,
    processes.dashboard,
    processes.listen,
    streams.streams,
    doctor.doctor,
    predict.predict,
    predict.enqueue,
    forget.forget,
    hits.hits,
    bench.bench,
    cost.cost,
    curves.curves,
    advise.advise,
    simulate.simulate,
):
    app.command()(command)
for group in (features, batch, models, keys):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])


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
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage. An error is one line on stderr.

    With FORECACHE_DEBUG in the environment, an unexpected error shows its traceback.
    """
    try:
        _require_text(sys.argv[1:])
        app(prog_name="forecache")
    except ForecacheError as error:
        typer.echo(f"forecache: {error.message}", err=True)
        sys.exit(USAGE if _is_wrong_usage(error) else FAILED)
    except Exception as error:
        # the traceback belongs into the log of a service
        if os.environ.get(DEBUG) or sys.argv[1:2] in processes.SERVICES:
            raise
        typer.echo(f"forecache: {_unexpected(error)}", err=True)
        sys.exit(FAILED)


def _is_wrong_usage(error: ForecacheError) -> bool:
    """Tell whether an argument or a setting is wrong. Other subclasses of BadInput are about models and data."""
    return isinstance(error, SettingsError | UnknownModel | BadEntityId) or type(error) is BadInput


def _require_text(arguments: list[str]) -> None:
    """Refuse arguments that are not UTF-8: neither Redis nor JSON nor a table can hold them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            text = argument.encode(errors="backslashreplace").decode()
            fix = "give it as UTF-8, in a locale of UTF-8 such as LC_ALL=C.UTF-8"
            raise SettingsError(f"the argument {text} is not UTF-8 text: {fix}") from error


def _unexpected(error: Exception) -> str:
    from inference.failures import sentence_of

    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{sentence_of(error)} (a fault of Forecache's: {DEBUG}=1 shows where; please report it)"


# --- examples in the help ---

#: words of a command → examples; a test parses each
EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "forecache init",
        "forecache init --model models/delay --features data/flights.parquet --entity-column flight",
    ),
    "up": ("forecache up", "forecache up --without dashboard"),
    "demo": ("forecache demo", "forecache demo --once --entities 5000"),
    "api": ("forecache api", "FORECACHE_API__PORT=8001 forecache api"),
    "dashboard": ("forecache dashboard",),
    "listen": ("forecache listen", "forecache listen orders --name listen-2"),
    "streams": ("forecache streams", "forecache streams orders --dead 10", "forecache streams --json"),
    "doctor": ("forecache doctor", "forecache doctor --json | jq '.[] | select(.status == \"error\")'"),
    "predict": (
        "forecache predict customer-42",
        "forecache predict 42 --model delay --max-staleness-hours 0 --timeout-ms 500",
    ),
    "enqueue": ("forecache enqueue 41 42 43 --wait", "forecache enqueue --model delay --priority low $(cat ids.txt)"),
    "forget": (
        "forecache forget customer-42",
        "forecache forget --list --json",
        "forecache forget delay 42 --lift",
    ),
    "hits": ("forecache hits", "forecache hits delay --window 24h --json"),
    "bench": ("forecache bench", "forecache bench delay --rate 500 --miss-share 0.05 --json"),
    "cost": (
        "forecache cost --preset article",
        "forecache cost --entities 1e6 --rps 100 --peak-rps 300 --hit-rate 0.95 --instance-type g5.xlarge",
        "forecache cost delay --picture cost.png",
    ),
    "curves": ("forecache curves", "forecache curves delay --picture curves.png", "forecache curves delay --json"),
    "advise": (
        "forecache advise",
        "forecache advise delay --latency-ms 50 --max-staleness-hours 24 --cost-matters --explain",
        "forecache advise delay --stable-hours 24 --write",
    ),
    "simulate": (
        "forecache simulate --zipf 1.0 --entities 1e6 --policy 'every=24h ttl=26h' --policy 'every=never'",
        "forecache simulate delay --trace requests.csv --skip 7d --policy 'share=0.2' --json",
    ),
    "features load": ("forecache features load data/flights.parquet", "forecache features load delay data/flights"),
    "features get": ("forecache features get customer-42", "forecache features get delay 42 --json"),
    "features put": (
        "forecache features put customer-42 cart_value=99.5",
        "forecache features put delay 42 distance=800 carrier=XY --event-time 2026-01-31T03:00:00Z",
    ),
    "batch run": (
        "forecache batch run --wait",
        "forecache batch run delay --since 6h --engine spark",
        "forecache batch run delay --model-version 4 --shadow --wait",
    ),
    "batch list": ("forecache batch list", "forecache batch list delay --json"),
    "batch show": ("forecache batch show delay-20260131T030000-1a2b3c",),
    "batch cancel": ("forecache batch cancel delay-20260131T030000-1a2b3c",),
    "batch resume": ("forecache batch resume delay-20260131T030000-1a2b3c",),
    "batch diff": (
        "forecache batch diff delay-20260131T030000-1a2b3c --threshold 0.5",
        "forecache batch diff delay-20260131T030000-1a2b3c --segment carrier --tolerance 0.01 --json",
    ),
    "batch publish": (
        "forecache batch publish delay-20260131T030000-1a2b3c",
        "forecache batch publish delay-20260131T030000-1a2b3c --force",
    ),
    "batch rollback": ("forecache batch rollback delay",),
    "batch release": ("forecache batch release", "forecache batch release delay --version 4"),
    "models list": ("forecache models list", "forecache models list --json"),
    "keys new": ("forecache keys new shop", "forecache keys new nightly --scope enqueue --rate 600/minute"),
    "models reload": ("forecache models reload", "forecache models reload delay --json"),
    "models verify": ("forecache models verify", "forecache models verify delay --version 4"),
    "models label": (
        "forecache models label stable 3",
        "forecache models label canary 4 --share 0.05 --model delay",
    ),
    "models unlabel": ("forecache models unlabel canary", "forecache models unlabel canary --model delay"),
    "models show": ("forecache models show", "forecache models show delay --json"),
}


def add_examples(app: typer.Typer) -> None:
    """Add the examples of each command to the end of its help."""
    for words, command in _commands(app, ()):
        examples = EXAMPLES.get(" ".join(words))
        if examples:
            # \b keeps the lines as they are
            command.epilog = "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])


def _commands(app: typer.Typer, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], typer.models.CommandInfo]]:
    for command in app.registered_commands:
        name = command.name or get_command_name(getattr(command.callback, "__name__", ""))
        yield (*above, name), command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _commands(group.typer_instance, (*above, str(group.name)))


add_examples(app)

__all__ = ["EXAMPLES", "FAILED", "USAGE", "app", "main"]
