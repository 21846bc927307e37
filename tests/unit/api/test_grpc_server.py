"""The door of gRPC: keys, TLS, addresses, sizes, messages that do not come."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from app.api import grpc_server, grpc_streams, open_inference_grpc
from app.api.access import AccessControl
from app.api.drain import Drain
from app.api.grpc_server import grpc_served
from app.api.limits import RequestMemory
from app.http import check_grpc
from inference.errors import NotFound, SettingsError
from inference.protocols.messages import message_class
from inference.settings import Settings
from tests.support.certificates import make_certificate
from tests.support.ports import free_port

KEY = "a-key-of-the-shop"
KEYS = {
    "shop": {"hash": f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}", "rate": "3/hour"},
    "loader": {"hash": f"sha256:{hashlib.sha256(b'loader').hexdigest()}", "scopes": ["write"]},
}
PREDICT = "/tensorflow.serving.PredictionService/Predict"


class NoModels:
    """What a call needs of a process without models."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cards = SimpleNamespace(of=self._of)
        self.drain = Drain(0)

    async def _of(self, model: str) -> None:
        raise NotFound(model)


@asynccontextmanager
async def served(keys: Any = None, **grpc_settings: Any) -> AsyncIterator[str]:
    settings = Settings.of_folder(Path("/"), api={"keys": keys or {}}, grpc={"port": free_port(), **grpc_settings})
    process: Any = NoModels(settings)
    async with grpc_served(process, AccessControl(settings.api), RequestMemory()):
        yield f"localhost:{settings.grpc.port}"


def request() -> bytes:
    message = message_class("tensorflow.serving.PredictRequest")()
    message.model_spec.name = "any"
    data: bytes = message.SerializeToString()
    return data


async def predict(channel: grpc.aio.Channel, *metadata: tuple[str, str], data: bytes | None = None) -> tuple[Any, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(PREDICT)(data or request(), metadata=metadata, timeout=10)
    return refused.value.code(), refused.value.details()


async def test_a_key_comes_in_the_metadata() -> None:
    async with served(KEYS) as address, grpc.aio.insecure_channel(address) as channel:
        for wrong in ((), (("x-api-key", "guessed"),)):
            assert (await predict(channel, *wrong))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await predict(channel, ("x-api-key", "loader")))[0] is grpc.StatusCode.PERMISSION_DENIED
        for right in (("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)):
            assert await predict(channel, right) == (
                grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(any)",
            )  # fmt: skip


async def test_a_key_has_its_rate() -> None:
    async with served(KEYS) as address, grpc.aio.insecure_channel(address) as channel:
        found = [(await predict(channel, ("x-api-key", KEY)))[0].name for _ in range(4)]
    assert found == ["NOT_FOUND"] * 3 + ["RESOURCE_EXHAUSTED"]


async def test_a_large_message_weighs_more() -> None:
    async with served(KEYS) as address, grpc.aio.insecure_channel(address) as channel:
        code, words = await predict(channel, ("x-api-key", KEY), data=bytes(100 * 1024))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "this request weighs 13" in words


async def test_a_message_is_not_read_without_a_key() -> None:
    async with served(KEYS) as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_unary(PREDICT)()
        with contextlib.suppress(grpc.aio.AioRpcError):  # it may be refused before that
            await call.write(bytes(1024))  # and the rest never comes
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_message_that_never_comes_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "READ_TIMEOUT_S", 0.1)
    async with served() as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_unary(PREDICT)()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        empty = channel.stream_unary(PREDICT)()
        await empty.done_writing()
        assert (await empty.code(), await empty.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT, "the call has no message",
        )  # fmt: skip


async def test_health_needs_no_key_and_reflection_does() -> None:
    async with served(KEYS) as address, grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING  # no model is missing
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        call = reflection.ServerReflectionInfo(iter(asked))
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        [found] = [one async for one in reflection.ServerReflectionInfo(iter(asked), metadata=(("x-api-key", KEY),))]
        assert found.list_services_response.service


async def test_tls_with_the_files_of_the_settings(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    async with served(certificate=certificate, private_key=key) as address:
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        async with grpc.aio.secure_channel(address, trusted) as channel:
            assert (await predict(channel))[0] is grpc.StatusCode.NOT_FOUND
        async with grpc.aio.insecure_channel(address) as channel:
            assert (await predict(channel))[0] is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_without_its_key_is_refused_before_anything_starts(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    check_grpc(Settings(grpc={"port": free_port(), "certificate": certificate, "private_key": key}), first=True)
    for wrong, words in (
        (certificate, "are no pair of PEM files"),
        (tmp_path / "gone.pem", "cannot be read: .*gone.pem"),
    ):
        pair = {"port": free_port(), "certificate": certificate, "private_key": wrong}
        with pytest.raises(SettingsError, match=words):
            check_grpc(Settings(grpc=pair), first=True)


def test_the_port_of_the_api_is_not_taken_twice() -> None:
    with pytest.raises(SettingsError, match=r"\[grpc\] port 8000 is the one of \[api\]"):
        check_grpc(Settings(grpc={"port": 8000}), first=True)


async def test_a_certificate_that_cannot_be_read_is_named() -> None:
    with pytest.raises(SettingsError, match=r"certificate or private_key cannot be read: .*nowhere.pem"):
        async with served(certificate="nowhere.pem", private_key="nowhere.pem"):
            pass


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="certificate and private_key belong together"):
        Settings(grpc={"port": 8500, "certificate": "a.pem"})


def test_an_address_that_others_reach_needs_keys() -> None:
    check_grpc(Settings(), first=True)
    open_to_all: dict[str, Any] = {"host": "0.0.0.0", "port": free_port()}
    with pytest.raises(SettingsError, match=r"\[grpc\] host '0.0.0.0' can be reached from other machines"):
        check_grpc(Settings(grpc=open_to_all), first=True)
    check_grpc(Settings(grpc=open_to_all, api={"keys": KEYS}), first=True)


def test_a_port_of_somebody_else_is_not_shared() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(grpc={"port": taken.getsockname()[1]})
        with pytest.raises(SettingsError, match="cannot be used"):
            check_grpc(settings, first=True)
        check_grpc(settings, first=False)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'forecache\[grpc\]'"):
        check_grpc(Settings(grpc={"port": 8500}), first=True)


STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def answered(data: bytes) -> Any:
    return message_class("inference.ModelStreamInferResponse").FromString(data)


async def test_each_message_of_a_stream_counts_for_its_key() -> None:
    infer = message_class("inference.ModelInferRequest")(model_name="any").SerializeToString()
    async with served(KEYS) as address, grpc.aio.insecure_channel(address) as channel:
        stream = channel.stream_stream(STREAM)
        assert await stream(iter([infer])).code() is grpc.StatusCode.UNAUTHENTICATED
        call = stream(iter([infer] * 3), metadata=(("x-api-key", KEY),))
        found = [answered(one).error_message async for one in call]
    # the stream itself is a request, too
    assert found[:2] == ["Request for unknown model: 'any' is not found"] * 2
    assert "this key may ask 3 per 1 hour" in found[2]


async def test_no_more_streams_are_open_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_streams, "MAX_STREAMS", 2)
    async with served() as address, grpc.aio.insecure_channel(address) as channel:
        stream = channel.stream_stream(STREAM)
        idle = [stream(), stream()]
        for call in idle:
            await call.write(b"\xff")
            assert answered(await call.read()).error_message
        third = stream()
        assert await third.code() is grpc.StatusCode.UNAVAILABLE
        for call in idle:
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK
        assert [answered(one).error_message async for one in stream(iter([b"\xff"]))]


async def test_nothing_more_is_computed_for_a_client_that_never_reads_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed = 0

    async def answer(_: Any, __: Any) -> Any:
        nonlocal computed
        computed += 1
        return message_class("inference.ModelStreamInferResponse")(error_message="x" * 4_000_000)

    how = grpc_streams.StreamAnswer(answer, lambda _, __: None)
    monkeypatch.setattr(open_inference_grpc, "STREAMS", {"inference.GRPCInferenceService": {"ModelStreamInfer": how}})
    monkeypatch.setattr(grpc_streams, "MAX_STREAMS", 1)
    async with served() as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(STREAM)()
        for _ in range(200):
            await call.write(b"")
        # others are answered meanwhile
        for _ in range(20):
            assert (await predict(channel))[0] is grpc.StatusCode.NOT_FOUND
        assert 0 < computed < 50
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call.code()

        async def is_free() -> bool:
            one = channel.stream_stream(STREAM)()
            await one.done_writing()
            return bool(await one.code() is grpc.StatusCode.OK)

        while not await is_free():  # the server hears of the cancellation a moment later
            pass
