"""Traces requests, tasks and runs by OpenTelemetry, if a collector is named and the extra `otel` is installed.

Otherwise `tracer` is None, every call here does nothing, and nothing of OpenTelemetry is imported. A process decides
once, at its start. OpenTelemetry's own variables say where spans go and how many (docs/tracing.md). Attributes hold
neither entity ids nor features.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from inference.otel import Tracer

log = logging.getLogger(__name__)

#: header of requests, calls and messages: the trace and the span that they belong to (W3C Trace Context)
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
Attributes = Mapping[str, str | int | float | bool]

#: makes the spans of this process; None: nobody wants them
tracer: Tracer | None = None
_NOTHING: AbstractContextManager[None] = nullcontext()


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment names a collector and does not turn tracing off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    named = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return exporter != "none" and (exporter == "otlp" or any(environment.get(name) for name in named))


def obstacle(environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return why the wanted traces cannot be sent, and the fix; None if they can."""
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if (protocol or "http/protobuf") != "http/protobuf":
        fix = "name the collector's HTTP port, often 4318, and leave the variable out"
        return f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}, but spans are sent by http/protobuf only", fix
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is {exporter}, but spans are sent by otlp only", "set it to otlp, or leave it out"
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        return "a collector is named, but OpenTelemetry is not installed", "pip install 'forecache[otel]'"
    return None


def load() -> None:
    """Import what `start` needs, so that forks share it."""
    if is_wanted() and obstacle() is None:
        import inference.otel  # noqa: F401


def start(process: str, release: str | None) -> None:
    """Begin to trace in this process, if the environment wants it; `process`: its kind. Call it after a fork.

    A mistake in the environment takes one line in the log, and the process works without traces.
    """
    global tracer
    if not is_wanted():
        return
    found = obstacle()
    try:
        if found is None:
            from inference.otel import open_tracer

            tracer = open_tracer(process, release)
    except ValueError as error:
        found = str(error), "see docs/tracing.md"
    if found is not None:
        log.warning("tracing.off", extra={"reason": found[0], "fix": found[1]})


def flush() -> None:
    """Send the spans so far, for a process that may be ended at any moment; waits as `stop` does."""
    if tracer is not None:
        tracer.flush()


def stop() -> None:
    """Send the last spans and end; waits a second at most, and not at all while the collector does not answer."""
    global tracer
    if tracer is not None:
        tracer.close()
        tracer = None


def span(name: str, attributes: Attributes) -> AbstractContextManager[Span | None]:
    """Return a context that is a part of the current work; nothing if that is not recorded."""
    return _NOTHING if tracer is None else tracer.part(name, attributes)


def redis_span(
    commands: Sequence[Sequence[Any]], expected: tuple[type[Exception], ...] = ()
) -> AbstractContextManager[Span | None]:
    """Return a context in which Redis is asked as a part of the current work. `expected`: errors that are none."""
    return _NOTHING if tracer is None else tracer.redis_part(commands, expected)


def end_request(of: Span, status: int | None, *, failed: bool = False) -> None:
    """End the span of a request; `status`: of HTTP, None if it has none or its client was gone."""
    if tracer is not None:
        tracer.end_request(of, status, failed=failed)


def look_up_span(tell: Callable[[], None]) -> Callable[[], None]:
    """Begin the span of a look-up for the current work; return `tell` that also ends it."""
    return tell if tracer is None else tracer.look_up(tell)


def message_span(
    task: str, queue: str, message_id: str, behind: Sequence[Span | None]
) -> AbstractContextManager[Span | None]:
    """Return a context in which a message is sent and its result awaited, for the requests `behind` it."""
    return _NOTHING if tracer is None else tracer.message(task, queue, message_id, behind)


def task_span(
    task: str, queue: str, message_id: str, carrier: Mapping[str, Any], *, is_ours: bool
) -> AbstractContextManager[Span | None]:
    """Return a context in which a message is processed.

    `carrier`: its headers. `is_ours`: we sent it, so without a trace in its headers nobody wanted one.
    """
    return _NOTHING if tracer is None else tracer.task(task, queue, message_id, carrier, is_ours=is_ours)


def run_span(run_id: str, name: str, attributes: Attributes) -> AbstractContextManager[Span | None]:
    """Return a context in which a part of a run is worked on. All parts of a run make one trace."""
    return _NOTHING if tracer is None else tracer.run_part(run_id, name, attributes)


def request_run(run_id: str) -> None:
    """Link the current request with the trace of the run that it starts."""
    if tracer is not None:
        tracer.link_run(run_id)


def end_run(run_id: str, model: str, state: str, *, began_at: float, failed: bool) -> None:
    """Record a whole run, which began at `began_at` (epoch seconds) and ends now."""
    if tracer is not None:
        tracer.end_run(run_id, {"forecache.model.name": model, "forecache.run.state": state}, began_at, failed=failed)


def follow(spans: Sequence[Span | None]) -> None:
    """Make the only span of `spans` the current one from now on; several or none: no span is current."""
    if tracer is not None:
        tracer.follow(spans)


def headers() -> dict[str, str]:
    """Return the headers that carry the current trace on; empty without one."""
    return {} if tracer is None else tracer.headers()


def ids() -> Mapping[str, str]:
    """Return `trace_id` and `span_id` of the current work as logs write them; empty without any."""
    return {} if tracer is None else tracer.ids()
