"""Traces of a real deployment, as a collector receives them: from a client's header through every process."""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from forecache import celery as forecache_celery
from inference.protocols.messages import methods_of
from tests.support.flights import write_flights
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.ports import free_port
from tests.support.redis_server import missing
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(200)]

INFER = "inference.GRPCInferenceService/ModelInfer"
#: so that misses that come together leave together
ONE_AT_A_TIME = "max_in_flight = 1\n[models.delay.batch]\nfeature_table = true\n"


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: OtlpReceiver, grpc_port: int) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("traces")
    toml = f'{write_flights(folder)}{ONE_AT_A_TIME}[logs]\nformat = "json"\n[grpc]\nport = {grpc_port}\n'
    with Stack(folder, toml) as stack:
        stack.start("gpu", "realtime", "maintenance", "api", environment=collector.environment)
        stack.wait_ready()
        yield stack


@pytest.fixture(scope="module")
def run_id(stack: Stack) -> str:
    """A published run: its flights are hits from now on."""
    run_id: str = httpx.post(f"{stack.url}/runs").raise_for_status().json()["run_id"]
    assert stack.wait_run(run_id)["state"] == "published"
    return run_id


def parent(*, sampled: bool = True) -> tuple[str, dict[str, str]]:
    """A new trace of a client's, and the headers that carry it on."""
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"}


def spans_of(collector: OtlpReceiver, trace_id: str, *names: str) -> dict[str, ReceivedSpan]:
    """The spans of a trace by name, once all of these have come."""

    def found() -> dict[str, ReceivedSpan] | None:
        spans = {span.name: span for span in collector.spans(trace_id)}
        return spans if set(names) <= spans.keys() else None

    return wait_for(found, f"{names} in {trace_id}", 20, evidence=lambda: str(collector.spans(trace_id)))


def lines_of(stack: Stack, process: str, **fields: Any) -> list[dict[str, Any]]:
    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in stack.log(process).splitlines()]
        return [line for line in lines if fields.items() <= line.items()]

    return wait_for(found, f"a line with {fields} of {process}", 20)


def test_a_miss_is_one_trace_from_the_clients_header_to_the_model(
    stack: Stack, run_id: str, collector: OtlpReceiver
) -> None:
    trace_id, headers = parent()
    url = f"{stack.url}/predict/F1?max_staleness_hours=0"
    assert httpx.get(url, headers=headers, timeout=20).json()["source"] == "realtime"
    names = ("GET /predict/{entity_id}", "look up", "send realtime", "process realtime", "call the model")
    spans = spans_of(collector, trace_id, *names)
    request, look_up, sent, processed, called = (spans[name] for name in names)
    assert request.parent_id == headers["traceparent"].split("-")[2]
    assert look_up.parent_id == sent.parent_id == request.span_id
    assert processed.parent_id == sent.span_id
    assert called.parent_id == processed.span_id
    assert [one.kind for one in (request, look_up, sent, processed)] == ["server", "client", "producer", "consumer"]
    assert (request.service, processed.service) == ("forecache-api", "forecache-realtime")
    assert request.attributes["http.response.status_code"] == 200
    assert called.attributes["forecache.rows"] == 1
    asked = [one for one in collector.spans(trace_id, parent_id=processed.span_id) if one.kind == "client"]
    assert {one.attributes["db.system.name"] for one in asked} == {"redis"}


@pytest.mark.parametrize("more", [{}, {"X-Request-ID": "checkout-7"}], ids=["at once", "in a task"])
def test_a_hit_is_recorded_if_the_client_says_so(
    stack: Stack, run_id: str, collector: OtlpReceiver, more: dict[str, str]
) -> None:
    with httpx.Client(base_url=stack.url, headers=more) as client:
        silent_id, silent = parent(sampled=False)
        assert client.get("/predict/F1", headers=silent).json()["cache_hit"]
        trace_id, headers = parent()
        for _ in range(3):  # the server repeats what it knows of equal requests
            assert client.get("/predict/F1", headers=headers).json()["cache_hit"]
        wait_for(lambda: len(collector.spans(trace_id, kind="server")) >= 3, "three requests", 20)
    spans = collector.spans(trace_id, kind="server")
    assert [span.name for span in spans] == ["GET /predict/{entity_id}"] * 3
    assert all(span.attributes["http.response.status_code"] == 200 for span in spans)
    assert all(span.attributes.get("forecache.look_up_ms", 1) > 0 for span in spans)
    assert not collector.spans(silent_id)


def test_a_refused_hit_tells_its_status(stack: Stack, run_id: str, collector: OtlpReceiver) -> None:
    trace_id, headers = parent()
    assert httpx.get(f"{stack.url}/predict/F1?timeout_ms=-1", headers=headers).status_code == 400
    span = spans_of(collector, trace_id, "GET /predict/{entity_id}")["GET /predict/{entity_id}"]
    assert span.attributes["http.response.status_code"] == 400
    assert not span.failed  # the client's mistake


def test_a_micro_batch_of_several_requests_is_linked_with_each(
    stack: Stack, run_id: str, collector: OtlpReceiver
) -> None:
    def ask(number: int) -> str:
        trace_id, headers = parent()
        url = f"{stack.url}/predict/F{number}?max_staleness_hours=0"
        httpx.get(url, headers=headers, timeout=20).raise_for_status()
        return trace_id

    def shared() -> ReceivedSpan | None:
        with ThreadPoolExecutor(16) as threads:
            asked = set(threads.map(ask, range(16)))
        wait_for(lambda: asked <= {one.trace_id for one in collector.spans(kind="server")}, "the requests", 20)
        sent = [one for one in collector.spans(kind="producer") if len(one.links) > 1]
        return sent[-1] if sent else None

    sent = wait_for(shared, "a micro-batch of several requests", 40)
    assert not sent.parent_id
    wanted = {trace_id for trace_id, _ in sent.links}
    wait_for(lambda: wanted <= {one.trace_id for one in collector.spans(kind="server")}, "its requests", 20)
    linked = [one for one in collector.spans(kind="server") if one.place in sent.links]
    assert len(linked) == len(sent.links)
    assert all(sent.place in one.links for one in linked)
    assert spans_of(collector, sent.trace_id, "process realtime")["process realtime"].parent_id == sent.span_id


def test_a_run_is_a_trace_of_its_chunks_in_every_process(stack: Stack, run_id: str, collector: OtlpReceiver) -> None:
    [requested] = wait_for(
        lambda: [one for one in collector.spans(name="POST /runs") if one.attributes["forecache.run.id"] == run_id],
        "the request for the run",
        20,
    )
    [(trace_id, run_span)] = requested.links
    spans = spans_of(collector, trace_id, "run", "plan", "score a chunk", "publish", "call the model", "BULK")
    assert spans["run"].span_id == run_span
    assert not spans["run"].parent_id
    assert spans["run"].attributes["forecache.run.state"] == "published"
    assert {spans[name].parent_id for name in ("plan", "score a chunk", "publish")} == {run_span}
    assert spans["score a chunk"].service == "forecache-gpu"
    assert spans["plan"].service == "forecache-maintenance"
    assert spans["run"].took_s >= spans["score a chunk"].took_s
    [line] = lines_of(stack, "gpu", event="chunk.scored", run_id=run_id)
    assert (line["trace_id"], line["span_id"]) == spans["score a chunk"].place


def test_log_lines_have_the_trace_even_if_the_client_does_not_want_it_recorded(stack: Stack) -> None:
    too_much = {"a": 3e38, "b": 3e38}  # their sum is no finite float32, which the worker logs
    for sampled in (True, False):
        trace_id, headers = parent(sampled=sampled)
        httpx.post(f"{stack.url}/predict", json={"instances": [too_much]}, headers=headers, timeout=20)
        [line] = lines_of(stack, "realtime", event="prediction.failed", trace_id=trace_id)
        assert len(line["span_id"]) == 16


def test_grpc_metadata_carry_the_trace(stack: Stack, collector: OtlpReceiver, grpc_port: int) -> None:
    trace_id, headers = parent()
    request, _ = methods_of("inference.GRPCInferenceService")["ModelInfer"]
    message = request(model_name="delay")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1.0, 2.0])
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        channel.unary_unary(f"/{INFER}")(
            message.SerializeToString(), metadata=tuple(headers.items()), timeout=20, wait_for_ready=True
        )
    spans = spans_of(collector, trace_id, INFER, "send realtime", "process realtime", "call the model")
    assert spans["send realtime"].parent_id == spans[INFER].span_id
    assert spans[INFER].attributes["rpc.grpc.status_code"] == 0


def test_chunks_on_spark_belong_to_the_trace_of_their_run(stack: Stack, collector: OtlpReceiver) -> None:
    if importlib.util.find_spec("pyspark") is None or shutil.which("java") is None:
        missing("PySpark, or java")
    started = httpx.post(f"{stack.url}/runs", json={"engine": "spark"}).raise_for_status().json()
    assert stack.wait_run(started["run_id"], 150)["state"] == "published"
    [run] = wait_for(
        lambda: [one for one in collector.spans(name="run") if one.attributes["forecache.run.id"] == started["run_id"]],
        "the run",
    )
    chunk = spans_of(collector, run.trace_id, "score a chunk", "call the model")["score a chunk"]
    assert (chunk.service, chunk.parent_id) == ("forecache-spark", run.span_id)


def test_messages_of_other_applications_go_on_with_their_trace(stack: Stack, collector: OtlpReceiver) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import format_trace_id, use_span

    application = forecache_celery.connect(stack.redis.url(0), stack.redis.url(0))
    span = TracerProvider(shutdown_on_exit=False).get_tracer("shop").start_span("checkout")
    with application, use_span(span):
        answer = forecache_celery.enqueue_predictions(application, ["F1"]).get(timeout=30)
    assert answer["predictions"][0]["entity_id"] == "F1"
    trace_id = format_trace_id(span.get_span_context().trace_id)
    spans = spans_of(collector, trace_id, "process realtime", "call the model")
    assert spans["process realtime"].attributes["celery.task_name"] == "forecache.predict_entities"


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{'0' * 16}-01", f"ff-{'a' * 32}-{'b' * 16}-01"])
def test_a_malformed_header_begins_a_new_trace(stack: Stack, run_id: str, header: str) -> None:
    answer = httpx.get(f"{stack.url}/predict/F1", headers={"traceparent": header})
    assert answer.json()["cache_hit"]


def test_nothing_that_was_sent_names_an_entity_or_a_feature(stack: Stack, run_id: str, collector: OtlpReceiver) -> None:
    trace_id, headers = parent()
    unknown = "nobody-knows-this-one"
    assert httpx.get(f"{stack.url}/predict/{unknown}", headers=headers, timeout=20).status_code == 404
    spans_of(collector, trace_id, "GET /predict/{entity_id}", "process realtime")
    assert unknown.encode() not in collector.raw
    # in a path, or as a text of two bytes; the random ids of traces hold any two bytes now and then
    assert b"/F1" not in collector.raw
    assert b"\x02F1" not in collector.raw


@pytest.fixture
def late(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """Starts an API and a worker with variables of the test's; all end with it."""
    started: list[Stack] = []

    def start(**environment: str) -> Stack:
        folder = tmp_path_factory.mktemp("late")
        stack = Stack(folder, write_flights(folder)).__enter__()
        started.append(stack)
        stack.start("realtime", "api", environment=environment)
        stack.wait_ready()
        return stack

    yield start
    for stack in started:
        stack.__exit__(None, None, None)


def test_a_process_that_ends_sends_its_last_spans(late: Callable[..., Stack], collector: OtlpReceiver) -> None:
    stack = late(**collector.environment | {"OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_SERVICE_NAME": "shop"})
    trace_id, headers = parent()
    body = {"instances": [{"a": 1.0, "b": 2.0}]}
    httpx.post(f"{stack.url}/predict", json=body, headers=headers, timeout=20).raise_for_status()
    for process in ("api", "realtime"):
        stack.stop(process, signal.SIGTERM)
    spans = spans_of(collector, trace_id, "POST /predict", "process realtime")
    assert {span.service for span in spans.values()} == {"shop"}


def test_an_unreachable_collector_costs_one_line(late: Callable[..., Stack]) -> None:
    with socket.socket() as deaf:  # listens, and takes nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        stack = late(
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="1", OTEL_BSP_SCHEDULE_DELAY="100"
        )
        body = {"instances": [{"a": 1.0, "b": 2.0}]}

        def unsent() -> bool:
            httpx.post(f"{stack.url}/predict", json=body, timeout=20).raise_for_status()
            return "tracing.unsent" in stack.log("api")

        wait_for(unsent, "a line about the collector", 30)
        for _ in range(20):
            httpx.post(f"{stack.url}/predict", json=body, timeout=20).raise_for_status()
        processes = {name: stack.processes[name] for name in ("api", "realtime")}
        for process in processes:
            stack.stop(process, signal.SIGTERM)
    assert all(process.poll() == 0 for process in processes.values())  # it was not killed for being slow
    assert stack.log("api").count("tracing.unsent") == 1
    assert "Traceback" not in stack.log("api") + stack.log("realtime")


def test_a_wrong_variable_is_one_line_and_no_traces(late: Callable[..., Stack]) -> None:
    stack = late(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_TRACES_SAMPLER_ARG="a lot")
    assert "tracing.off" in stack.log("api")
    assert "OTEL_TRACES_SAMPLER_ARG is 'a lot', not a share from 0 to 1" in stack.log("realtime")
