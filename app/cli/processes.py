"""`up`, `demo`, `api`, `dashboard`, `listen`: run until somebody stops them."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.context import load_settings
from inference.errors import SettingsError

#: command lines of processes with a log; people watch `up` and `demo` on a terminal
SERVICES = (["api"], ["dashboard"], ["listen"])


def up(
    only: Annotated[list[str] | None, typer.Option(metavar="NAMES", help="Only these, as in batch,realtime.")] = None,
    without: Annotated[list[str] | None, typer.Option(metavar="NAMES", help="All but these.")] = None,
) -> None:
    """Run everything on this machine: Redis if none is set, workers, beat, listeners, API, dashboard.

    NAMES are any of redis, maintenance, realtime, batch, beat, listen, api, dashboard, with commas between them.
    """
    settings = load_settings()
    _require_psutil()
    from app.local.programs import chosen_kinds
    from app.local.up import up as run

    run(settings, chosen_kinds(only or (), without or ()))


def demo(
    once: Annotated[bool, typer.Option(help="Check every step, stop everything, exit 0 or 1.")] = False,
    entities: Annotated[int, typer.Option(min=100, help="Rows of the generated table.")] = 100_000,
    keep: Annotated[bool, typer.Option(help="Keep the demo's folder afterwards.")] = False,
) -> None:
    """Show the whole system at work on a generated table and a small model trained on it."""
    _require_psutil()
    from app.demo.show import run_demo

    if not run_demo(entities=entities, once=once, keep=keep):
        raise typer.Exit(1)


def api(
    fd: Annotated[int | None, typer.Option(help="A listening socket that is open already, shared with others.")] = None,
    standby: Annotated[bool, typer.Option(help="With --fd: serve when one of [api] processes has died.")] = False,
) -> None:
    """Serve the HTTP API."""
    if standby and fd is None:
        raise SettingsError("--standby needs --fd: without it, the command itself replaces what dies", field="standby")
    from app.api.server import serve

    serve(load_settings(), fd, standby=standby)


def dashboard() -> None:
    """Serve Flower with the page of hit rates."""
    from app.dashboard import serve

    serve(load_settings())


def listen(
    streams: Annotated[list[str] | None, typer.Argument(metavar="[STREAM]...", help="By default all streams.")] = None,
    name: Annotated[
        str, typer.Option(help="Different for each listener of a host, and kept when it begins again.")
    ] = "listen",
) -> None:
    """Apply the messages of streams to the features of entities. Several listeners share the work."""
    from app.listen import listen as run

    run(load_settings(), streams or (), name=name)


def _require_psutil() -> None:
    from importlib.util import find_spec

    if find_spec("psutil") is None:
        raise SettingsError("this command needs psutil: pip install 'forecache[embedded]'")
