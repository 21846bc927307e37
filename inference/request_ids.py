"""Which requests a piece of work is done for: their ids stand in log lines, task messages and answers.

An id costs nothing until somebody asks for it, so that every request may have one.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from itertools import count
from typing import Any

#: header of a real-time task's message: the ids of the requests that wait for it
REQUEST_IDS_HEADER = "forecache_request_ids"
#: ids that one message or line names; a micro-batch of hundreds is told by its task's id
MAX_TOLD = 16

# what may stand in a header, a log line and a document without being quoted
_SANE = re.compile(r"[A-Za-z0-9._:=+/@-]{1,128}")
_process = uuid.uuid4().hex[:12]
_numbers = count(1)


class RequestId:
    """One request's id: the one that its client named, else one that is made when it is first asked for."""

    __slots__ = ("_text", "is_named")

    def __init__(self, named: str | None = None) -> None:
        #: whether the client named it
        self.is_named = named is not None and _SANE.fullmatch(named) is not None
        self._text = named if self.is_named else None

    def __str__(self) -> str:
        if self._text is None:
            # with the process id, since processes that were forked share the rest
            self._text = f"{_process}{os.getpid():x}-{next(_numbers):x}"
        return self._text


#: the requests for which the present task of the event loop, or the present thread, works
_behind: ContextVar[tuple[RequestId, ...]] = ContextVar("forecache_requests", default=())


def work_for(requests: Sequence[RequestId]) -> None:
    """Say for whom everything is done from here on, in this context and what it starts."""
    _behind.set(tuple(requests))


def requests_behind() -> tuple[RequestId, ...]:
    """Return for whom the present work is done; empty for what nobody asked for."""
    return _behind.get()


def told(requests: Iterable[RequestId]) -> list[str]:
    """Return the ids as text, the first few and each once."""
    distinct = list(dict.fromkeys(requests))
    return [str(request) for request in distinct[:MAX_TOLD]]


def message_headers() -> dict[str, Any]:
    """Return what tells a worker for whom the present work is done; nothing for what no request asked for."""
    requests = requests_behind()
    return {REQUEST_IDS_HEADER: told(requests)} if requests else {}


def from_message(header: Any) -> tuple[RequestId, ...]:
    """Return what a message's header names; whoever sent it, only sane ids count."""
    if not isinstance(header, list):
        return ()
    named = (RequestId(one) for one in header[:MAX_TOLD] if isinstance(one, str))
    return tuple(request for request in named if request.is_named)
