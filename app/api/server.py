"""Runs the HTTP service on the configured address, in one process or several."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.api.application import create_app
from app.api.connections import Connection
from app.http import backlog, listen, raise_descriptors
from inference.errors import SettingsError
from inference.logs import configure_logging, get_logger
from inference.settings import ApiSettings, Settings
from inference.settings.processes import require_allowed

log = get_logger(__name__)

#: a thread that parses a large body yields to the event loop after this time, at the end of its current step; with
#: Python's own 5 ms, each hit would wait that long several times
SWITCH_INTERVAL_S = 0.0005

#: time for open requests to finish when the service stops
GRACE_S = 5


def serve(settings: Settings, fd: int | None = None) -> None:
    """Serve until stopped.

    With several `[api] processes`, this process only supervises the others, which share the port, and replaces one
    that dies or hangs. `fd`: descriptor of an open, listening socket that several processes share; then the caller
    supervises them.

    Raises:
        SettingsError: other machines could reach the address, and there are neither keys nor `[api] allow_remote`;
            or the port is taken, or `fd` is not an open socket.
    """
    raise_descriptors()
    listener = listen(settings.api) if fd is None else _given(settings.api, fd)
    _configure_logging(settings)
    config = configure(settings.api, partial(_application, settings))
    log.info("api.listening", url=_url_of(listener))
    if fd is not None or settings.api.processes == 1:
        uvicorn.Server(config).run(sockets=[listener])
        return
    processes = _Processes(config, sockets=[listener])
    processes.run()
    if any(each.exitcode == STARTUP_FAILURE for each in processes.processes):
        sys.exit(STARTUP_FAILURE)


def configure(api: ApiSettings, application: Callable[[], FastAPI]) -> uvicorn.Config:
    """Return uvicorn's configuration; each process calls `application` to make one of its own."""
    return uvicorn.Config(
        application,
        factory=True,
        workers=api.processes,
        http=Connection,
        ws="none",
        backlog=backlog(),
        timeout_keep_alive=api.keep_alive,  # type: ignore[arg-type]  # it takes fractions, too
        log_config=None,
        access_log=False,
        # the access check counts wrong keys by the connection's address: a header could hold any address
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        # on a busy machine, a process may import for that long
        timeout_worker_healthcheck=30,
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


class _Processes(Multiprocess):
    def handle_hup(self) -> None:
        """End when the terminal closes, like a single process; uvicorn would restart all processes."""
        self.should_exit.set()


def _application(settings: Settings) -> FastAPI:
    """Return the application, in the process that serves it."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    parent = multiprocessing.parent_process()
    if parent is not None:
        _configure_logging(settings)
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    application = create_app(settings)
    # all objects so far stay: a full collection that looks at them would stop every request for a tenth of a second
    gc.collect()
    gc.freeze()
    return application


def _configure_logging(settings: Settings) -> None:
    configure_logging("api", form=settings.logs.format, level=settings.logs.level)


def _end_with(sentinel: int) -> None:
    """Stop this process when its supervising process is gone: nothing else would."""
    multiprocessing.connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
