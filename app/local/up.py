"""Runs `forecache up`: checks settings, libraries and ports, then starts the supervisor."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from urllib.parse import urlsplit

from app.http import check_grpc, listen
from app.local import embedded_redis
from app.local.embedded_redis import EmbeddedRedis, private_folder
from app.local.lock import LOCK, hold_lock
from app.local.output import Output
from app.local.ports import require_free
from app.local.programs import Program, all_programs, visible_gpus
from app.local.supervisor import Supervisor
from inference.errors import ModelError, SettingsError
from inference.models.formats import Format, require_model_file
from inference.models.versions import find_versions, wanted_versions
from inference.settings import Settings, variables_unread
from inference.settings.processes import require_allowed
from inference.settings.sentinel_urls import is_sentinel, read_sentinel_url
from inference.settings.settings import NO_MODEL
from inference.settings.streams import NO_STREAM
from inference.streams.opening import require_clients

#: kind → (module that it needs, the extra that installs it)
_NEEDS = {"dashboard": ("flower", "dashboard")}
#: kinds that load models
_LOADERS = ("batch", "realtime")


def up(settings: Settings, kinds: frozenset[str]) -> None:
    """Run the deployment's processes of these kinds on this machine until a signal to stop.

    Raises:
        SettingsError: no model is configured, no Redis is found, an extra is not installed, or the API's address is
            not allowed.
        Conflict: another `up` runs in this folder, or a port is taken.
        Unavailable: the embedded Redis cannot start, for instance because its data is damaged.
    """
    if not settings.models:
        raise SettingsError(NO_MODEL, field="models")
    _require_installed(kinds, settings)
    _require_streams(kinds, settings)
    with ExitStack() as on_exit:
        private_folder(settings.state_dir)
        on_exit.enter_context(hold_lock(settings.state_dir / LOCK))
        _require_addresses(settings, kinds)
        redis = _embedded_redis(settings, kinds)
        if redis:
            on_exit.callback(redis.withdraw)
        gpus = visible_gpus(settings.workers)
        # opened here, so that it outlives every API process
        listener = on_exit.enter_context(listen(settings.api)) if "api" in kinds else None
        programs = all_programs(settings, redis, gpus, listener=listener.fileno() if listener else None)
        programs = [each for each in programs if each.kind in kinds]
        # nobody accepts any more once all API processes have ended: then connections are refused, not kept waiting
        run_programs(
            programs,
            list(_notes(settings, kinds, redis)),
            as_json=settings.logs.format == "json",
            on_stop=listener.close if listener else lambda: None,
        )


def run_programs(
    programs: list[Program],
    notes: list[tuple[str, str]],
    *,
    as_json: bool = False,
    on_stop: Callable[[], object] = lambda: None,
) -> None:
    """Keep the programs running until a signal to stop, with their output on standard output.

    `notes`: (text, level) of the first lines. `as_json`: every line is an object. `on_stop`: called after the signal.

    Raises:
        Unavailable: a program that others wait for does not become ready.
    """
    output = Output([program.name for program in programs], sys.stdout, as_json=as_json)
    for text, level in notes:
        output.say(text, level)
    asyncio.run(Supervisor(programs, output, on_stop).run())
    output.say("all stopped")


def _require_installed(kinds: frozenset[str], settings: Settings) -> None:
    needs = [(kind, *what) for kind, what in _NEEDS.items()]
    needs += [(kind, one.library, one.extra) for kind in _LOADERS for one in _newest_formats(settings)]
    for kind, module, extra in needs:
        if kind in kinds and find_spec(module) is None:
            raise SettingsError(
                f"{kind} needs {module}: pip install 'forecache[{extra}]', or leave it out with --without {kind}"
            )


def _require_streams(kinds: frozenset[str], settings: Settings) -> None:
    if kinds == {"listen"} and not settings.streams:
        raise SettingsError(NO_STREAM, field="streams")
    if "listen" in kinds:
        require_clients(settings)


def _newest_formats(settings: Settings) -> Iterator[Format]:
    """Yield the format of each model's newest version. Skips wrong folders, which the workers report."""
    for name, of_model in settings.models.items():
        try:
            found = find_versions(settings.model_folder(name))
            yield require_model_file(found[wanted_versions(found, of_model.versions)[0]]).format
        except ModelError:
            continue


def _require_addresses(settings: Settings, kinds: frozenset[str]) -> None:
    if "api" in kinds:
        require_allowed(settings.api)
        require_free(settings.api.host, settings.api.port, "[api] port")
        if settings.grpc.port is not None:
            require_free(settings.grpc.host, settings.grpc.port, "[grpc] port")
        check_grpc(settings, first=True)
    if "dashboard" in kinds:
        require_free(settings.dashboard.host, settings.dashboard.port, "[dashboard] port")


def _embedded_redis(settings: Settings, kinds: frozenset[str]) -> EmbeddedRedis | None:
    wanted = embedded_redis.is_wanted(settings)
    if "redis" in kinds and wanted:
        return embedded_redis.prepare(settings.state_dir)
    if kinds == {"redis"}:
        raise SettingsError("[redis] url is set, so there is no embedded Redis to run here", field="redis.url")
    return None


def _notes(settings: Settings, kinds: frozenset[str], redis: EmbeddedRedis | None) -> Iterator[tuple[str, str]]:
    yield "starting; Ctrl-C stops everything", "info"
    if not redis:
        yield f"Redis: the one at {_without_password(settings.redis_url)}, not started here", "info"
        if not _answers(settings.redis_url):
            yield f"nothing answers at {_without_password(settings.redis_url)} yet: all will wait for it", "warning"
    if "api" in kinds and settings.grpc.port is not None:
        how = "TLS" if settings.grpc.certificate else "plain text"
        keys = "with API keys" if settings.api.keys else "without API keys"
        yield f"gRPC listens on {settings.grpc.host}:{settings.grpc.port}: {how}, {keys}", "info"
    if "dashboard" in kinds:
        where = "the settings" if settings.dashboard.password else settings.state_dir / "dashboard.json"
        yield f"Flower asks for a user and a password: see {where}", "info"
    for name, meant in variables_unread():
        yield f"{name} is no setting, and nothing reads it: call it {meant}", "warning"
    if os.geteuid() == 0:
        yield "running as root, and so does everything started here: an ordinary user is enough", "warning"


def _without_password(url: str) -> str:
    return read_sentinel_url(url).place if is_sentinel(url) else url.rpartition("@")[2].removeprefix("redis://")


def _answers(url: str) -> bool:
    if is_sentinel(url):
        return any(_listens(*address) for address in read_sentinel_url(url).sentinels)
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return os.path.exists(parts.path)  # noqa: PTH110 - as the URL spells it
    return _listens(parts.hostname or "127.0.0.1", parts.port or 6379)


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False
