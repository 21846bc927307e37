"""Checks task messages before Celery sees them: anybody who reaches the broker can write one.

Celery copies every header into the task's context, prints some, and sends all links, chains and chords of a message. So
only known headers pass, each in its form, and a link must name a task that the settings list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from inference.logs import REQUEST_IDS_HEADER
from inference.monitoring.queues import SENT_AT_HEADER
from inference.tracing import TRACEPARENT, TRACESTATE

#: a larger message is dropped unread; the API's largest message holds the body of a request, 8 MiB at most
MAX_MESSAGE_BYTES = 64 << 20
#: a header of text; Celery cuts `argsrepr` at 1024 by default
_MAX_TEXT = 16 << 10
_MAX_NAME = 255
_MAX_RETRIES = 1000
#: the links of a message, with the links of links, and their depth
_MAX_LINKS, _MAX_DEPTH = 100, 5
#: years beyond these are a mistake, or an attack
_FIRST_YEAR, _LAST_YEAR = 1971, 9000
_LONGEST_COUNTDOWN_S = 30 * 86400

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")
#: as Celery and Python write it; its parser and ours disagree on other forms
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:[0-5]\d)?", re.ASCII)
_NO_BODY = "its body is no list of arguments, named arguments and the rest"
_LINKS = ("callbacks", "errbacks", "chain")
_EMBEDDED = frozenset({*_LINKS, "chord"})
# made once: each call that writes `int | float` would make it again
_NUMBERS, _LISTS = (int, float), (list, tuple)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBERS


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_MESSAGE_BYTES


def _is_instant(value: Any) -> bool:
    if not isinstance(value, str) or _INSTANT.fullmatch(value) is None:
        return False
    try:
        instant = datetime.fromisoformat(value)  # Celery's own parser takes twenty times as long
    except ValueError:
        return False
    return _FIRST_YEAR <= instant.year <= _LAST_YEAR


def _are_limits(value: Any) -> bool:
    return (
        isinstance(value, _LISTS)
        and len(value) == 2
        and all(one is None or (_is_number(one) and 0 <= one <= MAX_MESSAGE_BYTES) for one in value)
    )


_Check = Callable[[Any], bool]
#: name of a header → its check, and its form in words; a header that no worker needs is left out, and so dropped
_HEADERS: Mapping[str, tuple[_Check, str]] = {
    "task": (lambda value: len(value) <= _MAX_NAME, f"a name of at most {_MAX_NAME} characters"),
    "id": (_is_id, "an id of letters, digits, '_', '.', ':' and '-'"),
    "root_id": (_is_id, "an id"),
    "parent_id": (_is_id, "an id"),
    "group": (_is_id, "an id"),
    "taskset": (_is_id, "an id"),
    "group_index": (_is_count, "a number from 0"),
    "retries": (lambda value: _is_count(value) and value <= _MAX_RETRIES, f"a number from 0 to {_MAX_RETRIES}"),
    "eta": (_is_instant, "an instant as ISO 8601 writes it"),
    "expires": (_is_instant, "an instant as ISO 8601 writes it"),
    "timelimit": (_are_limits, "a pair of time limits"),
    "ignore_result": (lambda value: isinstance(value, bool), "true or false"),
    "lang": (_is_text, "short text"),
    "origin": (_is_text, "short text"),
    "argsrepr": (_is_text, "short text"),
    "kwargsrepr": (_is_text, "short text"),
    SENT_AT_HEADER: (_is_number, "a number"),
    REQUEST_IDS_HEADER: (lambda value: isinstance(value, list), "a list"),
    TRACEPARENT: (_is_text, "short text"),
    TRACESTATE: (_is_text, "short text"),
}
#: the fields of a message of version 1
_KEPT_OF_V1 = frozenset({*_HEADERS, "args", "kwargs", "utc", "callbacks", "errbacks", "chord"})

#: options that a link may have, beside its queue and links of its own
_OPTIONS: Mapping[str, _Check] = {
    "task_id": _is_id,
    "root_id": _is_id,
    "parent_id": _is_id,
    "group_id": _is_id,
    "group_index": _is_count,
    "reply_to": _is_id,
    "priority": lambda value: _is_count(value) and value <= 255,
    "countdown": lambda value: _is_number(value) and 0 <= value <= _LONGEST_COUNTDOWN_S,
    "eta": _is_instant,
    "expires": lambda value: _is_instant(value) or (_is_number(value) and 0 <= value <= _LONGEST_COUNTDOWN_S),
}
_SIGNATURE = frozenset({"task", "args", "kwargs", "options", "subtask_type", "immutable", "chord_size"})


def problem_of(message: Any, linked: Mapping[str, str] | None = None) -> str | None:
    """Return why a kombu message is no task by Celery's protocol, version 2 or 1; None if it is one.

    Removes unknown headers. `linked`: the tasks that links may name, with their queues.
    """
    if len(message.body or b"") > MAX_MESSAGE_BYTES:
        return f"its body is over {MAX_MESSAGE_BYTES} bytes"
    try:
        body = message.payload
    except Exception as error:  # noqa: BLE001 - a decoder may raise anything
        return f"its body cannot be decoded ({type(error).__name__})"
    headers = message.headers
    if not isinstance(headers, dict):
        return "its headers are no object"
    if "task" not in headers and isinstance(body, dict):
        problem = _problem(body, {}, body.get("args", []), body.get("kwargs", {}), body, linked or {})
        for name in body.keys() - _KEPT_OF_V1:
            del body[name]
        message.headers = {}
        return problem
    if not isinstance(body, _LISTS) or len(body) != 3 or not (body[2] is None or isinstance(body[2], dict)):
        return _NO_BODY
    embedded = body[2] or {}
    if not embedded.keys() <= _EMBEDDED:
        return "its body holds more than arguments, links, a chain and a chord"
    message.headers = {}
    return _problem(headers, message.headers, body[0], body[1], embedded, linked or {})


def _problem(
    named: Mapping[str, Any],
    kept: dict[str, Any],
    arguments: Any,
    keywords: Any,
    embedded: Mapping[str, Any],
    linked: Mapping[str, str],
) -> str | None:
    """Check a task's name, headers and arguments. Adds the known headers to `kept`."""
    if not isinstance(named.get("task"), str) or not isinstance(named.get("id"), str):
        return "it names no task, or has no id"
    for name, value in named.items():
        if value is None or name not in _HEADERS:
            continue
        is_legal, form = _HEADERS[name]
        if not is_legal(value):
            return f"its {name} is not {form}"
        kept[name] = value
    if not isinstance(arguments, _LISTS) or not isinstance(keywords, dict):
        return _NO_BODY
    if any(map(embedded.get, _EMBEDDED)):
        return _Links(linked).problem_of(embedded, _LINKS, depth=1)
    return None


class _Links:
    """Checks the links of one message, which Celery sends after its task. They may name listed tasks only."""

    def __init__(self, linked: Mapping[str, str]) -> None:
        self._linked = linked
        self._left = _MAX_LINKS

    def problem_of(self, holder: Mapping[str, Any], lists: tuple[str, ...], *, depth: int) -> str | None:
        """Return why the links in the `lists` of a holder, or its chord, must not be sent; None if they may."""
        if depth > _MAX_DEPTH:
            return f"its links lie in each other more than {_MAX_DEPTH} deep"
        for name in lists:
            links = holder.get(name)
            if links is not None and not isinstance(links, list):
                return f"its {name} are no list"
            for link in links or ():
                if problem := self._of_link(link, depth):
                    return problem
        chord = holder.get("chord")
        return None if chord is None else self._of_link(chord, depth)

    def _of_link(self, link: Any, depth: int) -> str | None:
        self._left -= 1
        if self._left < 0:
            return f"it has more than {_MAX_LINKS} links"
        if not _is_signature(link):
            return "a link of it is no task's signature"
        queue = self._linked.get(link["task"])
        if queue is None:
            return "a link of it names a task that [celery] linked_tasks does not list"
        options = link["options"]
        for name, value in options.items():
            if value is None or name in ("link", "link_error", "chord"):
                continue
            if name == "queue":
                if value != queue:
                    return "a link of it names another queue than [celery] linked_tasks does"
            elif name not in _OPTIONS or not _OPTIONS[name](value):
                return "a link of it has an option that is not known, or not of its form"
        return self.problem_of(options, ("link", "link_error"), depth=depth + 1)


def _is_signature(link: Any) -> bool:
    return (
        isinstance(link, dict)
        and not link.keys() - _SIGNATURE
        and isinstance(link.get("task"), str)
        # Celery always writes these, and cannot send a link without them
        and isinstance(link.get("args"), list)
        and isinstance(link.get("kwargs"), dict)
        and isinstance(link.get("options"), dict)
        and link.get("subtask_type") in (None, "")
        and isinstance(link.get("immutable", False), bool | None)
        and isinstance(link.get("chord_size"), int | None)
    )
