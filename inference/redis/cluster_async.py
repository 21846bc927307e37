"""The client of a Redis Cluster for one event loop. See `cluster_clients`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import redis
import redis.asyncio
from redis.exceptions import AskError, NoScriptError, TryAgainError

from inference.errors import StoreUnavailable
from inference.redis.clients import REDIS_ERRORS, AsyncClient, Patience, Told, cause_of, options_of, translated
from inference.redis.cluster import (
    Again,
    Batch,
    Cluster,
    Plan,
    is_redirection,
    joined,
    key_of,
    one_by_key,
    plan_exchange,
)
from inference.redis.cluster_clients import answer_of, replay
from inference.redis.pipes import AsyncExchange, Command, without_errors
from inference.redis.topology import Address
from inference.settings.server_urls import node_url


class AsyncClusterClient(AsyncClient):
    """A client of a cluster for one event loop. See `AsyncClient`."""

    is_spread = True

    def __init__(self, url: str, patience: Patience, *, tag: str) -> None:
        options = options_of(patience)
        super().__init__(host="", **options)
        self._open: Callable[[Address], AsyncClient] = lambda at: cast(Any, AsyncClient).from_url(
            node_url(url, at), **options
        )
        self._cluster = Cluster(url, timeout_s=options["socket_connect_timeout"], tag=tag)
        self._patience_s = patience.timeout_s
        self._nodes: dict[Address, AsyncClient] = {}
        self._reading: asyncio.Task[None] | None = None

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        for node in self._nodes.values():
            await node.aclose(close_connection_pool)

    def node(self, address: Address) -> AsyncClient:
        """Return the client of one node."""
        found = self._nodes.get(address)
        if found is None:
            found = self._nodes[address] = self._open(address)
        return found

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send one command to the node of its key; without a key, to the node of the tag."""

        async def ask(node: AsyncClient, batch: Batch) -> list[Any]:
            if not batch.asks:
                return [await node.execute_command(*arguments, **options)]
            pipe = node.pipeline(transaction=False)
            pipe.execute_command("ASKING")
            pipe.execute_command(*arguments, **options)
            return (await pipe.execute(raise_on_error=False))[1:]

        return (await self._run_at_nodes([arguments], ask))[0]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> redis.asyncio.client.Pipeline:  # noqa: ARG002 - redis-py
        """Return a pipeline of commands whose keys begin with the tag."""
        return _AsyncClusterPipeline(self, transaction)

    async def run_in_slot(self, command: Command, ask: Callable[[AsyncClient], Any]) -> list[Any]:
        """Call `ask` with the node of a command's key, until it has the whole slot."""

        async def ask_node(node: AsyncClient, batch: Batch) -> list[Any]:
            return [TryAgainError("")] if batch.asks else [await ask(node)]

        found: list[Any] = (await self._run_at_nodes([command], ask_node))[0]
        return found

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Return the raw replies of one pipeline a node, all sent at once."""
        single, counts = one_by_key(commands)
        with Told():
            await self._know()
            plan = plan_exchange(self._cluster, single, may_repeat=True, patience_s=self._patience_s)
            return joined(commands, without_errors(await self._follow(plan, self._ask_pipes)), counts)

    async def await_replicas(self, note: str, within_ms: int) -> bool:
        """Return whether a replica of each node that has one confirms all writes so far; not while slots move."""
        with Told():
            await self._know()
        for _ in range(2):
            notes = self._cluster.notes(note)
            asked = (self.node(address).await_replicas(key, within_ms) for address, key in notes.items())
            try:
                return all(await asyncio.gather(*asked))
            except StoreUnavailable as error:
                if not isinstance(cause_of(error), AskError):
                    raise
            await self._read_again()
        return False

    async def _ask_pipes(self, batches: list[Batch]) -> list[Any]:
        """Send to all nodes before the first reply. Tasks, which take longer than a batch, only to connect."""
        pipes = [self.node(batch.address)._pipe for batch in batches]
        sent: list[AsyncExchange | asyncio.Task[list[Any]]] = []
        for pipe, batch in zip(pipes, batches, strict=True):
            commands = batch.packed()
            sent.append(pipe.begin(commands) or asyncio.create_task(pipe.ask(commands)))
        answers: list[Any] = []
        try:
            for pipe, batch, one in zip(pipes, batches, sent, strict=True):
                try:
                    replies = await one if isinstance(one, asyncio.Task) else await pipe.end(one)
                    answers.append(batch.unpacked(replies))
                except REDIS_ERRORS as error:
                    answers.append(error)
        finally:
            for pipe, one in list(zip(pipes, sent, strict=True))[len(answers) + 1 :]:  # the caller gave up
                if isinstance(one, asyncio.Task):
                    one.cancel()
                else:
                    await pipe.give_up(one)
        return answers

    async def _run_at_nodes(self, commands: Sequence[Command], ask: Callable[[AsyncClient, Batch], Any]) -> list[Any]:
        async def ask_nodes(batches: list[Batch]) -> list[Any]:
            answers: list[Any] = []
            for batch in batches:
                try:
                    answers.append(await ask(self.node(batch.address), batch))
                except (NoScriptError, StoreUnavailable) as error:
                    answers.append(answer_of(error, batch))
            return answers

        with Told():
            await self._know()
            plan = plan_exchange(self._cluster, commands, may_repeat=False, patience_s=self._patience_s)
            return without_errors(await self._follow(plan, ask_nodes))

    async def _follow(self, plan: Plan, ask: Callable[[list[Batch]], Any]) -> list[Any]:
        try:
            step = next(plan)
            while True:
                if isinstance(step, Again):
                    await asyncio.sleep(step.pause_s)
                    await self._read_again()
                    step = next(plan)
                else:
                    step = plan.send(await ask(step))
        except StopIteration as done:
            return cast(list[Any], done.value)

    async def _know(self) -> None:
        if not self._cluster.is_known:
            await asyncio.to_thread(self._cluster.read)

    async def _read_again(self) -> None:
        """Read the map in a thread, once for all who wait for it."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(asyncio.to_thread(self._cluster.read_again))
        await asyncio.shield(self._reading)


class _AsyncClusterPipeline(redis.asyncio.client.Pipeline):
    """As `_ClusterPipeline`."""

    def __init__(self, client: AsyncClusterClient, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack, is_atomic = list(self.command_stack), self.is_transaction
        self.command_stack = []
        if not stack:
            return []
        first = next((arguments for arguments, _ in stack if key_of(arguments) is not None), stack[0][0])
        ask = partial(_replay_at, stack=stack, is_atomic=is_atomic)
        replies = await self._client.run_in_slot(first, ask)
        for index, (arguments, options) in enumerate(stack):
            if isinstance(replies[index], redis.ResponseError) and is_redirection(replies[index]):
                replies[index] = await self._client.execute_command(*arguments, **options)
        if raise_on_error:
            try:
                without_errors(replies)
            except redis.RedisError as error:
                raise translated(error) from error
        return replies


async def _replay_at(node: AsyncClient, *, stack: Sequence[Any], is_atomic: bool) -> Any:
    return await replay(node.pipeline(is_atomic), stack, errors=not is_atomic)
