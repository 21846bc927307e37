"""A `remote.toml` that names what no worker should ask, and engines that answer without an end."""

from __future__ import annotations

import gzip
import ipaddress
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import ModelError, ModelOutOfMemory, ModelUnavailable, PredictionFailed
from inference.models import inspect_in_subprocess
from inference.models import remote_file as descriptions
from inference.models.runtimes import LoadOptions, Runtime, load_runtime, remote_grpc, remote_http
from inference.settings import Settings
from tests.support.grpc_engine import GrpcEngine
from tests.support.tensorflow_serving import ServedModel
from tests.support.waiting import LONG_S

METADATA = json.dumps(
    {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }
).encode()


class Engine:
    """An engine of the Open Inference Protocol that gives any bytes. `asked`: how many requests it has met."""

    def __init__(self) -> None:
        self.metadata: Callable[[], Iterator[bytes]] = lambda: iter([METADATA])
        self.answer: Callable[[], Iterator[bytes]] = lambda: iter([b"{}"])
        self.encoding: str | None = None
        self.asked = 0
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._give(engine.metadata())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self._give(engine.answer())

            def _give(self, parts: Iterator[bytes]) -> None:
                engine.asked += 1
                self.send_response(200)
                if engine.encoding:
                    self.send_header("content-encoding", engine.encoding)
                self.end_headers()
                with suppress(OSError):  # the other side has read enough
                    for part in parts:
                        self.wfile.write(part)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.server_port


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    try:
        yield engine
    finally:
        engine.server.shutdown()
        engine.server.server_close()


def load(folder: Path, url: str, *, hosts: tuple[str, ...] | None = None, timeout: str = f"{LONG_S:g}s") -> Runtime:
    protocol = "open-inference-grpc" if url.startswith("grpc") else "open-inference"
    (folder / "remote.toml").write_text(
        f'protocol = "{protocol}"\nurl = "{url}"\nname = "m"\ntimeout = "{timeout}"\nretries = 0\n'
    )
    return load_runtime(folder, options=LoadOptions(engine_hosts=hosts))


def blanks() -> Iterator[bytes]:
    while True:
        yield b" " * 65536


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "169.254.170.2", "169.254.169.254.", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376",
        "169.254.43518", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16",
        "user:word@169.254.169.254",
    ],
)  # fmt: skip
def test_the_metadata_service_of_a_cloud_is_not_asked_however_it_is_spelled(tmp_path: Path, host: str) -> None:
    for url in (f"http://{host}/latest", f"grpc://{host}:80", f"grpcs://{host}:443"):
        with pytest.raises(ModelError, match="is link-local or a cloud's metadata service, which workers never ask"):
            load(tmp_path, url)


def test_a_name_that_comes_to_mean_another_address_is_refused_when_it_connects(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = load(tmp_path, f"http://127.0.0.1:{engine.port}")
    # nobody can listen at a link-local address in a test, so this one takes its place
    monkeypatch.setattr(descriptions, "_METADATA", (ipaddress.ip_network("127.0.0.0/8"),))
    with pytest.raises(ModelUnavailable, match=r"the engine's address is link-local"):
        runtime.predict({"x": np.zeros(1, np.float32)})
    assert engine.asked == 1, "only the metadata, before"


def test_a_name_that_comes_to_mean_another_address_is_refused_by_grpc_before_it_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GrpcEngine({"m": ServedModel(*({name: ("DT_FLOAT", ())} for name in "xy"), lambda x: {"y": x})}) as engine:
        runtime = load(tmp_path, engine.url)
        engine.peers.clear()
        monkeypatch.setattr(descriptions, "_METADATA", (ipaddress.ip_network("127.0.0.0/8"),))
        with pytest.raises(ModelUnavailable, match=r"the engine's address is link-local"):
            runtime.predict({"x": np.zeros(1, np.float32)})
        monkeypatch.undo()
        assert runtime.predict({"x": np.ones(1, np.float32)})["y"] == [1]
        # a channel that is open looks again now and then
        monkeypatch.setattr(descriptions, "_METADATA", (ipaddress.ip_network("127.0.0.0/8"),))
        monkeypatch.setattr(remote_grpc, "_LOOK_UP_EVERY_S", 0.0)
        before = engine.predictions
        with pytest.raises(ModelUnavailable, match=r"the engine's address is link-local"):
            runtime.predict({"x": np.zeros(1, np.float32)})
        assert engine.predictions == before


@pytest.mark.parametrize("hosts", [(), ("127.0.0.2",), ("127.0.0.1:1",), ("*.0.0.1x",), ("0.0.1",)])
def test_an_engine_that_the_settings_do_not_list_is_not_asked(
    tmp_path: Path, engine: Engine, hosts: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError, match=rf"host 127\.0\.0\.1:{engine.port} is not one of engine_hosts under \[work"):
        load(tmp_path, f"http://127.0.0.1:{engine.port}", hosts=hosts)
    with pytest.raises(ModelError, match=rf"host 127\.0\.0\.1:{engine.port} is not one of engine_hosts under \[work"):
        load(tmp_path, f"grpc://127.0.0.1:{engine.port}", hosts=hosts)
    assert engine.asked == 0


def test_an_engine_that_the_settings_list_is_asked(tmp_path: Path, engine: Engine) -> None:
    for hosts in (("other", "127.0.0.1"), (f"127.0.0.1:{engine.port}",), ("*.0.0.1",), (f"*.0.1:{engine.port}",)):
        load(tmp_path, f"http://127.0.0.1:{engine.port}", hosts=hosts)
    assert engine.asked == 4


@pytest.mark.slow
def test_the_process_that_tries_a_version_obeys_the_list_too(tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    with suppress(ModelError):
        load(tmp_path / "m" / "1", f"http://127.0.0.1:{engine.port}", hosts=())
    settings = Settings.of_folder(tmp_path, models={"m": {"path": "m"}}, workers={"engine_hosts": ["other", "more"]})
    with pytest.raises(ModelError, match=r"is not one of engine_hosts under \[workers\] \(other, more\)"):
        inspect_in_subprocess(settings, "m")
    assert engine.asked == 0


def test_a_description_without_an_end_is_given_up(tmp_path: Path, engine: Engine) -> None:
    engine.metadata = blanks
    with pytest.raises(ModelError, match="answered with more than 8 MiB"):
        load(tmp_path, f"http://127.0.0.1:{engine.port}")


def test_a_packed_description_is_unpacked_no_further_than_its_bound(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.encoding, packed = "gzip", gzip.compress(bytes(64 << 20))
    engine.metadata = lambda: iter([packed])
    with pytest.raises(ModelError, match="answered with more than 8 MiB"):
        load(tmp_path, f"http://127.0.0.1:{engine.port}")
    engine.metadata = lambda: iter([gzip.compress(METADATA)])
    assert [spec.name for spec in load(tmp_path, f"http://127.0.0.1:{engine.port}").signature.inputs] == ["x"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_an_answer_that_is_packed_by_what_was_not_asked_for_is_refused(
    tmp_path: Path, engine: Engine, encoding: str
) -> None:
    engine.encoding = encoding
    with pytest.raises(ModelError, match="packed in a way that was not asked for"):
        load(tmp_path, f"http://127.0.0.1:{engine.port}")


def test_predictions_without_an_end_may_be_asked_for_in_smaller_parts(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = load(tmp_path, f"http://127.0.0.1:{engine.port}")
    monkeypatch.setattr(remote_http, "MOST_ANSWER_BYTES", 1 << 20)
    engine.answer = blanks
    with pytest.raises(ModelOutOfMemory, match="answered with more than 1 MiB"):
        runtime.predict({"x": np.zeros(1, np.float32)})


def test_an_answer_that_never_ends_is_an_outage_once_its_time_is_over(tmp_path: Path, engine: Engine) -> None:
    def drops() -> Iterator[bytes]:
        while True:
            yield b" "
            time.sleep(0.01)  # far sooner than any read times out

    runtime = load(tmp_path, f"http://127.0.0.1:{engine.port}", timeout="1s")
    engine.answer = drops
    with pytest.raises(ModelUnavailable, match="its engine did not answer in time"):
        runtime.predict({"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize("said", [b"[" * 200_000, b'{"a":' * 200_000])
def test_an_answer_that_is_nested_deeper_than_python_reads_fails_that_request(
    tmp_path: Path, engine: Engine, said: bytes
) -> None:
    runtime = load(tmp_path, f"http://127.0.0.1:{engine.port}")
    engine.answer = lambda: iter([said])
    with pytest.raises(PredictionFailed, match="something that is no JSON"):
        runtime.predict({"x": np.zeros(1, np.float32)})
