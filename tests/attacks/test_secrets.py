"""Passwords, and what engines say of their own insides, reach no client, no record, no page and no log."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from app.api.problems import problem_of
from inference import redaction
from inference.errors import ForecacheError, ModelError, ModelUnavailable, PredictionFailed, StoreUnavailable
from inference.failures import sentence_of
from inference.models.remote_file import RemoteEngine, read_remote
from inference.models.runtimes.remote import RemoteRuntime, load
from inference.models.runtimes.runtime import LoadOptions
from inference.redaction import remember_secret, without_secrets
from inference.settings.loading import load_settings
from tests.support.grpc_engine import GrpcEngine
from tests.support.stack import child_environment
from tests.support.tensorflow_serving import ServedModel
from tests.support.warm_start import run_python

SECRET, ENCODED = "s3cr/t p@w", "s3cr%2Ft%20p%40w"
INSIDE = "db=postgres://svc:hunter2@10.0.0.5/x token=abc"


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    before, pattern = dict(redaction._known), redaction._pattern
    yield
    redaction._known.clear()
    redaction._known.update(before)
    redaction._pattern = pattern


@pytest.mark.parametrize(
    "text",
    [
        "redis://:hunter22@h:6379/0", "redis://u:hunter22@h", "amqps://u:hun@ter22@h/v", "https://hunter22@h/x",
        "x 'http://u:hun/ter22@h:1/p' y", "s3://h/x?access_key=hunter22&b=1", "http://h/?api-key=hunter22",
        "http://h/?a=1&X-Amz-Signature=hunter22", "https://h/x?sig=hunter22'", "postgresql+psycopg://u:h?unter22@h/d",
        "unix://:hunter22@/run/redis.sock?db=0", "http://u:hunter22@[::1]:80/",
    ],
)  # fmt: skip
def test_a_url_in_a_text_loses_its_password_whole(text: str) -> None:
    hidden = without_secrets(text)
    assert "***" in hidden
    assert not re.search("hun|ter22|unter", hidden), hidden
    assert without_secrets(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/predict/a@b", "redis://h:6379/0", "s3://bucket/a=1/b@c", "http://h/?primary=3&k=v",
        "no URL, user@host and a:b@c", "http://[::1]:80/x", "GET /x?token=1 is no URL",
    ],
)  # fmt: skip
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize("url", [f"http://svc:{ENCODED}@h:1", f"redis://:{ENCODED}@h/0", SECRET])
def test_a_secret_of_the_settings_is_hidden_wherever_it_stands_and_however_it_is_spelled(url: str) -> None:
    remember_secret(url)
    for text in (f"cannot parse {SECRET!r}", f"Invalid port: {ENCODED}@h", f"x{SECRET}y"):
        assert without_secrets(text).count("***") == 1, text
        assert ForecacheError(text).message == str(ForecacheError(text)) == without_secrets(text)
        assert "s3cr" not in sentence_of(ValueError(text))


def test_a_short_password_or_one_that_is_a_word_does_not_blank_the_lines() -> None:
    for word in ("redis", "forecache", "guest", ""):
        remember_secret(f"redis://:{word}@h")
        assert without_secrets("forecache.redis guest") == "forecache.redis guest"


def test_settings_remember_every_secret_of_theirs_and_print_none(tmp_path: Path) -> None:
    file = tmp_path / "forecache.toml"
    file.write_text(
        f'[redis]\nurl = "redis://:{ENCODED}1@h:1/0"\ncache_url = "unix://:{ENCODED}2@/run/r.sock"\n'
        f'[celery]\nbroker_url = "amqp://u:{ENCODED}3@h//"\n[api]\nclient_key = "{SECRET}4"\n'
        f'[dashboard]\npassword = "{SECRET}5"\n[models.m]\npath = "m"\n'
        f'[[models.m.fallbacks]]\nname = "db"\nkind = "sql"\nurl = "postgresql://u:{ENCODED}6@h/d"\n'
        'query = "SELECT * FROM t WHERE entity_id IN :ids"\n'
    )
    settings = load_settings(file)
    assert "s3cr" not in repr(settings) + str(settings) + settings.model_dump_json()
    for number in range(1, 7):
        assert "s3cr" not in without_secrets(f"said {SECRET}{number} and {ENCODED}{number}")


LOGS = """
import logging
from inference.logs import configure_logging, get_logger
from inference.redaction import remember_secret
remember_secret(f"redis://:{ENCODED}@h")
configure_logging("test", form=FORM)
error = ConnectionError(f"Invalid port: {SECRET}; amqp://u:pw@h")
get_logger("x").error("it.failed", url=f"http://a:b@h {SECRET}", exc_info=error)
logging.getLogger("celery").error("Cannot connect to %s", f"amqp://u:{ENCODED}@h:1//")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_line_of_a_log_holds_a_secret_not_even_a_traceback(form: str, tmp_path: Path) -> None:
    # in a process of its own: how a process logs is set once
    values = f"SECRET, ENCODED, FORM = {SECRET!r}, {ENCODED!r}, {form!r}"
    said = run_python(["-c", values + LOGS], cwd=tmp_path, env=child_environment(), timeout_s=60).stderr
    assert "it.failed" in said
    assert "Cannot connect to amqp://***@h:1//" in said
    for secret in (SECRET, ENCODED, "a:b@", "u:pw@"):
        assert secret not in said


class Engine:
    """An HTTP server that answers `status` and tells of its insides."""

    def __init__(self) -> None:
        self.status, self.asked = 200, []  # type: ignore[var-annotated]
        self.body: bytes = json.dumps(
            {"name": "x", "inputs": [{"name": "a", "datatype": "FP32", "shape": [-1]}],
             "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]}
        ).encode()  # fmt: skip
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                engine.asked.append((self.path, self.headers.get("authorization")))
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(engine.status)
                self.send_header("content-length", str(len(engine.body)))
                self.end_headers()
                self.wfile.write(engine.body)

            do_POST = do_GET  # noqa: N815 - its base class looks for the name

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port

    def __enter__(self) -> Engine:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def remote(tmp_path: Path, port: int) -> RemoteRuntime:
    file = tmp_path / "remote.toml"
    file.write_text(f'protocol = "open-inference"\nurl = "http://svc:{ENCODED}@127.0.0.1:{port}"\nname = "x"\n')
    return load(file, LoadOptions(), None)


def assert_tells_nothing(text: str) -> None:
    assert not [word for word in ("svc", "s3cr", "hunter2", "10.0.0.5", "token") if word in text], text


ROWS = {"a": np.zeros(2, np.float32)}
OUTCOMES = [
    *((status, ModelUnavailable) for status in (404, 503, 401)),
    *((status, PredictionFailed) for status in (500, 400, 413, 200, 302)),
]


@pytest.mark.parametrize(("status", "kind"), OUTCOMES)
def test_an_engines_refusal_tells_neither_its_password_nor_its_words(
    tmp_path: Path, engine: Engine, status: int, kind: type[ForecacheError]
) -> None:
    runtime = remote(tmp_path, engine.port)
    assert engine.asked[0][1] is not None  # the password is shown to the engine, where it belongs
    engine.status, engine.body = status, f"internal: {INSIDE}".encode()

    with pytest.raises(kind) as refused:
        runtime.predict(ROWS)

    message = refused.value.message
    reference = re.search(r"\(reference (\w+) in the worker's log\)", message)
    assert reference, message
    assert_tells_nothing(message)
    assert str(engine.port) not in message
    assert_tells_nothing(json.dumps(problem_of(refused.value)))
    with pytest.raises(kind, match=reference[1]):  # as long as it goes on, it is one failure
        runtime.predict(ROWS)

    with pytest.raises(ModelError) as at_load:
        remote(tmp_path, engine.port)
    assert_tells_nothing(at_load.value.message)


def test_an_engine_that_is_gone_is_told_without_its_password(tmp_path: Path, engine: Engine) -> None:
    runtime = remote(tmp_path, engine.port)
    engine.server.shutdown()
    engine.server.server_close()
    with pytest.raises(ModelUnavailable, match="its engine does not answer") as gone:
        runtime.predict(ROWS)
    assert_tells_nothing(gone.value.message)
    with pytest.raises(ModelError, match=f"remote.toml: http://127.0.0.1:{engine.port} does not answer") as at_load:
        remote(tmp_path, engine.port)
    assert_tells_nothing(at_load.value.message)
    connection = runtime._connection
    assert_tells_nothing(repr(runtime.device) + str(vars(runtime)) + str(vars(connection)))


def test_an_engine_of_grpc_is_told_without_its_password_and_its_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    number = dict.fromkeys("ay", ("DT_FLOAT", ()))
    with GrpcEngine({"x": ServedModel({"a": number["a"]}, {"y": number["y"]}, lambda a: {"y": a})}) as engine:
        file = tmp_path / "remote.toml"
        url = f"grpc://svc:{ENCODED}@127.0.0.1:{engine.port}"
        file.write_text(f'protocol = "open-inference-grpc"\nurl = "{url}"\nname = "x"\n')
        runtime: Any = load(file, LoadOptions(), None)
        engine.refuse_next = [(grpc.StatusCode.INTERNAL, f"internal: {INSIDE}")]
        with pytest.raises(PredictionFailed) as refused:
            runtime.predict(ROWS)
    assert_tells_nothing(refused.value.message)
    with pytest.raises(ModelUnavailable) as gone:
        runtime.predict(ROWS)
    assert_tells_nothing(gone.value.message)
    assert_tells_nothing(str(vars(runtime)) + str(vars(runtime._connection)) + repr(runtime._connection._engine))
    with pytest.raises(ModelError) as at_load:
        load(file, LoadOptions(), None)
    assert_tells_nothing(at_load.value.message)
    assert_tells_nothing(capfd.readouterr().err)


@pytest.mark.parametrize(
    "url",
    ["http://svc:s3cr/t@h:1", "http://svc:s3cr#t@h:1", "http://svc:s3cr?t@h", "ftp://svc:s3cr@h", "http://svc:s3cr@",
     "http://svc:s3cr@h:s3cr", "http://svc:s3cr@h/?token=s3cr", "http://svc:s3cr@[h"],
)  # fmt: skip
def test_an_engines_url_that_cannot_be_used_is_refused_without_being_quoted(tmp_path: Path, url: str) -> None:
    file = tmp_path / "remote.toml"
    file.write_text(f'protocol = "open-inference"\nurl = "{url}"\nname = "x"\n')
    with pytest.raises(ModelError) as refused:
        read_remote(file)
    assert "url" in refused.value.message
    assert_tells_nothing(refused.value.message)


def test_an_engine_prints_as_stars() -> None:
    engine = RemoteEngine.model_validate(
        {"protocol": "open-inference", "url": f"http://svc:{ENCODED}@h:1", "name": "x"}
    )
    assert_tells_nothing(repr(engine) + str(engine) + engine.model_dump_json())
    assert (engine.place, engine.login) == ("http://h:1", ("svc", SECRET))


def test_an_outage_whose_driver_quotes_its_url_is_told_without_it() -> None:
    said = StoreUnavailable(f"the cache Redis did not answer: Error connecting to redis://u:{ENCODED}@h:6379/0")
    assert_tells_nothing(json.dumps([said.to_json(), str(said), repr(said), problem_of(said)]))
    assert said.message.endswith("redis://***@h:6379/0")


_SAID_BY_A_WORKER = """
import json
from types import SimpleNamespace
from celery.worker.control import conf
from workers.realtime import celery_app
about = celery_app.connection().info()
about.pop("password")  # as Celery does
print(json.dumps([conf(SimpleNamespace(app=celery_app), with_defaults=True), about, celery_app.connection().as_uri(),
                  celery_app.backend.as_uri()], default=str))
"""


def test_what_a_worker_tells_flower_of_its_settings_holds_no_password(tmp_path: Path) -> None:
    urls = {f"FORECACHE_REDIS__{name}": f"redis://:{ENCODED}{name}@127.0.0.1:1/0" for name in ("URL", "CACHE_URL")}
    said = subprocess.run(
        [sys.executable, "-c", _SAID_BY_A_WORKER], cwd=tmp_path, env=child_environment() | urls,
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "broker_url" in said.stdout
    assert_tells_nothing(said.stdout.replace("token", ""))
