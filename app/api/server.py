"""Runs the HTTP service on the configured address: a process that holds the port, and forks of it that serve."""

from __future__ import annotations

import fcntl
import gc
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from app.api.application import create_app
from app.api.connections import Connection
from app.api.drain import DrainingServer
from app.http import backlog, check_grpc, listen, raise_descriptors
from app.local.forks import Forks
from inference import tracing
from inference.errors import SettingsError
from inference.logs import configure_logging, get_logger
from inference.settings import ApiSettings, Settings
from inference.settings.processes import OPEN_REQUESTS_S, require_allowed
from tasks.dispatch import load_dispatcher

log = get_logger(__name__)

#: a thread that parses a large body yields to the event loop after this time, at the end of its current step; with
#: Python's own 5 ms, each hit would wait that long several times
SWITCH_INTERVAL_S = 0.0005

#: interval at which a process that stands by looks for a free place
TURN_EVERY_S = 0.01


def serve(settings: Settings, fd: int | None = None, *, standby: bool = False) -> None:
    """Serve until stopped; after SIGTERM, for `[api] drain` more.

    This process only holds the port and keeps `[api] processes` forks at work, so that the port outlives each of them:
    when one dies, connections wait for the next one. `fd`: descriptor of an open, listening socket; then this process
    serves it itself, and the caller supervises. `standby`: wait, with all in memory, while `[api] processes` others of
    this folder serve.

    Raises:
        SettingsError: other machines could reach the address, and there are neither keys nor `[api] allow_remote`;
            or a port is taken, `fd` is not an open socket, or the settings of gRPC are wrong.
    """
    raise_descriptors()
    check_grpc(settings, first=fd is None)
    listener = listen(settings.api) if fd is None else _given(settings.api, fd)
    configure_logging("api", form=settings.logs.format, level=settings.logs.level)
    config = configure(settings.api, partial(create_app, settings))
    _load(config, settings)
    log.info("api.listening", url=_url_of(listener))
    if (settings.api.stop_timeout or math.inf) < settings.api.longest_stop_s:
        log.warning("api.killed_before_it_stops", needs_s=settings.api.longest_stop_s, gets_s=settings.api.stop_timeout)
    work = partial(_serve_here, config, listener)
    if fd is None:
        # nobody accepts any more once all forks are stopping: then connections are refused, not kept waiting
        forks = Forks(work, settings.api.processes, hopeless=STARTUP_FAILURE, on_stop=listener.close)
        sys.exit(forks.run())
    with suppress(KeyboardInterrupt):  # uvicorn raises it again at the end
        if not standby:
            work()
            return
        with _turn(settings):
            work()


def configure(api: ApiSettings, application: Callable[[], FastAPI]) -> uvicorn.Config:
    """Return uvicorn's configuration; `application` makes the application."""
    return uvicorn.Config(
        application,
        factory=True,
        http=Connection,
        ws="none",
        backlog=backlog(),
        timeout_keep_alive=api.keep_alive,  # type: ignore[arg-type]  # it takes fractions, too
        log_config=None,
        access_log=False,
        # the access check counts wrong keys by the connection's address: a header could hold any address
        proxy_headers=False,
        timeout_graceful_shutdown=OPEN_REQUESTS_S,
    )


def _given(api: ApiSettings, fd: int) -> socket.socket:
    """Return the socket of a descriptor. Its address must be allowed, or a Unix one."""
    try:
        listener = socket.socket(fileno=fd)
    except (OSError, OverflowError, ValueError) as error:
        raise SettingsError(f"--fd {fd} is no open socket ({error})") from error
    if listener.family != socket.AF_UNIX:
        try:
            require_allowed(api, listener.getsockname()[0])
        except SettingsError:
            listener.close()
            raise
    return listener


def _url_of(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(listener.getsockname())}"
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _load(config: uvicorn.Config, settings: Settings) -> None:
    """Import and build all that needs no event loop: whoever begins to serve later answers milliseconds after."""
    config.load()
    config.get_loop_factory()
    load_dispatcher(settings)
    tracing.load()
    # all objects so far stay: a full collection that looks at them would stop every request for a tenth of a second
    gc.collect()
    gc.freeze()


def _serve_here(config: uvicorn.Config, listener: socket.socket) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    DrainingServer(config, config.loaded_app.drain).run(sockets=[listener])


@contextmanager
def _turn(settings: Settings) -> Iterator[None]:
    """Wait for one of `[api] processes` places, and keep it during the block.

    The kernel frees the place of a process that dies. A signal ends a process that waits: it has nothing to finish.
    """
    with (settings.state_dir / "api.lock").open("ab") as file:
        if not _take_place(file, settings.api.processes):
            log.info("api.stands_by")
            while not _take_place(file, settings.api.processes):
                time.sleep(TURN_EVERY_S)
            log.info("api.takes_over")
        yield


def _take_place(file: IO[bytes], places: int) -> bool:
    """Lock a byte of the file that nobody else has locked."""
    for place in range(places):
        with suppress(BlockingIOError, PermissionError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            return True
    return False
