"""Examples in the help of every command: real ones, which a test parses."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.main import get_command_name

#: a command's words → what one may type
EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "forecache init",
        "forecache init --model models/delay --features data/flights.parquet --entity-column flight",
    ),
    "up": ("forecache up", "forecache up --without dashboard"),
    "demo": ("forecache demo", "forecache demo --once --entities 5000"),
    "api": ("forecache api", "FORECACHE_API__PORT=8001 forecache api"),
    "dashboard": ("forecache dashboard",),
    "doctor": ("forecache doctor", "forecache doctor --json | jq '.[] | select(.status == \"error\")'"),
    "predict": (
        "forecache predict customer-42",
        "forecache predict 42 --model delay --max-staleness-hours 0 --timeout-ms 500",
    ),
    "enqueue": ("forecache enqueue 41 42 43 --wait", "forecache enqueue --model delay --priority low $(cat ids.txt)"),
    "hits": ("forecache hits", "forecache hits delay --window 24h --json"),
    "bench": ("forecache bench", "forecache bench delay --rate 500 --miss-share 0.05 --json"),
    "cost": (
        "forecache cost --preset article",
        "forecache cost --entities 1e6 --rps 100 --peak-rps 300 --hit-rate 0.95 --instance-type g5.xlarge",
        "forecache cost delay --picture cost.png",
    ),
    "advise": (
        "forecache advise",
        "forecache advise delay --latency-ms 50 --max-staleness-hours 24 --cost-matters --explain",
        "forecache advise delay --stable-hours 24 --write",
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
        "forecache batch run delay --entities changed.txt --wait",
    ),
    "batch list": ("forecache batch list", "forecache batch list delay --json"),
    "batch show": ("forecache batch show delay-20260131T030000-1a2b3c",),
    "batch cancel": ("forecache batch cancel delay-20260131T030000-1a2b3c",),
    "batch resume": ("forecache batch resume delay-20260131T030000-1a2b3c",),
    "batch publish": ("forecache batch publish delay-20260131T030000-1a2b3c --force",),
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
    """Put each command's examples at the end of its help."""
    for words, command in _commands(app, ()):
        examples = EXAMPLES.get(" ".join(words))
        if examples:
            # \b: as they stand here, not filled into a paragraph
            command.epilog = "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])


def _commands(app: typer.Typer, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], typer.models.CommandInfo]]:
    for command in app.registered_commands:
        name = command.name or get_command_name(getattr(command.callback, "__name__", ""))
        yield (*above, name), command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _commands(group.typer_instance, (*above, str(group.name)))
