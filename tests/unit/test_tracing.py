"""How many requests are recorded, and that nobody pays who wants none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from app.cli.doctor.machine import check_tracing
from inference import tracing
from inference.otel import MAX_PARTS, Sampling, Tracer
from tests.support.stack import child_environment
from tests.support.warm_start import run_python

ROOT = Path(__file__).resolve().parents[2]
SAMPLED = [(b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
NOT_SAMPLED = [(b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00")]


class Kept(SpanExporter):
    """Keeps spans in memory."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Keep them."""


def tracer(environment: Mapping[str, str], kept: SpanExporter | None = None) -> Tracer:
    return Tracer(Sampling.read(environment), kept or Kept(), Resource({}))


@pytest.mark.parametrize(
    ("sampler", "share", "recorded"),
    [
        ("", "", (True, True, False)),
        ("parentbased_always_on", "", (True, True, False)),
        ("parentbased_always_off", "", (False, True, False)),
        ("parentbased_traceidratio", "0", (False, True, False)),
        ("parentbased_traceidratio", "1", (True, True, False)),
        ("always_on", "", (True, True, True)),
        ("always_off", "", (False, False, False)),
        ("traceidratio", "0", (False, False, False)),
        ("traceidratio", "1.0", (True, True, True)),
    ],
)
def test_a_sampler_decides_on_requests_without_a_parent_with_one_and_with_one_that_is_not_sampled(
    sampler: str, share: str, recorded: tuple[bool, bool, bool]
) -> None:
    ours = tracer({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": share})
    spans = [
        ours.request(headers, "GET", {}) if ours.samples(headers) else None for headers in ([], SAMPLED, NOT_SAMPLED)
    ]
    ours.close()
    assert tuple(span is not None for span in spans) == recorded


def test_a_ratio_is_the_share_of_requests_that_are_recorded() -> None:
    ours = tracer({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"})
    recorded = sum(ours.samples([]) for _ in range(10_000))
    ours.close()
    assert 700 < recorded < 1300


def test_a_task_has_a_bounded_number_of_parts() -> None:
    kept = Kept()
    ours = tracer({}, kept)
    with ours.run_part("churn-1", "score a chunk", {}):
        for _ in range(MAX_PARTS * 3):
            with ours.part("call the model", {}):
                pass
    with ours.run_part("churn-1", "score a chunk", {}), ours.part("call the model", {}):
        pass
    ours.close()
    assert len(kept.spans) == MAX_PARTS + 1 + 2


def test_a_flush_sends_the_spans_before_the_process_ends() -> None:
    kept = Kept()
    ours = tracer({}, kept)
    with ours.run_part("churn-1", "score a chunk", {}):
        pass
    ours.flush()
    assert [span.name for span in kept.spans] == ["score a chunk"]
    ours.close()


def test_an_error_is_told_by_its_class_only() -> None:
    kept = Kept()
    ours = tracer({}, kept)
    with pytest.raises(ValueError, match="Ada"), ours.run_part("churn-1", "plan", {}):
        raise ValueError("nobody knows Ada")
    ours.close()
    [span] = kept.spans
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.status.description, span.events) == ("ValueError", None, ())


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER is 'sometimes', which is none of"),
        ({"OTEL_TRACES_SAMPLER_ARG": "1.5"}, "OTEL_TRACES_SAMPLER_ARG is '1.5', not a share from 0 to 1"),
    ],
)
def test_a_wrong_sampler_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampling.read(environment)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_traces_are_wanted_if_a_collector_is_named(environment: dict[str, str], wanted: bool) -> None:
    assert tracing.is_wanted(environment) is wanted
    assert bool(check_tracing(environment)) is wanted


def test_doctor_names_what_keeps_traces_back(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:sesame@collector:4317"}
    [sent] = check_tracing(named)
    assert sent.status.value == "ok"
    assert "sesame" not in sent.detail
    [spoken] = check_tracing({**named, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert "http/protobuf" in spoken.detail
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    [missing] = check_tracing(named)
    assert missing.fix == "pip install 'forecache[otel]'"


_IMPORTS = """
import sys
import app.api.server, app.api.application, tasks.dispatch, inference.deployment, workers.startup, forecache
from inference import tracing
tracing.load(); tracing.start("api", None)
with tracing.span("a", {}), tracing.redis_span([("GET",)]), tracing.run_span("r", "plan", {}):
    assert tracing.headers() == {} and tracing.ids() == {}
ours = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "inference.otel")
sys.exit(next((f"{name} was imported" for name in sys.modules if name.startswith(ours)), 0))
"""


def test_nothing_of_opentelemetry_is_imported_if_nobody_wants_traces() -> None:
    done = run_python(["-c", _IMPORTS], cwd=ROOT, env=child_environment(), timeout_s=60)
    assert done.returncode == 0, done.stderr
