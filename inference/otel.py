"""Makes spans with OpenTelemetry's SDK and sends them to a collector; `inference.tracing` calls it.

The only module that imports OpenTelemetry. Names follow its semantic conventions for HTTP, messaging and databases.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from random import random
from time import time_ns
from typing import Any

from opentelemetry.context import Context, attach, detach, get_value, set_value
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

log = logging.getLogger(__name__)

#: spans below one task or one chunk at most: a chunk may call its model thousands of times
MAX_PARTS = 128
#: requests that one micro-batch is linked with at most
MAX_LINKS = 128
#: a process that ends, or may be ended, waits so long for its last spans to be sent
CLOSE_WITHIN_S = 1.0
_PARTS_LEFT = "forecache.parts_left"
_SCOPE = InstrumentationScope("forecache")
_IS_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OK, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_PARENT = b"traceparent"
#: of such a header, and the last digits of those that are sampled
_PARENT_LENGTH, _SAMPLED = 55, b"13579bdf"
_W3C = TraceContextTextMapPropagator()
#: they would log each failed batch; `_Exporter` logs an outage once
_TALKATIVE = ("opentelemetry.exporter.otlp", "opentelemetry.sdk._shared_internal")

Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Sampling:
    """How many traces are recorded.

    `root_share`: of the requests without a parent, drawn before a span is made, since the SDK's sampler is asked late.
    `follows_parents`: a parent that is not sampled ends the matter. `sampler`: decides on what is left.
    """

    sampler: Sampler
    root_share: float = 1.0
    follows_parents: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Sampling:
        """Return what OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say.

        Raises:
            ValueError: they are none of OpenTelemetry's samplers, or no share.
        """
        name = (environment.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on").strip().lower()
        share = _share(environment.get("OTEL_TRACES_SAMPLER_ARG") or "1")
        root_shares = {
            "parentbased_always_on": 1.0,
            "parentbased_always_off": 0.0,
            "parentbased_traceidratio": share,
        }
        if name in root_shares:
            return cls(ParentBased(ALWAYS_ON), root_shares[name], follows_parents=True)
        samplers = {"always_on": ALWAYS_ON, "always_off": ALWAYS_OFF, "traceidratio": TraceIdRatioBased(share)}
        if name not in samplers:
            known = ", ".join([*root_shares, *samplers])
            raise ValueError(f"OTEL_TRACES_SAMPLER is {name!r}, which is none of {known}")
        return cls(samplers[name])


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG is {text!r}, not a share from 0 to 1")
    return share


def open_tracer(process: str, release: str | None) -> Tracer:
    """Return the tracer of this process, which sends to the collector that the environment names.

    Raises:
        ValueError: a variable of OpenTelemetry's is wrong; the message names it.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    own = Resource(
        {"service.name": f"forecache-{process}", "service.version": release or "0", "process.pid": os.getpid()}
    )
    named = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    return Tracer(Sampling.read(os.environ), OTLPSpanExporter(), own.merge(named))


class Tracer:
    """Makes the spans of one process. Threads and coroutines may share it."""

    def __init__(self, sampling: Sampling, exporter: SpanExporter, resource: Resource) -> None:
        self._root_share = sampling.root_share
        self._follows_parents = sampling.follows_parents
        self._ids = _Ids()
        self._exporter = _Exporter(exporter)
        self._processor = BatchSpanProcessor(self._exporter)
        self._resource = _ThisProcess(resource.attributes, resource.schema_url)
        self._provider = TracerProvider(
            sampler=sampling.sampler, resource=self._resource, shutdown_on_exit=False, id_generator=self._ids
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(_SCOPE.name)

    def flush(self) -> None:
        """Send the spans so far, as `close` does."""
        if not self._exporter.is_failing:
            _within_a_second(self._provider.force_flush)

    def close(self) -> None:
        """Send the last spans within a second; at once give up if the collector did not answer the last time."""
        if self._exporter.is_failing:
            self._exporter.shutdown()
        _within_a_second(self._provider.shutdown)

    # --- requests

    def samples(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Tell whether a request may be recorded. Each hit asks, so nothing is made here."""
        for header, value in headers:
            if header == _PARENT:
                if len(value) == _PARENT_LENGTH:  # else it is malformed, and so no parent
                    return not self._follows_parents or value[-1] in _SAMPLED
                break
        return random() < self._root_share  # noqa: S311 - no secret

    def request(
        self,
        headers: Sequence[tuple[bytes, bytes]],
        name: str,
        attributes: Attributes,
        look_up: tuple[int, int] | None = None,
    ) -> Span | None:
        """Begin the span of a request that `samples` chose; None if the sampler decides otherwise.

        `look_up`: when it began, which is the request's beginning, and ended (epoch nanoseconds); None: it is to come.
        """
        began_ns, looked_up_ns = look_up or (None, None)
        context = _W3C.extract(_texts(headers), Context())
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=began_ns)
        if not span.is_recording():
            return None
        if look_up is not None:
            self._start_look_up(span, began_ns).end(looked_up_ns)
        return span

    def hit(self, headers: Sequence[tuple[bytes, bytes]], route: str, look_up: tuple[int, int], status: int) -> None:
        """Record a request that `samples` chose and that is over: its look-up (as in `request`) was all of it.

        Made at once: a span of the SDK's that is begun, changed and ended takes several times as long.
        """
        began_ns, looked_up_ns = look_up
        context = _W3C.extract(_texts(headers), Context())
        parent = get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else self._ids.generate_trace_id()
        name = f"GET {route}"
        decision = self._provider.sampler.should_sample(context, trace_id, name).decision
        if decision is not Decision.RECORD_AND_SAMPLE:
            return
        span = ReadableSpan(
            name,
            SpanContext(trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=_IS_SAMPLED),
            parent if parent.is_valid else None,
            self._resource,
            {
                "http.request.method": "GET",
                "http.route": route,
                "http.response.status_code": status,
                "forecache.look_up_ms": (looked_up_ns - began_ns) / 1e6,
            },
            kind=SpanKind.SERVER,
            status=_OK if status < 500 else _ERROR,
            start_time=began_ns,
            end_time=time_ns(),
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)

    def unrecorded(self, headers: Iterable[tuple[bytes, bytes]]) -> Span | None:
        """Return the client's span of a request that is not recorded here, for logs and messages; None without one."""
        span = get_current_span(_W3C.extract(_texts(headers), Context()))
        return span if span.get_span_context().is_valid else None

    def end_request(self, span: Span, status: int | None, *, failed: bool) -> None:
        """See `tracing.end_request`. A mistake of the client's is no failure of the server."""
        if status is not None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_attribute("error.type", str(status))
        if failed or (status or 0) >= 500:
            span.set_status(_ERROR)
        span.end()

    def look_up(self, tell: Callable[[], None]) -> Callable[[], None]:
        """See `tracing.look_up_span`."""
        parent = get_current_span()
        if not parent.is_recording():
            return tell
        span = self._start_look_up(parent)

        def told() -> None:
            span.end()
            tell()

        return told

    def _start_look_up(self, of: Span, began_ns: int | None = None) -> Span:
        context = set_span_in_context(of, Context())
        return self._tracer.start_span(
            "look up", context, SpanKind.CLIENT, {"db.system.name": "redis"}, start_time=began_ns
        )

    def follow(self, spans: Sequence[Span | None]) -> None:
        """See `tracing.follow`."""
        only = spans[0] if len(spans) == 1 else None
        attach(Context() if only is None else set_span_in_context(only, Context()))

    # --- messages

    @contextmanager
    def message(self, task: str, queue: str, message_id: str, behind: Sequence[Span | None]) -> Iterator[Span | None]:
        """See `tracing.message_span`. One request is the parent; several are linked, each with the message too."""
        recorded = [span for span in behind if span is not None and span.is_recording()][:MAX_LINKS]
        if not recorded:
            yield None
            return
        is_alone = len(behind) == 1
        span = self._tracer.start_span(
            f"send {queue}",
            set_span_in_context(recorded[0], Context()) if is_alone else Context(),
            SpanKind.PRODUCER,
            {
                **_message_attributes(task, queue, message_id),
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
            },
            [] if is_alone else [Link(one.get_span_context()) for one in recorded],
        )
        for one in [] if is_alone else recorded:
            one.add_link(span.get_span_context())
        with _current(span):
            yield span

    @contextmanager
    def task(
        self, task: str, queue: str, message_id: str, carrier: Mapping[str, Any], *, is_ours: bool
    ) -> Iterator[Span | None]:
        """See `tracing.task_span`."""
        context = _W3C.extract({name: value for name, value in carrier.items() if isinstance(value, str)}, Context())
        parent = get_current_span(context).get_span_context()
        if not parent.is_valid and (is_ours or random() >= self._root_share):  # noqa: S311 - no secret
            yield None
            return
        span = self._tracer.start_span(
            f"process {queue}",
            context,
            SpanKind.CONSUMER,
            {
                **_message_attributes(task, queue, message_id),
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
            },
        )
        with _current(span, _counted(Context())):
            yield span

    # --- parts

    def part(
        self,
        name: str,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        expected: tuple[type[Exception], ...] = (),
    ) -> AbstractContextManager[Span | None]:
        """See `tracing.span`."""
        if not get_current_span().is_recording() or not _may_have_parts():
            return nullcontext()
        return _current(self._tracer.start_span(name, None, kind, attributes), expected=expected)

    def redis_part(
        self, commands: Sequence[Sequence[Any]], expected: tuple[type[Exception], ...]
    ) -> AbstractContextManager[Span | None]:
        """See `tracing.redis_span`."""
        if not get_current_span().is_recording():
            return nullcontext()
        verbs = {verb.decode("latin-1") if isinstance(verb, bytes) else verb for verb, *_ in commands}
        name = verbs.pop() if len(verbs) == 1 else ""
        attributes: dict[str, str | int] = {"db.system.name": "redis"}
        if len(commands) > 1:
            name = f"PIPELINE {name}".strip()
            attributes["db.operation.batch.size"] = len(commands)
        return self.part(name, {**attributes, "db.operation.name": name}, SpanKind.CLIENT, expected)

    def headers(self) -> dict[str, str]:
        """See `tracing.headers`."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier

    def ids(self) -> Mapping[str, str]:
        """See `tracing.ids`."""
        found = get_current_span().get_span_context()
        if not found.is_valid:
            return {}
        return {"trace_id": format_trace_id(found.trace_id), "span_id": format_span_id(found.span_id)}

    # --- runs: their ids are made from the run's, so that all processes agree without a message

    @contextmanager
    def run_part(self, run_id: str, name: str, attributes: Attributes) -> Iterator[Span | None]:
        """See `tracing.run_span`. Runs are few, so each is recorded unless no new trace is."""
        if not self._root_share:
            yield None
            return
        parent = set_span_in_context(NonRecordingSpan(_context_of_run(run_id)), Context())
        span = self._tracer.start_span(name, parent, attributes={**attributes, "forecache.run.id": run_id})
        with _current(span, _counted(Context())):
            yield span

    def link_run(self, run_id: str) -> None:
        """See `tracing.request_run`."""
        request = get_current_span()
        if self._root_share and request.is_recording():
            request.set_attribute("forecache.run.id", run_id)
            request.add_link(_context_of_run(run_id))

    def end_run(self, run_id: str, attributes: Attributes, began_at: float, *, failed: bool) -> None:
        """See `tracing.end_run`."""
        if not self._root_share:
            return
        with self._ids.given(_context_of_run(run_id)):
            span = self._tracer.start_span(
                "run", Context(), attributes={**attributes, "forecache.run.id": run_id}, start_time=int(began_at * 1e9)
            )
        if failed:
            span.set_status(_ERROR)
        span.end()


def _within_a_second(send: Callable[[], object]) -> None:
    """Call what may wait for half a minute, and leave it alone after `CLOSE_WITHIN_S`."""
    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    sending.join(CLOSE_WITHIN_S)


def fail(span: Span, error: BaseException) -> None:
    """Mark a span as failed. Without the error's text, which may name an entity or a value."""
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(_ERROR)


@contextmanager
def _current(span: Span, context: Context | None = None, expected: tuple[type[Exception], ...] = ()) -> Iterator[Span]:
    """Make a span the current one within the block, and end it.

    `context`: of the block; None: as it is. `expected`: exceptions that are no failures.
    """
    token = attach(set_span_in_context(span, context))
    try:
        yield span
    except BaseException as error:
        if not isinstance(error, expected):
            fail(span, error)
        raise
    finally:
        span.end()
        detach(token)


def _counted(context: Context) -> Context:
    return set_value(_PARTS_LEFT, [MAX_PARTS], context)


def _may_have_parts() -> bool:
    """Count one more part of the current task or chunk; False if it has too many. Other work is not counted."""
    left: Any = get_value(_PARTS_LEFT)
    if left is not None:
        left[0] -= 1
    return left is None or left[0] >= 0


def _message_attributes(task: str, queue: str, message_id: str) -> dict[str, str]:
    return {
        "messaging.system": "celery",
        "messaging.destination.name": queue,
        "messaging.message.id": message_id,
        "celery.task_name": task,
    }


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {
        name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in (_PARENT, b"tracestate")
    }


def _context_of_run(run_id: str) -> SpanContext:
    digest = hashlib.sha256(run_id.encode()).digest()
    trace_id, span_id = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=_IS_SAMPLED)


class _ThisProcess(Resource):
    """The resource of all spans of this process.

    The exporter looks it up for each span; the SDK's would write all of its attributes as JSON each time.
    """

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class _Ids(RandomIdGenerator):
    """Makes random ids, but for spans whose ids are given."""

    def __init__(self) -> None:
        self._here = threading.local()

    @contextmanager
    def given(self, context: SpanContext) -> Iterator[None]:
        """Give the ids of the span that this thread starts in the block."""
        self._here.context = context
        try:
            yield
        finally:
            self._here.context = None

    def generate_span_id(self) -> int:
        given: SpanContext | None = getattr(self._here, "context", None)
        return super().generate_span_id() if given is None else given.span_id

    def generate_trace_id(self) -> int:
        given: SpanContext | None = getattr(self._here, "context", None)
        return super().generate_trace_id() if given is None else given.trace_id


class _Exporter(SpanExporter):
    """Logs once that the collector does not take spans, and once that it does again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self.is_failing:
            log.warning("tracing.unsent", extra={"reason": "the collector does not take spans: they are dropped"})
        elif self.is_failing and not is_failing:
            log.info("tracing.sent_again")
        self.is_failing = is_failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
