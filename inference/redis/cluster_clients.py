"""Clients of a Redis Cluster, with the methods and the errors of those of one Redis.

Each node has a client of its own; here commands find their nodes. What begins with the tag, `{P}`, lies in one slot:
pipelines, transactions and scripts work there as with one Redis.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from threading import Lock
from typing import Any, cast

import hiredis
import numpy as np
import numpy.typing as npt
import redis
from redis.client import Pipeline
from redis.exceptions import NoScriptError, TryAgainError

from inference.errors import StoreUnavailable
from inference.logs import get_logger
from inference.redis.bulk import BulkCommands, Pace, SeparatedReplies, read_in_bulk, send_in_bulk
from inference.redis.clients import (
    DIGESTS,
    REDIS_ERRORS,
    SCRIPTS,
    Client,
    Patience,
    Told,
    cause_of,
    options_of,
    translated,
)
from inference.redis.cluster import (
    Again,
    Batch,
    Cluster,
    Plan,
    bucket_slots,
    is_redirection,
    joined,
    key_of,
    one_by_key,
    plan_exchange,
)
from inference.redis.pipes import Command, Exchange, without_errors
from inference.redis.replication import WAIT_MS
from inference.redis.topology import Address
from inference.settings.server_urls import node_url
from inference.tracing import redis_span

log = get_logger(__name__)

#: commands that are sent again one by one after a bulk met a change of the map
_RESENT_TOGETHER = 64
#: a replica has so long to take over what a bulk wrote; a run counts its rows before it is published
_REPLICATED_WITHIN_MS = 1000


class ClusterClient(Client):
    """A blocking client of a cluster, which threads may share. See `Client`."""

    is_spread = True

    def __init__(self, url: str, patience: Patience, *, tag: str) -> None:
        options = options_of(patience)
        # redis-py wants a pool: nothing connects through this one
        super().__init__(host="", **options)
        self._open: Callable[[Address], Client] = lambda at: cast(Any, Client).from_url(node_url(url, at), **options)
        self._cluster = Cluster(url, timeout_s=options["socket_connect_timeout"], tag=tag)
        self._patience_s = patience.timeout_s
        self._nodes: dict[Address, Client] = {}
        self._opening = Lock()

    def close(self) -> None:
        """Close the connections to all nodes."""
        for node in self._nodes.values():
            node.close()

    def node(self, address: Address) -> Client:
        """Return the client of one node."""
        found = self._nodes.get(address)
        if found is None:
            with self._opening:
                found = self._nodes.setdefault(address, self._open(address))
        return found

    def primaries(self) -> list[Client]:
        """Return the clients of all nodes that serve slots."""
        with Told():
            return [self.node(address) for address in self._cluster.topology.primaries]

    def shards(self) -> list[tuple[str, Client, int]]:
        """Return the address, the client and the number of replicas of each node that serves slots."""
        with Told():
            topology = self._cluster.topology
        return [(f"{at[0]}:{at[1]}", self.node(at), len(topology.replicas.get(at, ()))) for at in topology.primaries]

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send one command to the node of its key; without a key, to the node of the tag."""

        def ask(node: Client, batch: Batch) -> list[Any]:
            if not batch.asks:
                return [node.execute_command(*arguments, **options)]
            pipe = node.pipeline(transaction=False)
            pipe.execute_command("ASKING")  # type: ignore[no-untyped-call]
            pipe.execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
            return pipe.execute(raise_on_error=False)[1:]

        return self._run_at_nodes([arguments], ask)[0]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: ARG002 - redis-py
        """Return a pipeline of commands whose keys begin with the tag."""
        return _ClusterPipeline(self, transaction)

    def send(self, commands: Sequence[Command], *, atomic: bool = False) -> list[Any]:
        """Return the replies as `Client.send` does; keys of an atomic pipeline lie in one slot."""
        if atomic:
            return self.run_in_slot(commands[0], lambda node: node.send(commands, atomic=True))

        def ask(node: Client, batch: Batch) -> list[Any]:
            pipe = node.pipeline(transaction=False)
            for command in batch.packed():
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            return batch.unpacked(pipe.execute(raise_on_error=False))

        single, counts = one_by_key(commands)
        return joined(commands, self._run_at_nodes(single, ask), counts)

    def run_in_slot(self, command: Command, ask: Callable[[Client], list[Any]]) -> list[Any]:
        """Call `ask` with the node of a command's key, until it has the whole slot."""

        def ask_node(node: Client, batch: Batch) -> list[Any]:
            # a node that takes a slot over cannot be asked for a transaction
            return [TryAgainError("")] if batch.asks else [ask(node)]

        found: list[Any] = self._run_at_nodes([command], ask_node)[0]
        return found

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Return the raw replies of one pipeline a node, all sent before the first reply."""
        single, counts = one_by_key(commands)
        with Told(), redis_span(commands):
            plan = plan_exchange(self._cluster, single, may_repeat=True, patience_s=self._patience_s)
            return joined(commands, without_errors(self._follow(plan, self._ask_at_once)), counts)

    def run_scripts(self, name: str, calls: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> list[Any]:
        """Run a script for each (keys, arguments), the keys of each in one slot. They may run twice."""
        commands = [("EVALSHA", DIGESTS[name], len(keys), *keys, *arguments) for keys, arguments in calls]
        try:
            return self.exchange(commands)
        except NoScriptError:
            self.load_script(name)
            return self.exchange(commands)

    def run_repeatable_script(self, name: str, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """Run a script over keys of one slot that may run twice."""
        return self.run_scripts(name, [(keys, arguments)])[0]

    def await_replica(self, note: str) -> None:
        """Wait until a replica of the node with the tag has all writes so far: it alone could lose them."""
        with Told():
            has_replica = self._cluster.replica_of(self._cluster.address_of(note)) is not None
        if has_replica and not self.send([("SET", note, b"", "PX", WAIT_MS), ("WAIT", 1, WAIT_MS)])[1]:
            log.warning("redis.not_replicated", error=f"no replica confirmed a write within {WAIT_MS} ms")

    def load_script(self, name: str) -> str:
        """Have all nodes keep a script."""
        for node in self.primaries():
            node.load_script(name)
        return DIGESTS[name]

    def slots_of(self, keys: Sequence[Any]) -> list[list[int]]:
        """Return the places of keys, together if they lie in one slot."""
        found: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            found.setdefault(self._cluster.slot_of(key), []).append(place)
        return list(found.values())

    def nodes_of(self, buckets: int) -> npt.NDArray[np.int16] | None:
        """Return the number of the node that holds each of so many buckets."""
        with Told():
            return self._cluster.topology.owners[bucket_slots(buckets)]

    def send_in_bulk(self, pieces: Iterable[BulkCommands], pace: Pace) -> bytes:
        """Send each node its pieces, to all of them at the same time, and return the replies."""
        by_node: dict[int, list[BulkCommands]] = {}
        for piece in pieces:
            by_node.setdefault(piece.node, []).append(piece)
        if not by_node:
            return b""
        with Told(), ThreadPoolExecutor(len(by_node), "bulk") as threads:
            primaries = self._cluster.topology.primaries
            sent = [threads.submit(self._send_to, primaries[node], its, pace) for node, its in by_node.items()]
            return b"".join(one.result() for one in sent)

    def read_in_bulk(self, pieces: Iterable[Sequence[Command]], separator: bytes) -> Iterator[SeparatedReplies]:
        """Yield the raw replies to pieces, which must all be for one node."""
        rest = iter(pieces)
        first = next(rest, None)
        if first is None:
            return
        asked: list[Sequence[Command]] = []

        def noted() -> Iterator[Sequence[Command]]:
            for piece in chain([first], rest):
                asked.append(piece)
                yield piece

        with Told():
            pool = self.node(self._cluster.address_of(key_of(first[0]))).connection_pool
            with closing(read_in_bulk(pool, noted(), separator)) as found:
                for replies in found:
                    yield self._without_redirections(replies, asked.pop(0), separator)

    def _without_redirections(
        self, replies: SeparatedReplies, commands: Sequence[Command], separator: bytes
    ) -> SeparatedReplies:
        """Return the replies with those of other nodes in the place of redirections."""
        echo = b"$%d\r\n%b\r\n" % (len(separator), separator)
        starts = [0, *(end + len(echo) for end in replies.ends[:-1])]
        parts = [replies.data[start:end] for start, end in zip(starts, replies.ends, strict=True)]
        wrong = [index for index, part in enumerate(parts) if part.startswith(b"-")]
        if not wrong:
            return replies
        for index, rows in zip(wrong, self.exchange([commands[index] for index in wrong]), strict=True):
            parts[index] = _packed_reply(rows)
        lengths = np.cumsum([len(part) + len(echo) for part in parts])
        return SeparatedReplies(b"".join(part + echo for part in parts), (lengths - len(echo)).tolist())

    def _send_to(self, address: Address, pieces: list[BulkCommands], pace: Pace) -> bytes:
        replicated = self._cluster.topology.replicas.get(address)
        wait = hiredis.pack_command(("WAIT", 1, _REPLICATED_WITHIN_MS))  # type: ignore[arg-type]  # as in `pipes`
        try:
            pool = self.node(address).connection_pool
            replies = send_in_bulk(pool, chain(pieces, [BulkCommands(wait, 1)]) if replicated else pieces, pace)
            return replies[: replies.rindex(b":")] if replicated else replies
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError) as error:
            if isinstance(error, redis.ResponseError) and not is_redirection(error):
                raise
            self._cluster.read()
            return self._send_one_by_one(pieces)

    def _send_one_by_one(self, pieces: list[BulkCommands]) -> bytes:
        """Send packed commands to the nodes that serve them now."""
        reader = hiredis.Reader()
        commands: list[Command] = []
        for piece in pieces:
            reader.feed(bytes(piece.data))
            while (command := reader.gets()) is not False:
                commands.append((command[0].decode(), *command[1:]))
        replies: list[int] = []
        for start in range(0, len(commands), _RESENT_TOGETHER):
            part = commands[start : start + _RESENT_TOGETHER]
            try:
                replies += self.exchange(part)
            except NoScriptError:  # a replica that took over has no scripts
                for name in SCRIPTS:
                    self.load_script(name)
                replies += self.exchange(part)
        return b"".join(b":%d\r\n" % reply for reply in replies)

    def _run_at_nodes(self, commands: Sequence[Command], ask: Callable[[Client, Batch], list[Any]]) -> list[Any]:
        """Follow a plan whose batches `ask` sends, one node after the other; raise the first error."""

        def ask_nodes(batches: list[Batch]) -> list[Any]:
            answers: list[Any] = []
            for batch in batches:
                try:
                    answers.append(ask(self.node(batch.address), batch))
                except (NoScriptError, StoreUnavailable) as error:
                    answers.append(answer_of(error, batch))
            return answers

        with Told():
            plan = plan_exchange(self._cluster, commands, may_repeat=False, patience_s=self._patience_s)
            return without_errors(self._follow(plan, ask_nodes))

    def _follow(self, plan: Plan, ask: Callable[[list[Batch]], list[Any]]) -> list[Any]:
        try:
            step = next(plan)
            while True:
                if isinstance(step, Again):
                    time.sleep(step.pause_s)
                    self._cluster.read_again()
                    step = next(plan)
                else:
                    step = plan.send(ask(step))
        except StopIteration as done:
            return cast(list[Any], done.value)

    def _ask_at_once(self, batches: list[Batch]) -> list[Any]:
        begun: list[Exchange | Exception] = []
        for batch in batches:
            try:
                begun.append(self.node(batch.address)._pipe.begin(batch.packed()))
            except REDIS_ERRORS as error:
                begun.append(error)
        answers: list[Any] = []
        for batch, one in zip(batches, begun, strict=True):
            if isinstance(one, Exception):
                answers.append(one)
                continue
            try:
                answers.append(batch.unpacked(self.node(batch.address)._pipe.end(one)))
            except REDIS_ERRORS as error:
                answers.append(error)
        return answers


class _ClusterPipeline(Pipeline):
    """A pipeline over keys of one slot, or of keys that begin with the tag."""

    def __init__(self, client: ClusterClient, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._client, self._atomic = client, transaction

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack, is_atomic = list(self.command_stack), self._atomic
        self.reset()
        if not stack:
            return []
        first = next((arguments for arguments, _ in stack if key_of(arguments) is not None), stack[0][0])
        if is_atomic:
            return self._client.run_in_slot(first, lambda node: replay(node.pipeline(), stack, errors=False))
        replies = self._client.run_in_slot(first, lambda node: replay(node.pipeline(False), stack, errors=True))
        for index, (arguments, options) in enumerate(stack):
            if isinstance(replies[index], redis.ResponseError) and is_redirection(replies[index]):
                replies[index] = self._client.execute_command(*arguments, **options)
        if raise_on_error:
            try:
                without_errors(replies)
            except redis.RedisError as error:
                raise translated(error) from error
        return replies


def answer_of(error: NoScriptError | StoreUnavailable, batch: Batch) -> list[Any] | Exception:
    """Return what a node's client raised as a plan takes it: an error for each command, or the node's outage.

    Raises:
        StoreUnavailable: the error itself, if redis-py's is not behind it.
    """
    if isinstance(error, NoScriptError):
        return [error]
    cause = cause_of(error)
    if cause is None:
        raise error
    return [cause] * len(batch.commands) if isinstance(cause, redis.ResponseError) else cause


def replay(pipe: Any, stack: Sequence[Any], *, errors: bool) -> Any:
    """Execute the commands of another pipeline; `errors`: leave errors among the replies."""
    pipe.command_stack = list(stack)
    return pipe.execute(raise_on_error=not errors)


def _packed_reply(reply: Any) -> bytes:
    """Return a hash as Redis sends it to a connection that speaks RESP 2."""
    items = list(chain.from_iterable(reply.items())) if isinstance(reply, dict) else reply
    return b"*%d\r\n" % len(items) + b"".join(b"$%d\r\n%b\r\n" % (len(item), item) for item in items)
