"""Holds the rules of a call, without a connection: what is sent, when it is repeated, what an answer means.

Each call is a generator, which both clients drive: it yields a `Send` or a `Pause`, and gets an `Answer` back.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from forecache.errors import (
    BadRequest,
    DeadlineExceeded,
    ForecacheError,
    NoConnection,
    NotForecache,
    NotFound,
    Unavailable,
    error_of,
)
from forecache.inputs import body_of

#: seconds before the second try of a request whose server named no time; doubled with each try
FIRST_PAUSE_S = 0.1
PROBLEM = "application/problem+json"

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """A request to be sent. `timeout_s`: seconds for all of it."""

    method: str
    path: str
    params: Mapping[str, str | int | float]
    headers: Mapping[str, str]
    content: bytes | None
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """A pause before the next try, in seconds."""

    seconds: float


@dataclass(frozen=True)
class Answer:
    """What came back. `status` None: nothing; `sent` then tells whether the server may have read the request."""

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""
    sent: bool = True
    timed_out: bool = False


Steps = Generator[Send | Pause, Answer, T]


@dataclass
class Caller:
    """Makes calls by one client's settings.

    `timeout_s`: seconds of a whole call, repetitions included. `retries`: how often a call is repeated at most.
    """

    url: str
    timeout_s: float
    retries: int
    version: str
    clock: Callable[[], float] = time.monotonic
    #: the server's release; "" before it was asked for
    server_version: str = ""

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
        timeout_s: float | None = None,
    ) -> Steps[Any]:
        """Send a request until it is answered; return the JSON of the answer.

        It is repeated if the server was not reached, if the connection broke and the request is `repeatable`, and
        after a 503 or 429, when the server says that it makes sense. No repetition begins that could not end in
        `timeout_s` (None: the client's own).

        Raises:
            ForecacheError: the server refuses or fails, is not there, or is none of ours.
        """
        whole_s = self.timeout_s if timeout_s is None else timeout_s
        end = self.clock() + whole_s
        told = {name: value for name, value in (params or {}).items() if value is not None}
        content = None if body is None else body_of({k: v for k, v in body.items() if v is not None})
        named = {**(headers or {}), **({"Content-Type": "application/json"} if content is not None else {})}
        named |= trace_headers()
        for tried in range(self.retries + 1):
            answer = yield Send(method, path, told, named, content, max(0.001, end - self.clock()))
            if answer.status is not None and answer.status < 300:
                return self._json(answer)
            error = self._error(answer, whole_s)
            pause_s = _pause_after(answer, error, tried) if repeatable or not answer.sent else None
            if pause_s is None or tried == self.retries or self.clock() + pause_s >= end:
                if isinstance(error, BadRequest) or type(error) is NotFound:
                    yield from self._compare_versions(error, end)
                raise error
            yield Pause(pause_s)
        raise AssertionError  # the last try returns or raises

    def _error(self, answer: Answer, whole_s: float) -> ForecacheError:
        if answer.timed_out:
            return DeadlineExceeded(f"no answer from {self.url} within {whole_s:g} s", code="deadline-exceeded")
        if answer.status is None:
            return NoConnection(f"{self.url} is not reached: {answer.error}", code="no-connection")
        if not answer.headers.get("content-type", "").startswith(PROBLEM):
            if answer.status in (502, 503, 504):
                return Unavailable(f"a proxy before {self.url} answers {answer.status}", status=answer.status)
            return self._foreign(answer)
        wait = answer.headers.get("retry-after", "")
        return error_of(self._json(answer), retry_after_s=float(wait) if wait.isdecimal() else None)

    def _json(self, answer: Answer) -> Any:
        try:
            return json.loads(answer.body)
        except ValueError:
            raise self._foreign(answer) from None

    def _compare_versions(self, error: ForecacheError, end: float) -> Steps[None]:
        """Add both releases to an error's message if they differ: one may not know a name of the other."""
        if not self.server_version:
            answer = yield Send("GET", "/v2", {}, {}, None, max(0.001, end - self.clock()))
            if answer.status != 200:
                return
            self.server_version = str(self._json(answer).get("version", ""))
        if _minor(self.server_version) != _minor(self.version):
            error.add_note(f"the client is of release {self.version}, the server of {self.server_version}")

    def _foreign(self, answer: Answer) -> NotForecache:
        server = answer.headers.get("server", "something without a name")
        kind = answer.headers.get("content-type", "no content type")
        return NotForecache(
            f"{self.url} answers {answer.status} by {server} ({kind}), which is not Forecache's API: check the URL",
            status=answer.status,
        )


def trace_headers() -> dict[str, str]:
    """Return the headers that carry the caller's trace on, if it uses OpenTelemetry; else none."""
    if "opentelemetry.trace" not in sys.modules:  # whoever has a span has imported it
        return {}
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def _minor(release: str) -> list[str]:
    return release.split(".")[:2]


def _pause_after(answer: Answer, error: ForecacheError, tried: int) -> float | None:
    """Return the seconds before the next try, None if a repetition makes no sense."""
    if answer.timed_out:
        return None
    if answer.status not in (None, 429, 502, 503, 504):
        return None
    if error.retry_after_s is not None:
        return error.retry_after_s
    # clients that lost the same server must not come back at the same instant
    return FIRST_PAUSE_S * float(2**tried) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
