"""Opens Redis clients by how long they wait, and translates redis-py's exceptions.

Every command, pipeline and script of these clients raises StoreUnavailable or StoreFull if Redis does not answer or
refuses. A Redis outage always raises; it never looks like a miss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import redis
import redis.asyncio
from redis.client import Pipeline
from redis.exceptions import MovedError, NoScriptError

from inference.errors import StoreFull, StoreUnavailable
from inference.redis.bulk import BulkCommands, Pace, SeparatedReplies, read_in_bulk, send_in_bulk
from inference.redis.pipes import AsyncPipe, Command, Pipe, closed_connections, is_demoted
from inference.redis.sentinels import async_client, blocking_client
from inference.redis.topology import ClusterFault
from inference.settings.sentinel_urls import is_sentinel, read_sentinel_url
from inference.settings.server_urls import is_cluster
from inference.tracing import redis_span

#: longest wait for a connection, even if answers may take longer
_CONNECT_TIMEOUT_S = 5.0
#: how long the note of `await_replicas` lives
_NOTE_MS = 1000
#: the name of thousands of commands in a trace
_BULK = ("BULK",)
#: what redis-py raises, which `translated` names
REDIS_ERRORS = (redis.RedisError, OSError)
#: a script that `run_script` and redis-py's locks then send as a whole, and a value of ours that is none for Redis
NOT_OUTAGES = (NoScriptError, redis.DataError)

#: name → text, and name → digest, of the files in `scripts/`
SCRIPTS = {path.stem: path.read_text() for path in (Path(__file__).parent / "scripts").glob("*.lua")}
DIGESTS = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in SCRIPTS.items()}


@dataclass(frozen=True)
class Patience:
    """How long a client waits for each answer, and for a connection (at most 5 s). Only `exchange` resends.

    `check_after_s`: seconds of idleness after which a connection is checked before its next use; 0: never.
    """

    timeout_s: float
    check_after_s: float = 0


#: gives up soon, since somebody waits for the answer
REQUEST = Patience(1.0)
#: for workers, pages and commands, which may wait for a busy Redis
WORKER = Patience(10.0, check_after_s=30)


class Client(redis.Redis):
    """A blocking client, which threads may share. Answers are bytes.

    Every method raises StoreUnavailable if Redis does not answer or refuses a command, and StoreFull if it is out
    of memory.
    """

    #: whether keys lie on several nodes, which answer in any order
    is_spread = False

    @cached_property
    def _pipe(self) -> Pipe:
        return Pipe(self)

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send one command and return its answer; every method of redis-py calls this."""
        try:
            with _asking([arguments]):
                return super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
        except NOT_OUTAGES:
            raise
        except REDIS_ERRORS as error:
            raise _outage(self.connection_pool, error) from error

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline whose `execute` raises the errors of this client."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def now(self) -> float:
        """Return Redis' time in epoch seconds, by which all processes agree."""
        seconds, microseconds = self.time()
        return seconds + microseconds / 1e6

    def send(self, commands: Sequence[Command], *, atomic: bool = False) -> list[Any]:
        """Return the replies of one pipeline; `atomic` makes it a transaction."""
        with self.pipeline(transaction=atomic) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            replies: list[Any] = pipeline.execute()
            return replies

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Return the raw replies of one pipeline, faster than `send`. The commands may run twice."""
        try:
            with _asking(commands):
                return self._pipe.send(commands)
        except NOT_OUTAGES:
            raise
        except REDIS_ERRORS as error:
            raise _outage(self.connection_pool, error) from error

    def run_script(self, name: str, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """Run a script of `scripts/` and return its answer."""
        try:
            return self.evalsha(DIGESTS[name], len(keys), *keys, *arguments)
        except NoScriptError:
            return self.eval(SCRIPTS[name], len(keys), *keys, *arguments)

    def run_repeatable_script(self, name: str, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """Run a script that may run twice, faster than `run_script`, and return its answer."""
        try:
            return self.exchange([("EVALSHA", DIGESTS[name], len(keys), *keys, *arguments)])[0]
        except NoScriptError:
            return self.run_script(name, keys, arguments)

    def slots_of(self, keys: Sequence[Any]) -> list[list[int]]:
        """Return the places of keys, together if they lie in one slot of a cluster; here all together."""
        return [list(range(len(keys)))]

    def run_scripts(self, name: str, calls: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> list[Any]:
        """Run a script for each (keys, arguments) and return its answers. They may run twice."""
        return [self.run_repeatable_script(name, keys, arguments) for keys, arguments in calls]

    def nodes_of(self, buckets: int) -> npt.NDArray[np.int16] | None:  # noqa: ARG002 - of a cluster's client
        """Return the number of the node that holds each of so many buckets; None if one Redis holds all."""
        return None

    def load_script(self, name: str) -> str:
        """Have Redis keep a script, for EVALSHA among bulk commands, and return its digest."""
        self.script_load(SCRIPTS[name])
        return DIGESTS[name]

    def await_replica(self, note: str) -> None:
        """Wait until a replica has all writes under the tag, if a failover could lose them and keep other rows.

        Does nothing here: one Redis loses its last writes whatever their keys. `note`: a key to write first.
        """

    def send_in_bulk(self, pieces: Iterable[BulkCommands], pace: Pace) -> bytes:
        """Send tens of thousands of commands and return their replies, each a `:number` and CR LF."""
        try:
            with _asking([_BULK]):
                return send_in_bulk(self.connection_pool, pieces, pace)
        except REDIS_ERRORS as error:
            raise _outage(self.connection_pool, error) from error

    def read_in_bulk(self, pieces: Iterable[Sequence[Command]], separator: bytes) -> Iterator[SeparatedReplies]:
        """Yield the raw replies to pieces of commands, each reply followed by `separator`."""
        with closing(read_in_bulk(self.connection_pool, pieces, separator)) as found:
            try:
                yield from found
            except REDIS_ERRORS as error:
                raise _outage(self.connection_pool, error) from error


class _Pipeline(Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            with _asking([arguments for arguments, _ in self.command_stack]):
                return super().execute(raise_on_error)
        except NOT_OUTAGES:
            raise
        except REDIS_ERRORS as error:
            raise _outage(self.connection_pool, error) from error


class AsyncClient(redis.asyncio.Redis):
    """A client for one event loop. Answers are bytes; `async with` closes it.

    Every method raises StoreUnavailable if Redis does not answer or refuses a command, and StoreFull if it is out
    of memory. Only subscriptions raise redis-py's own errors.
    """

    #: as `Client.is_spread`
    is_spread = False

    @cached_property
    def _pipe(self) -> AsyncPipe:
        timeout_s = self.connection_pool.connection_kwargs.get("socket_timeout")
        return AsyncPipe(self, timeout_s=WORKER.timeout_s if timeout_s is None else timeout_s)

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send one command and return its answer; every method of redis-py calls this."""
        try:
            with closed_connections():
                return await super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
        except NOT_OUTAGES:
            raise
        except REDIS_ERRORS as error:
            raise await _async_outage(self.connection_pool, error) from error

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> redis.asyncio.client.Pipeline:
        """Return a pipeline whose `execute` raises the errors of this client."""
        return _AsyncPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Return the raw replies of one pipeline, faster than redis-py. The commands may run twice."""
        try:
            return await self._pipe.send(commands)
        except REDIS_ERRORS as error:
            raise await _async_outage(self.connection_pool, error) from error

    async def await_replicas(self, note: str, within_ms: int) -> bool:
        """Return whether a replica confirms all writes so far, of whatever connection. `note`: a key to write first.

        Redis replicates in order, so a replica that has the note has all writes before it.
        """
        _, replicas = await self.exchange([("SET", note, b"", "PX", _NOTE_MS), ("WAIT", 1, within_ms)])
        return bool(replicas)

    async def run_script(self, name: str, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """Run a script of `scripts/` and return its answer."""
        try:
            return await self.evalsha(DIGESTS[name], len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.eval(SCRIPTS[name], len(keys), *keys, *arguments)


class _AsyncPipeline(redis.asyncio.client.Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            with closed_connections():
                return await super().execute(raise_on_error)
        except NOT_OUTAGES:
            raise
        except REDIS_ERRORS as error:
            raise await _async_outage(self.connection_pool, error) from error


def open_client(url: str, patience: Patience, *, tag: str = "") -> Client:
    """Return a blocking client of a Redis or of a cluster. It connects when it is first used.

    `tag`: what the keys begin with that lie in one slot of a cluster (`RedisSettings.key_prefix`).

    Raises:
        ValueError: the URL is invalid.
    """
    if is_sentinel(url):
        return cast(Client, blocking_client(read_sentinel_url(url), Client, **options_of(patience)))
    if is_cluster(url):
        from inference.redis.cluster_clients import ClusterClient  # which is made of clients of this module

        return ClusterClient(url, patience, tag=tag)
    return cast(Client, Client.from_url(url, **options_of(patience)))


def open_async_client(url: str, patience: Patience, *, tag: str = "") -> AsyncClient:
    """Return a client for one event loop. It connects when it is first used. `tag`: as in `open_client`.

    Raises:
        ValueError: the URL is invalid.
    """
    if is_sentinel(url):
        return cast(AsyncClient, async_client(read_sentinel_url(url), AsyncClient, **options_of(patience)))
    if is_cluster(url):
        from inference.redis.cluster_async import AsyncClusterClient

        return AsyncClusterClient(url, patience, tag=tag)
    return cast(AsyncClient, AsyncClient.from_url(url, **options_of(patience)))


def cause_of(error: StoreUnavailable) -> redis.RedisError | OSError | None:
    """Return redis-py's error behind an outage, to distinguish kinds of outage; None if there is none."""
    cause = error.__cause__
    return cause if isinstance(cause, REDIS_ERRORS) else None


def _asking(commands: Sequence[Sequence[Any]]) -> AbstractContextManager[object]:
    return redis_span(commands, NOT_OUTAGES)


def _outage(pool: Any, error: redis.RedisError | OSError) -> StoreUnavailable:
    if is_demoted(error):  # the next connection may lead to the new primary
        pool.disconnect(inuse_connections=False)
    return translated(error)


async def _async_outage(pool: Any, error: redis.RedisError | OSError) -> StoreUnavailable:
    if is_demoted(error):
        await pool.disconnect(inuse_connections=False)
    return translated(error)


def translated(error: redis.RedisError | OSError) -> StoreUnavailable:
    """Return redis-py's error as one of ours."""
    if isinstance(error, ClusterFault):
        return StoreUnavailable(str(error))
    # by its text: the error's class and code depend on Redis' version and on whether a script caused it
    if "command not allowed when used memory > 'maxmemory'" in str(error):
        return StoreFull("Redis is out of memory: raise its maxmemory or store less, then start the run again")
    if isinstance(error, MovedError):
        return StoreUnavailable("this Redis is a node of a cluster: write redis+cluster:// in [redis] cache_url")
    if isinstance(error, redis.ResponseError):
        return StoreUnavailable(f"Redis refuses a command: {error}")
    return StoreUnavailable(f"Redis did not answer: {error}")


class Told:
    """Translates redis-py's errors within the block."""

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, REDIS_ERRORS) and not isinstance(error, NOT_OUTAGES):
            raise translated(error) from error


def options_of(patience: Patience) -> dict[str, Any]:
    """Return redis-py's options of a client."""
    return {
        "socket_timeout": patience.timeout_s,
        "socket_connect_timeout": min(patience.timeout_s, _CONNECT_TIMEOUT_S),
        "health_check_interval": patience.check_after_s,
        "retry": None,
    }
