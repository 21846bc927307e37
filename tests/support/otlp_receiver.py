"""A collector for tests: takes spans over OTLP's HTTP, and keeps them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came; ids in hexadecimal, `links` as pairs of trace and span."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    failed: bool
    took_s: float

    @property
    def place(self) -> tuple[str, str]:
        """What a link to it holds."""
        return self.trace_id, self.span_id


class OtlpReceiver:
    """Listens on a free port. `environment`: of processes that shall send their spans here, at once."""

    def __init__(self) -> None:
        self._spans: list[ReceivedSpan] = []
        #: all that came, as bytes
        self.raw = b""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version: ClassVar[str] = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> OtlpReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def take(self, body: bytes) -> None:
        """Keep the spans of a request."""
        self.raw += body
        self._spans += list(_spans_in(ExportTraceServiceRequest.FromString(body)))

    def spans(self, trace_id: str = "", **wanted: str) -> list[ReceivedSpan]:
        """The spans that have come, of one trace or of all, whose fields are as `wanted`."""
        return [
            span
            for span in list(self._spans)
            if (not trace_id or span.trace_id == trace_id)
            and all(getattr(span, name) == value for name, value in wanted.items())
        ]


def _spans_in(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for of_process in request.resource_spans:
        service = next(one.value.string_value for one in of_process.resource.attributes if one.key == "service.name")
        for scope in of_process.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    service=service,
                    name=span.name,
                    kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    attributes={one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes},
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                    took_s=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                )
