"""Logging: events with fields, one form for every process."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog


def configure_logging(process: str, *, level: int = logging.INFO) -> None:
    """Route structlog and the standard library through one renderer on stderr.

    `process` names the process in every line. Colours only on a terminal and without `NO_COLOR`.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _without_colored_twin,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
    ]
    colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # plain: the renderer's own choice prints local variables, which hold people's data and passwords
            structlog.dev.ConsoleRenderer(
                colors=colors, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def _without_colored_twin(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Drop the second copy of its text that uvicorn hands over for terminals."""
    event.pop("color_message", None)
    return event


def get_logger(name: str) -> Any:
    """Return a logger whose methods take an event name and fields: `log.info("chunk.scored", rows=n)`."""
    return structlog.stdlib.get_logger(name)
