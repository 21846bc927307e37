"""Computes rows that requests bring along: features (instances), and tensors of other serving protocols.

Small requests of one moment share a message, since a message costs API and worker more than most rows do. A worker
computes instances of several requests in one call of the model, as it does with entities. Tensors of two requests never
share a call: those of one length must not meet those of another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from inference.errors import ForecacheError
from inference.protocols.json_documents import ENCODED_AT_ONCE, is_heavy
from inference.protocols.tensors import are_rows_of, bytes_of, check_outputs, joined, pack, rows_between
from inference.schema import Block, rows_in
from inference.serving.answers import (
    ModelCall,
    Outputs,
    Reply,
    Spent,
    outputs_from_result,
    replies_from_result,
    results_of_calls,
)
from inference.serving.coalescer import Coalescer
from inference.serving.worker_client import WorkerClient
from inference.settings import RealtimeSettings

PREDICT_INSTANCES = "forecache.predict_instances"
PREDICT_TENSORS = "forecache.predict_tensors"

#: a message that is shared holds at most so many requests, and keeps a worker for about so many seconds
SHARED_BY, SHARED_S = 16, 0.01
#: larger tensors have a message of their own, and are packed in a thread, beside the event loop
_LARGE_BYTES = 64 * 1024
#: a whole message, in the parts that the coalescer adds up
_WHOLE = 1000
#: weight of the newest call in the time that calls take
_NEWEST = 0.2


@dataclass(frozen=True, eq=False)
class _Instances:
    """Feature rows of one request. `share`: of a message, in parts of `_WHOLE`."""

    rows: list[Any]
    share: int


@dataclass(frozen=True, eq=False)
class _TensorCall:
    """One call of the model for one request, as a message has it. `share`: as of `_Instances`."""

    arguments: dict[str, Any] = field(repr=False)
    share: int


class OwnRows:
    """Sends requests' own rows to the workers of one model, from one event loop. Stores nothing."""

    def __init__(self, workers: WorkerClient, realtime: RealtimeSettings) -> None:
        self._workers = workers
        self._max_rows = realtime.max_micro_batch
        # a call of the model takes so long; until one has, none shares a message
        self._call_s = SHARED_S
        self._instances: Coalescer[_Instances, list[Reply]] = Coalescer(
            self._compute_instances,
            max_in_flight=realtime.max_in_flight,
            max_rows=_WHOLE,
            rows_of=lambda part: part.share,
        )
        self._calls: Coalescer[_TensorCall, Outputs] = Coalescer(
            self._compute_calls, max_in_flight=realtime.max_in_flight, max_rows=_WHOLE, rows_of=lambda call: call.share
        )

    async def close(self) -> None:
        """Cancel everything in flight."""
        await self._instances.close()
        await self._calls.close()

    async def instances(self, rows: Sequence[Any], until: float) -> list[Reply]:
        """Return the reply to each feature row. If a micro-batch fails, each of its rows gets the error.

        `until`: event-loop time.
        """
        size = self._max_rows
        parts = [self._instances_of(rows[start : start + size]) for start in range(0, len(rows), size)]
        replies = await self._instances.ask(parts, until=until)
        return [
            reply
            for part, of_part in zip(parts, replies, strict=True)
            for reply in ([of_part] * len(part.rows) if isinstance(of_part, ForecacheError) else of_part)
        ]

    async def tensors(self, inputs: Block, until: float, call: ModelCall) -> Outputs:
        """Compute the model's own input tensors, in micro-batches if their rows may be computed apart.

        Raises:
            ForecacheError: the first error of a micro-batch.
            BadInput: the outputs take too many bytes for an answer.
        """
        size, parts = self._max_rows, [inputs]
        if call.splits and rows_in(inputs) > size:
            parts = [rows_between(inputs, start, start + size) for start in range(0, rows_in(inputs), size)]
        outputs = await self._ask_tensors(parts, call, until)
        if len({one.version for one in outputs}) > 1:
            # another version was activated meanwhile, and an answer has one version only
            call = replace(call, version=max(one.version for one in outputs))
            outputs = await self._ask_tensors(parts, call, until)
        if not are_rows_of(parts, [one.tensors for one in outputs]):
            # the model pads to the longest row of a call, or computes all rows as one
            outputs = await self._ask_tensors([inputs], call, until)
        tensors = joined([one.tensors for one in outputs])
        check_outputs(tensors)
        spent = Spent(*(sum(column) for column in zip(*(one.spent for one in outputs), strict=True)))
        longest_us = max(one.longest_us for one in outputs)
        return Outputs(tensors, outputs[0].version, len(outputs), spent, longest_us)

    def _instances_of(self, rows: Sequence[Any]) -> _Instances:
        rows = list(rows)
        is_large = is_heavy(rows, ENCODED_AT_ONCE // SHARED_BY)
        return _Instances(rows, _WHOLE if is_large else self._share(len(rows) / self._max_rows))

    def _share(self, least: float) -> int:
        return round(_WHOLE * min(max(least, 1 / SHARED_BY), 1))

    async def _compute_instances(self, parts: list[_Instances], until: float) -> list[list[Reply]]:
        rows = [row for part in parts for row in part.rows]
        result = await self._workers.ask(PREDICT_INSTANCES, {"instances": rows}, until)
        replies = iter(replies_from_result(result, len(rows)))
        return [[next(replies) for _ in part.rows] for part in parts]

    async def _ask_tensors(self, parts: Sequence[Block], call: ModelCall, until: float) -> list[Outputs]:
        if len(parts) == 1:
            return [await self._ask_part(parts[0], call, until)]
        tasks = [asyncio.create_task(self._ask_part(part, call, until)) for part in parts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # the answer needs all of them

    async def _ask_part(self, part: Block, call: ModelCall, until: float) -> Outputs:
        # texts are packed and unpacked one by one, which takes long for a million of them
        is_large = bytes_of(part) > _LARGE_BYTES
        packed = await asyncio.to_thread(pack, part) if is_large else pack(part)
        # a worker of an older release knows no signatures
        named = {} if call.signature is None else {"signature": call.signature}
        arguments = {"inputs": packed, "version": call.version, **named}
        if is_large:
            result = await self._workers.ask_apart(PREDICT_TENSORS, arguments, until)
            return await asyncio.to_thread(outputs_from_result, result)
        # `bytes_of` knows nothing of the lengths of texts
        size = sum(len(one["data"]) for one in packed.values())
        least = max(size / _LARGE_BYTES, self._call_s / SHARED_S)
        [reply] = await self._calls.ask([_TensorCall(arguments, self._share(least))], until=until)
        if isinstance(reply, ForecacheError):
            raise reply
        return reply

    async def _compute_calls(self, calls: list[_TensorCall], until: float) -> list[Outputs | ForecacheError]:
        first, *more = (call.arguments for call in calls)
        result = await self._workers.ask(PREDICT_TENSORS, first | ({"more": more} if more else {}), until)
        replies = [self._reply(one) for one in results_of_calls(result)]
        # a worker leaves out calls that would make the message of its results too large
        left = (self._compute_alone(call, until) for call in calls[len(replies) :])
        return [*replies, *await asyncio.gather(*left)]

    async def _compute_alone(self, call: _TensorCall, until: float) -> Outputs | ForecacheError:
        try:
            return self._reply(await self._workers.ask_apart(PREDICT_TENSORS, call.arguments, until))
        except ForecacheError as error:
            return error

    def _reply(self, result: Mapping[str, Any]) -> Outputs | ForecacheError:
        try:
            outputs = outputs_from_result(result)
        except ForecacheError as error:
            return error
        if outputs.longest_us:  # a worker of an older release does not tell it, and would not know further calls either
            self._call_s += _NEWEST * (outputs.longest_us / 1e6 - self._call_s)
        return outputs
