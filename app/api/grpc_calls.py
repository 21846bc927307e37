"""One call over gRPC: who asks, how long the client waits, the way to compute for it, and the status of each error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc.aio import ServicerContext

from app.api.access import AccessControl
from app.api.process import ApiProcess
from app.api.requests import SPAN
from inference import tracing
from inference.errors import (
    BadInput,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    ForecacheError,
    NotFound,
    RateLimited,
    TooHeavy,
    Unauthorized,
    Unavailable,
    UnknownEntity,
    UnknownModel,
    Unsupported,
)
from inference.protocols.tensors import most_rows
from inference.schema import Block
from inference.serving import ModelCall, Outputs

#: the scope of predictions goes by a path of this start
_PREDICTIONS = "/v1/"
_ENDS_STREAMS = b"triton_grpc_error"

#: the first class that fits decides; an error of no class here is our fault
_CODES: tuple[tuple[type[ForecacheError], grpc.StatusCode], ...] = (
    (Unauthorized, grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (UnknownModel, grpc.StatusCode.NOT_FOUND),
    (UnknownEntity, grpc.StatusCode.NOT_FOUND),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.ABORTED),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (BadInput, grpc.StatusCode.INVALID_ARGUMENT),
    (TooHeavy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RateLimited, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
)

#: statuses of the server's failures, not of the client's mistakes
_FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
    }
)


def code_of(error: ForecacheError) -> grpc.StatusCode:
    """Return the status of an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class GrpcCall:
    """One client's call, or one message of a stream.

    `scope` describes it as an HTTP request, with its metadata as headers, so that keys and rates are the same.
    `method`: its service and name for its trace; empty: none is wanted.
    """

    def __init__(
        self,
        process: ApiProcess,
        access: AccessControl,
        context: ServicerContext[Any, Any],
        *,
        in_stream: bool = False,
        method: str = "",
    ) -> None:
        self.process = process
        self._in_stream = in_stream
        self._access = access
        self._context = context
        metadata = context.invocation_metadata() or ()
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": _PREDICTIONS,
            "headers": [(str(key).encode(), _bytes(value)) for key, value in metadata],
            "client": (_address_of(context.peer()),),
            SPAN: None,
        }
        if tracing.tracer is not None and method and tracing.tracer.samples(self.scope["headers"]):
            service, _, name = method.partition("/")
            facts = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
            self.scope[SPAN] = tracing.tracer.request(self.scope["headers"], method, facts)

    @property
    def ends_streams(self) -> bool:
        """Whether its client wants an error to end the stream, with a status: Triton's header says so."""
        return (_ENDS_STREAMS, b"true") in self.scope["headers"]

    def end(self, code: grpc.StatusCode) -> None:
        """End its span, if it is recorded."""
        span = self.scope.pop(SPAN)
        if span is not None:
            span.set_attribute("rpc.grpc.status_code", code.value[0])
            # the statuses of our own failures, by HTTP's meaning of them
            tracing.end_request(span, None, failed=code in _FAILURES)

    def check(self) -> None:
        """Check that the client may compute predictions.

        Raises:
            ForecacheError: as `AccessControl.check` says.
        """
        self._access.check(self.scope)

    def received(self, size: int) -> None:
        """Count the bytes of its message.

        Raises:
            RateLimited, TooHeavy: as `AccessControl.charge` says.
        """
        self._access.charge(self.scope, size=size)

    async def ask(self, model: str, tensors: Block, call: ModelCall, timeout_s: float | None = None) -> Outputs:
        """Return a model's outputs for tensors, by the client's deadline or, if it has none, the model's.

        `timeout_s`: how long the message wants to wait at most; None: it does not say. The deadline of a stream holds
        for all its messages, so each of them has no more time than the model's own.

        Raises:
            RateLimited, TooHeavy: as `AccessControl.charge` says of the rows.
            ForecacheError: as `PredictionService.predict_tensors` says.
        """
        self._access.charge(self.scope, rows=most_rows(tensors))
        left_s = self._context.time_remaining()
        if timeout_s is None and self._in_stream:
            timeout_s = self.process.settings.models[model].realtime.timeout_ms / 1000
        timeout_s = min((each for each in (timeout_s, left_s) if each is not None), default=None)
        return await self.process.service.predict_tensors(model, tensors, call, timeout_s=timeout_s)


#: answers a request message with a response message
Answer = Callable[[GrpcCall, Any], Awaitable[Any]]


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _address_of(peer: str) -> str:
    """Return the address in gRPC's name of a client, such as `ipv4:127.0.0.1:50123` or `ipv6:%5B::1%5D:50123`."""
    address = peer.partition(":")[2].rpartition(":")[0]
    return address.replace("%5B", "").replace("%5D", "").strip("[]")
