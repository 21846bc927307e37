"""gRPC beside HTTP, in the same process and event loop: two serving protocols, health and reflection.

Each process of the API listens by itself, and the kernel spreads the connections over them (SO_REUSEPORT). A client's
connection ends politely now and then, so that it can come to another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio as reflection

from app.api import open_inference_grpc, tensorflow_serving_grpc
from app.api.access import AccessControl
from app.api.grpc_calls import Answer, GrpcCall, code_of
from app.api.grpc_streams import StreamAnswer, Streams
from app.api.health import readiness
from app.api.limits import BODY_BYTES_PER_S, BODY_TIMEOUT_S, MAX_BODY_BYTES, MAX_HEAD_BYTES, HeldBytes, RequestMemory
from app.api.open_inference import unsupported
from app.api.problems import DEFECT, defects, words_of
from app.api.process import ApiProcess
from app.api.requests import begin_request, header_of
from inference.errors import (
    BadInput,
    DeadlineExceeded,
    ForecacheError,
    SettingsError,
    Unavailable,
    cut,
)
from inference.logs import RequestId, get_logger
from inference.protocols.messages import descriptor_pool, methods_of, parse_message
from inference.protocols.tensors import MAX_ANSWER_BYTES
from inference.settings import Settings
from inference.settings.processes import OPEN_REQUESTS_S

log = get_logger(__name__)

HEALTH = "grpc.health.v1.Health"
#: calls of one process at a time; each may hold a message
MAX_CALLS = 512
#: time for a message to arrive
READ_TIMEOUT_S = BODY_TIMEOUT_S + MAX_BODY_BYTES / BODY_BYTES_PER_S
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 1),
    ("grpc.max_receive_message_length", MAX_BODY_BYTES),
    ("grpc.max_send_message_length", 2 * MAX_ANSWER_BYTES),
    ("grpc.max_metadata_size", MAX_HEAD_BYTES),
    ("grpc.max_concurrent_streams", MAX_CALLS),
    # a client that has stopped to read answers no ping
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 5 * 60_000),
)


@asynccontextmanager
async def grpc_served(process: ApiProcess, access: AccessControl, memory: RequestMemory) -> AsyncIterator[None]:
    """Serve gRPC during the block; its settings have a port.

    Raises:
        SettingsError: the address cannot be used, or a file of the certificate cannot be read.
    """
    settings = process.settings.grpc
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    services = GrpcServices(process, access, memory)
    server.add_generic_rpc_handlers(services.handlers())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(services), server)
    address = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
    try:
        credentials = _credentials(process.settings)
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise SettingsError(f"[grpc] port {address} cannot be used: set another one", field="grpc.port") from error
    await server.start()
    log.info("grpc.listening", address=address, tls=credentials is not None)
    try:
        yield
    finally:
        await server.stop(OPEN_REQUESTS_S)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    key, certificate = settings.grpc.private_key, settings.grpc.certificate
    if key is None or certificate is None:
        return None
    try:
        pair = (settings.path(key).read_bytes(), settings.path(certificate).read_bytes())
    except OSError as error:
        raise SettingsError(f"[grpc] certificate or private_key cannot be read: {error}", field="grpc") from error
    return grpc.ssl_server_credentials([pair])


class GrpcServices:
    """All services of the port. Each call is checked before its message is read."""

    def __init__(self, process: ApiProcess, access: AccessControl, memory: RequestMemory) -> None:
        self._process = process
        self._access = access
        self._memory = memory
        self._services: dict[str, Mapping[str, Answer]] = {
            **tensorflow_serving_grpc.SERVICES,
            **open_inference_grpc.SERVICES,
        }
        self._streams = Streams()

    @property
    def names(self) -> list[str]:
        """The names of all services."""
        return [*self._services, HEALTH, reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name]

    def call(self, context: ServicerContext[Any, Any], method: str = "") -> GrpcCall:
        """Return a client's call. `method`: as for `GrpcCall`."""
        return GrpcCall(self._process, self._access, context, method=method)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Return gRPC's handlers of all methods but reflection's."""
        found = [grpc.method_handlers_generic_handler(name, self._handlers_of(name)) for name in self._services]
        check = grpc.unary_unary_rpc_method_handler(
            self._health, health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        )
        return [*found, grpc.method_handlers_generic_handler(HEALTH, {"Check": check})]

    def _handlers_of(self, service: str) -> dict[str, grpc.RpcMethodHandler]:
        kinds = {name: request for name, (request, _) in methods_of(service).items()}
        missing = open_inference_grpc.MISSING.get(service, {})
        streams = open_inference_grpc.STREAMS.get(service, {})
        return {
            **{name: self._refusal(extension) for name, extension in missing.items()},
            **{name: self._stream_handler(kinds[name], how, f"{service}/{name}") for name, how in streams.items()},
            **{
                name: self._handler(kinds[name], answer, f"{service}/{name}")
                for name, answer in self._services[service].items()
            },
        }

    def _refusal(self, extension: str) -> grpc.RpcMethodHandler:
        async def refuse(_: GrpcCall, __: bytes) -> Any:
            raise unsupported(extension)

        return self._handler(None, refuse)

    def _handler(self, kind: Any, answer: Answer, method: str = "") -> grpc.RpcMethodHandler:
        # on the wire a single message is a stream of one: this kind of handler decides itself when to read it
        async def handle(_: object, context: ServicerContext[bytes, bytes]) -> Any:
            return await self._answer(kind, answer, context, method)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _answer(self, kind: Any, answer: Answer, context: ServicerContext[bytes, bytes], method: str) -> Any:
        call, code = self.call(context, method), grpc.StatusCode.OK
        request = begin_request(call.scope)
        held = HeldBytes(self._memory, lambda: False)
        try:
            call.check()
            data = await _read(context)
            held.set(len(data))
            call.received(len(data))
            message = data if kind is None else parse_message(kind, data)
            return (await answer(call, message)).SerializeToString()
        except ForecacheError as error:
            code, words = code_of(error), words_of(error)
        except Exception as error:  # noqa: BLE001 - `tell_each` logs it
            defects.tell_each(error)
            code, words = grpc.StatusCode.INTERNAL, DEFECT
        finally:
            held.set(0)
            call.end(code)
        return await context.abort(code, words, _trailer(request))

    def _stream_handler(self, kind: Any, how: StreamAnswer, method: str) -> grpc.RpcMethodHandler:
        async def handle(_: object, context: ServicerContext[bytes, bytes]) -> None:
            call = self.call(context)
            request = begin_request(call.scope)
            try:
                call.check()
                await self._streams.serve(context, partial(self._answer_one, kind, how, context, method))
            except ForecacheError as error:
                await context.abort(code_of(error), words_of(error), _trailer(request))

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _answer_one(
        self, kind: Any, how: StreamAnswer, context: ServicerContext[bytes, bytes], method: str, data: bytes
    ) -> bytes:
        """Return the response to one message of a stream. An error is a response, too.

        Raises:
            ForecacheError: the client wants errors to end the stream.
        """
        call = GrpcCall(self._process, self._access, context, in_stream=True, method=method)
        begin_request(call.scope)
        held, message, code = HeldBytes(self._memory, lambda: False), None, grpc.StatusCode.OK
        try:
            call.check()
            held.set(len(data))
            call.received(len(data))
            message = parse_message(kind, data)
            response = await how.answer(call, message)
        except ForecacheError as error:
            code = code_of(error)
            if call.ends_streams:
                raise
            response = how.refuse(message, words_of(error))
        except Exception as error:  # noqa: BLE001 - `tell_each` logs it
            defects.tell_each(error)
            response, code = how.refuse(message, DEFECT), grpc.StatusCode.INTERNAL
        finally:
            held.set(0)
            call.end(code)
        found: bytes = response.SerializeToString()
        return found

    async def _health(self, request: Any, context: ServicerContext[Any, Any]) -> Any:
        """Answer without a key, as `/health` does: probes have none."""
        if request.service not in ("", *self.names):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {cut(request.service)}")
        try:
            await readiness(self._process, list(self._process.settings.models))
        except Unavailable:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def _trailer(request: RequestId) -> tuple[tuple[str, str], ...]:
    name, value = header_of(request)
    return ((name.decode(), value.decode()),)


async def _read(context: ServicerContext[bytes, bytes]) -> bytes:
    """Return the message of a call.

    Raises:
        BadInput: the client sent none.
        DeadlineExceeded: it took too long to arrive.
    """
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            message = await context.read()
    except TimeoutError as error:
        raise DeadlineExceeded("the request took too long to arrive") from error
    if not isinstance(message, bytes):
        raise BadInput("the call has no message")
    return message


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]  # its library has no types
    """Describes the services to clients with a key, if there are keys."""

    def __init__(self, services: GrpcServices) -> None:
        pool = descriptor_pool()
        for module in (health_pb2, reflection_pb2):
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        super().__init__(services.names, pool=pool)
        self._services = services

    async def ServerReflectionInfo(  # noqa: N802 - the protocol's name
        self, request_iterator: AsyncIterator[Any], context: ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Answer what a client asks about services and messages."""
        try:
            self._services.call(context).check()
        except ForecacheError as error:
            await context.abort(code_of(error), words_of(error))
        async for response in super().ServerReflectionInfo(request_iterator, context):
            yield response
