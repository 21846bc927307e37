"""Configures logging: events with fields, in one format for every process."""

from __future__ import annotations

import contextvars
import io
import logging
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from inference import tracing
from inference.redaction import without_secrets
from inference.wording import counted

if TYPE_CHECKING:
    from opentelemetry.trace import Span

#: longer texts are cut, so that no client can fill a disk with log lines
_MAX_FIELD, _MAX_TRACEBACK = 4096, 32_768
#: control characters that move a terminal's cursor or colour it, except tab and newline
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def configure_logging(process: str, *, form: str = "console", level: str = "info") -> None:
    """Route structlog, the standard library and Python's warnings through one renderer on stderr.

    `process` names the process in every line. `form` and `level` are the settings' values. Console output has
    colours only on a terminal and without `NO_COLOR`.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        _named(process),
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _only_what_matters,
        _with_requests,
        _cut_long,
        *(_JSON_STAMPS if form == "json" else _CONSOLE_STAMPS),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(_json_renderers() if form == "json" else _console_renderers()),
            _without_secrets,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # a line below the level costs only a call
        wrapper_class=structlog.make_filtering_bound_logger(least),
        cache_logger_on_first_use=True,
    )
    if form == "json":
        _log_crashes()


_CONSOLE_STAMPS = (structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),)
_JSON_STAMPS = (structlog.stdlib.add_logger_name, structlog.processors.TimeStamper(fmt="iso", utc=True))


def _console_renderers() -> list[Any]:
    colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    renderer = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=_plain_traceback)
    return [_indent_event, renderer]


def _json_renderers() -> list[Any]:
    # tracebacks become one field, without local variables
    return [structlog.processors.format_exc_info, _cut_traceback, _head_first, structlog.processors.JSONRenderer()]


def _plain_traceback(out: TextIO, exc_info: Any) -> None:
    # plain: the renderer's default prints local variables, which may hold personal data and passwords
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write(_indented(_cut(text.getvalue(), _MAX_TRACEBACK)))


def _indent_event(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "event": _indented(str(event.get("event", "")))}


def _indented(text: str) -> str:
    """Return a text with indented continuation lines, so that no text can fake a line of the log."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text).rstrip("\n").replace("\n", "\n  ")


def _cut_long(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    for name, value in event.items():
        if isinstance(value, list | tuple | dict):
            if len(shown := repr(value)) > _MAX_FIELD:
                event[name] = _cut(shown, _MAX_FIELD)
        elif isinstance(value, str) and len(value) > _MAX_FIELD:
            event[name] = _cut(value, _MAX_FIELD)
    return event


def _cut_traceback(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    if "exception" in event:
        event["exception"] = _cut(str(event["exception"]), _MAX_TRACEBACK)
    return event


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({counted(len(text) - most, 'character')} more)"


def _head_first(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    # the common fields come first, for people who read raw lines
    return {name: event[name] for name in ("timestamp", "level", "event") if name in event} | event


def _named(process: str) -> Callable[[Any, str, dict[str, Any]], dict[str, Any]]:
    # not a context variable: a new thread would not have it
    return lambda _logger, _method, event: {**event, "process": process}


def _only_what_matters(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Drop fields that libraries add to their text: uvicorn's second copy of it, Celery's task arguments."""
    event.pop("color_message", None)
    task = event.pop("data", None)
    if isinstance(task, dict) and "id" in task:
        event |= {"task_id": task["id"], "task": task.get("name")}
    return event


def _with_requests(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    requests = requests_behind()
    if len(requests) == 1:
        event["request_id"] = str(requests[0])
    elif requests:
        event["request_ids"] = told(requests)
    event.update(tracing.ids())
    return event


def _without_secrets(_logger: Any, _method: str, line: Any) -> str:
    return without_secrets(str(line))


def _log_crashes() -> None:
    """Log an uncaught exception as one line, not as a traceback of many lines."""
    log = get_logger(__name__)

    def crashed(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, traceback)
        else:
            log.critical("process.crashed", exc_info=(kind, error, traceback))

    def thread_crashed(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            crashed(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = crashed
    threading.excepthook = thread_crashed


def write_at_once(text: str) -> None:
    """Write one line without the log handlers, for signal handlers: they may have interrupted one that is writing."""
    record = logging.LogRecord("signal", logging.INFO, "", 0, text, None, None)
    line = logging.getLogger().handlers[0].format(record)
    os.write(sys.stderr.fileno(), f"{line}\n".encode())


def get_logger(name: str) -> Any:
    """Return a logger whose methods take an event name and fields: `log.info("chunk.scored", rows=n)`."""
    return structlog.stdlib.get_logger(name)


def bound(**fields: Any) -> AbstractContextManager[None]:
    """Return a context manager that adds these fields to every line logged inside it."""
    return structlog.contextvars.bound_contextvars(**fields)


def in_this_context(call: Callable[[], None]) -> Callable[[], None]:
    """Return `call` for another thread, with the log fields that are bound here."""
    context = contextvars.copy_context()
    return lambda: context.run(call)


#: header of a real-time task's message: the ids of the requests that wait for it
REQUEST_IDS_HEADER = "forecache_request_ids"
#: most ids that one message or line names; the task's id identifies a larger micro-batch
MAX_TOLD = 16

# ids that need no quotes in a header, a log line or a document
_SANE = re.compile(r"[A-Za-z0-9._:=+/@-]{1,128}")
_process = uuid.uuid4().hex[:12]
_numbers = count(1)


class RequestId:
    """One request's id: the client's, or one that is generated on first use."""

    __slots__ = ("_text", "is_named", "span")

    def __init__(self, named: str | None = None) -> None:
        #: whether the client named it
        self.is_named = named is not None and _SANE.fullmatch(named) is not None
        self._text = named if self.is_named else None
        #: the request's span, or the client's if it is not recorded; None without a trace
        self.span: Span | None = None

    def __str__(self) -> str:
        if self._text is None:
            # includes the process id, since forked processes share the rest
            self._text = f"{_process}{os.getpid():x}-{next(_numbers):x}"
        return self._text


#: the requests that the current event-loop task or thread works for
_behind: ContextVar[tuple[RequestId, ...]] = ContextVar("forecache_requests", default=())


def work_for(requests: Sequence[RequestId]) -> None:
    """Set the requests that this context, and everything it starts, works for from now on."""
    _behind.set(tuple(requests))
    if tracing.tracer is not None:
        tracing.follow([request.span for request in requests])


def requests_behind() -> tuple[RequestId, ...]:
    """Return the requests that the current work is for; empty if there are none."""
    return _behind.get()


def told(requests: Iterable[RequestId]) -> list[str]:
    """Return the first few distinct ids as text."""
    distinct = list(dict.fromkeys(requests))
    return [str(request) for request in distinct[:MAX_TOLD]]


def message_headers() -> dict[str, Any]:
    """Return the message headers with the current requests' ids and their trace; empty if there are none."""
    requests = requests_behind()
    return {REQUEST_IDS_HEADER: told(requests), **tracing.headers()} if requests else tracing.headers()


def from_message(header: Any) -> tuple[RequestId, ...]:
    """Return the requests that a message's header names. Ignores malformed ids."""
    if not isinstance(header, list):
        return ()
    named = (RequestId(text) for text in header[:MAX_TOLD] if isinstance(text, str))
    return tuple(request for request in named if request.is_named)


def log_through_logging() -> None:
    """Send our lines to Python's `logging`, in a process of somebody else's that has not set structlog up."""
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )
