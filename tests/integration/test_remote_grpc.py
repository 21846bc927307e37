"""A model that an engine computes over gRPC: its errors are those of HTTP, and broken connections are outages."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from inference.errors import DeadlineExceeded, ForecacheError, ModelError, ModelOutOfMemory, ModelUnavailable
from inference.errors import PredictionFailed as Failed
from inference.models import LoadedModel, score_rows
from inference.models.loading import load_version
from inference.models.runtimes import remote_grpc
from inference.models.runtimes.runtime import answering_by
from tests.support.grpc_engine import GrpcEngine
from tests.support.runtimes.cases import learnt_weights
from tests.support.runtimes.remote_cases import models
from tests.support.waiting import LONG_S

pytestmark = pytest.mark.integration

Status = grpc.StatusCode
X = np.arange(20, dtype=np.float32).reshape(5, 4) / 10
PROTOCOLS = ("tensorflow-serving-grpc", "open-inference-grpc")


@pytest.fixture
def engine() -> Iterator[GrpcEngine]:
    with GrpcEngine(models()) as running:
        yield running


def load(folder: Path, url: str, name: str = "plain", protocol: str = PROTOCOLS[0], **more: Any) -> LoadedModel:
    about = {"protocol": protocol, "name": name, "url": url, "timeout": f"{LONG_S:g}s", **more}
    (folder / "remote.toml").write_text(
        "\n".join(f"{key} = {value if isinstance(value, int) else repr(value)}" for key, value in about.items())
    )
    return load_version("m", folder, 1, folder)


def wanted() -> np.ndarray:
    weights, bias = learnt_weights()
    answer: np.ndarray = (X @ weights + bias)[:, 0]
    return answer


def right(loaded: LoadedModel) -> bool:
    return bool(np.allclose(loaded.predict({"x": X})["y"], wanted(), rtol=1e-5))


@pytest.mark.parametrize(("which", "protocol"), [
    ({"version": "7"}, PROTOCOLS[0]), ({"version": 7}, PROTOCOLS[0]), ({"label": "stable"}, PROTOCOLS[0]),
    ({"version": "7"}, PROTOCOLS[1]),
])  # fmt: skip
def test_a_version_or_a_label_may_be_asked_for(
    tmp_path: Path, engine: GrpcEngine, which: dict[str, Any], protocol: str
) -> None:
    assert right(load(tmp_path, engine.url, protocol=protocol, **which))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "nobody"}, r"answered NOT_FOUND \(reference \w+ in the worker's log\)$"),
        ({"version": "8"}, "answered NOT_FOUND"),
        ({"label": "canary"}, "answered INVALID_ARGUMENT"),
        ({"signature": "other"}, "no signature 'other'; it has: serving_default"),
        ({"version": "latest"}, "version is no whole number"),
        ({"form": "rows"}, "form is for JSON: gRPC has one form only"),
        ({"protocol": PROTOCOLS[1], "label": "stable"}, "label is TensorFlow Serving's"),
        ({"protocol": PROTOCOLS[1], "version": "8"}, "answered NOT_FOUND"),
        ({"url": "http://127.0.0.1:8501"}, "url: .* starts with grpc:// or grpcs://"),
        ({"url": "grpc://127.0.0.1"}, "url: .* grpc://host:port without a path"),
        ({"url": "grpc://127.0.0.1:8500/v1"}, "url: .* grpc://host:port without a path"),
        ({"protocol": "tensorflow-serving", "url": "grpc://127.0.0.1:8500"}, "starts with http:// or https://"),
        ({"protocol": "grpc"}, "protocol: .*open-inference-grpc"),
    ],
)
def test_what_the_engine_does_not_have_or_the_file_gets_wrong_is_refused_by_name(
    tmp_path: Path, engine: GrpcEngine, given: dict[str, str], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        load(tmp_path, given.pop("url", engine.url), **given)


def test_without_grpc_the_load_says_what_to_install(
    tmp_path: Path, engine: GrpcEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "inference.models.runtimes.remote_grpc", None)
    monkeypatch.delattr("inference.models.runtimes.remote_grpc")
    with pytest.raises(ModelError, match=r'remote.toml: protocol = "tensorflow-serving-grpc" needs grpc, which cannot .*install forecache\[grpc\] where workers run'):  # fmt: skip  # noqa: E501
        load(tmp_path, engine.url)


def test_all_calls_of_all_threads_share_one_connection(tmp_path: Path, engine: GrpcEngine) -> None:
    loaded = load(tmp_path, engine.url)
    engine.peers.clear()
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda _: right(loaded), range(64)))
    assert len(engine.peers) == 1


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED])
def test_a_request_that_was_turned_away_is_sent_again_once(
    tmp_path: Path, engine: GrpcEngine, status: grpc.StatusCode
) -> None:
    loaded = load(tmp_path, engine.url)
    engine.refuse_next = [(status, "busy")]
    assert right(loaded)
    engine.refuse_next = [(status, "busy")] * 2
    with pytest.raises(ModelUnavailable, match=rf"its engine answered {status.name} \(reference"):
        loaded.predict({"x": X})
    assert not engine.refuse_next


OUTCOMES: list[tuple[grpc.StatusCode, str, type[ForecacheError]]] = [
    *((status, "", ModelUnavailable) for status in (
        Status.NOT_FOUND, Status.UNAUTHENTICATED, Status.PERMISSION_DENIED, Status.UNIMPLEMENTED, Status.CANCELLED,
        Status.DEADLINE_EXCEEDED,
    )),
    *((status, "", Failed) for status in (
        Status.INVALID_ARGUMENT, Status.INTERNAL, Status.UNKNOWN, Status.FAILED_PRECONDITION, Status.OUT_OF_RANGE,
    )),
    (Status.RESOURCE_EXHAUSTED, "OOM when allocating tensor with shape[9999]", ModelOutOfMemory),
    (Status.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5 vs. 4)", ModelOutOfMemory),
    (Status.RESOURCE_EXHAUSTED, "gRPC message exceeds maximum size 4194304: 5000000", ModelOutOfMemory),
    (Status.OUT_OF_RANGE, "Error, message length too large: found 9 bytes, the limit is: 4 bytes", ModelOutOfMemory),
]  # fmt: skip


@pytest.mark.parametrize(("status", "words", "kind"), OUTCOMES)
def test_each_status_is_the_fault_of_the_rows_or_an_outage_as_over_http_and_is_not_sent_again(
    tmp_path: Path, engine: GrpcEngine, status: grpc.StatusCode, words: str, kind: type[ForecacheError]
) -> None:
    loaded = load(tmp_path, engine.url)
    engine.refuse_next, before = [(status, words or "s3cr")], engine.predictions
    with pytest.raises(ForecacheError) as refused:
        loaded.predict({"x": X})
    assert type(refused.value) is kind
    assert "s3cr" not in refused.value.message
    assert str(engine.port) not in refused.value.message
    assert engine.predictions == before + 1


def test_a_request_that_is_too_large_for_the_engine_is_sent_in_halves(tmp_path: Path) -> None:
    x = np.zeros((1000, 4), np.float32)
    with GrpcEngine(models(), most_bytes=8192) as engine:
        scored = score_rows(load(tmp_path, engine.url), {"x": x})
    assert (scored.too_many_rows, scored.failed.any(), len(scored.outputs["y"])) == (1000, False, 1000)


def test_an_answer_over_the_limit_is_asked_for_in_halves(
    tmp_path: Path, engine: GrpcEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_grpc, "MOST_ANSWER_BYTES", 1024)
    x = np.zeros((1000, 4), np.float32)
    scored = score_rows(load(tmp_path, engine.url), {"x": x})
    assert (scored.too_many_rows, scored.failed.any(), len(scored.outputs["y"])) == (250, False, 1000)


@pytest.mark.slow
def test_a_packed_answer_is_unpacked_no_further_than_the_limit(
    tmp_path: Path, engine: GrpcEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tmp_path, engine.url)
    engine.compression = grpc.Compression.Gzip
    assert right(loaded)
    monkeypatch.setattr(remote_grpc, "MOST_ANSWER_BYTES", 1 << 20)
    other = load(tmp_path, engine.url)
    engine.spoil = lambda _: bytes(64 << 20)
    with pytest.raises(ModelOutOfMemory, match="answered with more than its limit"):
        other.predict({"x": X})


def test_a_description_over_its_limit_is_refused(tmp_path: Path, engine: GrpcEngine) -> None:
    engine.spoil = lambda _: bytes(9 << 20)
    with pytest.raises(ModelError, match="answered with more than its limit"):
        load(tmp_path, engine.url)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_that_are_no_message_fail_the_request(tmp_path: Path, engine: GrpcEngine, protocol: str) -> None:
    loaded = load(tmp_path, engine.url, protocol=protocol)
    engine.spoil = lambda _: b"\xff\xff\xff"
    with pytest.raises(Failed, match="answered with something that is no such message"):
        loaded.predict({"x": X})


def fewer_rows(message: Any) -> Any:
    message.outputs["y"].tensor_shape.dim[0].size = 3
    del message.outputs["y"].float_val[3:]
    return message


def short_of_its_shape(message: Any) -> Any:
    message.outputs["y"].tensor_content = bytes(3)
    return message


def endless(message: Any) -> Any:
    message.outputs["y"].tensor_shape.dim[0].size = 1 << 40
    return message


def of_text(message: Any) -> Any:
    message.outputs["y"].Clear()
    message.outputs["y"].dtype = 7
    message.outputs["y"].tensor_shape.dim.add(size=5)
    message.outputs["y"].string_val.extend([b"x"] * 5)
    return message


def without_outputs(message: Any) -> Any:
    message.outputs.clear()
    return message


def of_no_known_type(message: Any) -> Any:
    message.outputs["y"].dtype = 14
    return message


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (fewer_rows, "has shape .*3, 1.* for 5 rows"),
        (short_of_its_shape, "did not answer as TensorFlow Serving does"),
        (endless, "did not answer as TensorFlow Serving does"),
        (of_text, "is no float32"),
        (without_outputs, "has no output 'y'"),
        (of_no_known_type, "did not answer as TensorFlow Serving does"),
    ],
)
def test_an_answer_of_another_form_fails_the_request(
    tmp_path: Path, engine: GrpcEngine, spoil: Callable[[Any], Any], said: str
) -> None:
    loaded = load(tmp_path, engine.url)
    engine.spoil = spoil
    with pytest.raises(Failed, match=said):
        loaded.predict({"x": X})


@pytest.mark.parametrize("spoil", [
    lambda message: message.raw_output_contents.append(b"more") or message,
    lambda message: message.raw_output_contents.__setitem__(0, bytes(3)) or message,
    lambda message: setattr(message.outputs[0], "datatype", "BF16") or message,
])  # fmt: skip
def test_raw_contents_that_do_not_fit_their_outputs_fail_the_request(
    tmp_path: Path, engine: GrpcEngine, spoil: Callable[[Any], Any]
) -> None:
    loaded = load(tmp_path, engine.url, protocol=PROTOCOLS[1])
    engine.spoil = spoil
    with pytest.raises(Failed, match="did not answer by the Open Inference Protocol"):
        loaded.predict({"x": X})


def test_an_engine_that_answers_element_by_element_is_understood(tmp_path: Path, engine: GrpcEngine) -> None:
    def as_elements(message: Any) -> Any:
        message.outputs[0].contents.fp32_contents.extend(np.frombuffer(message.raw_output_contents.pop(), np.float32))
        return message

    loaded = load(tmp_path, engine.url, protocol=PROTOCOLS[1])
    engine.spoil = as_elements
    assert right(loaded)


def test_an_engine_that_is_late_had_its_time_once(tmp_path: Path, engine: GrpcEngine) -> None:
    loaded = load(tmp_path, engine.url, timeout="1s")
    engine.delay_s, before = 2 * LONG_S, engine.predictions
    with pytest.raises(ModelUnavailable, match="its engine did not answer in time"):
        loaded.predict({"x": X})
    assert engine.predictions == before + 1


def test_the_time_that_a_request_has_left_is_the_calls_deadline(tmp_path: Path, engine: GrpcEngine) -> None:
    loaded = load(tmp_path, engine.url)
    with answering_by(time.monotonic() + LONG_S / 2):
        assert right(loaded)
    assert 0 < (engine.deadlines[-1] or 0) < LONG_S / 2 + 1, "gRPC rounds it up"
    engine.delay_s = 2 * LONG_S
    with answering_by(time.monotonic() + 0.5), pytest.raises(DeadlineExceeded):
        loaded.predict({"x": X})
    before = engine.predictions
    with answering_by(time.monotonic() - 1), pytest.raises(DeadlineExceeded, match="was not asked"):
        loaded.predict({"x": X})
    assert engine.predictions == before


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_engine_that_dies_in_mid_call_is_an_outage_and_its_successor_is_asked(tmp_path: Path, protocol: str) -> None:
    with GrpcEngine(models()) as engine:
        loaded = load(tmp_path, engine.url, protocol=protocol)
        engine.delay_s = LONG_S
        failed: list[ForecacheError] = []

        def ask() -> None:
            try:
                loaded.predict({"x": X})
            except ForecacheError as error:
                failed.append(error)

        asking, before = threading.Thread(target=ask), engine.predictions
        asking.start()
        while engine.predictions == before:
            time.sleep(0.01)
        engine.stop()
        asking.join()
    assert isinstance(failed[0], ModelUnavailable)
    assert "its engine does not answer" in failed[0].message
    with pytest.raises(ModelError, match=rf"remote\.toml: {engine.url} does not answer"):
        load_version("m", tmp_path, 1, tmp_path)
    with GrpcEngine(models(), address=f"127.0.0.1:{engine.port}"):
        assert right(loaded)


class Rude:
    """A server below gRPC: `talk` gets each connection, and its number."""

    def __init__(self, port: int, talk: Callable[[socket.socket, int], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.connections = 0
        self._talk = talk
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        for number in count():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                self._talk(connection, number)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def reset(connection: socket.socket, _: int) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def speaks_http_1(connection: socket.socket, _: int) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")


SETTINGS, HEADERS = b"\0\0\0\4\0\0\0\0\0", 1


def reset_stream(connection: socket.socket, _: int) -> None:
    """Answer as a server of HTTP/2 that resets every stream: with INTERNAL_ERROR, as proxies do."""
    stream = connection.makefile("rwb")
    assert len(stream.read(24)) == 24  # HTTP/2's preface
    stream.write(SETTINGS)
    stream.flush()
    while head := stream.read(9):
        stream.read(int.from_bytes(head[:3]))
        if head[3] == HEADERS:
            stream.write(b"\0\0\4\3\0" + head[5:9] + b"\0\0\0\2")
            stream.flush()


def too_many_pings(connection: socket.socket, _: int) -> None:
    connection.recv(4096)
    connection.sendall(SETTINGS + b"\0\0\x16\7\0\0\0\0\0" + b"\0\0\0\0" + b"\0\0\0\x0b" + b"too_many_pings")


@pytest.mark.parametrize("talk", [reset, speaks_http_1, reset_stream, too_many_pings])
def test_a_connection_that_breaks_below_grpc_is_an_outage(
    tmp_path: Path, talk: Callable[[socket.socket, int], None]
) -> None:
    with GrpcEngine(models()) as engine:
        loaded = load(tmp_path, engine.url, timeout="1s")
    rude = Rude(engine.port, talk)
    try:
        with pytest.raises(ModelUnavailable, match=r"its engine (does not answer|did not answer in time)"):
            loaded.predict({"x": X})
    finally:
        rude.close()
    assert rude.connections
