"""Shared by all checks: findings, the start that a missing process may belong to, and calls side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeVar

from inference.wording import duration_text


class Check(StrEnum):
    """The subjects of the checks, in the order of the report."""

    VERSIONS = "versions"
    REDIS = "redis"
    BROKER = "broker"
    WORKERS = "workers"
    GRPC = "grpc"
    MODEL = "model"
    TABLE = "table"
    FALLBACK = "fallback"
    SCHEDULE = "schedule"
    STREAM = "stream"
    MACHINE = "machine"


class Status(StrEnum):
    """How serious a finding is."""

    #: as it should be
    OK = "ok"
    #: works now but may fail later, or could not be checked
    WARNING = "warning"
    #: until this is fixed, predictions are not made, not served or not kept
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix`: one sentence, None if there is nothing to do."""

    check: Check
    subject: str
    status: Status
    detail: str
    fix: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return plain JSON values."""
        return asdict(self)


def ok(check: Check, subject: str, detail: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, subject, Status.OK, detail)


def warning(check: Check, subject: str, detail: str, fix: str) -> Finding:
    """Return a finding that may become an error."""
    return Finding(check, subject, Status.WARNING, detail, fix)


def error(check: Check, subject: str, detail: str, fix: str) -> Finding:
    """Return a finding that must be fixed."""
    return Finding(check, subject, Status.ERROR, detail, fix)


def not_checked(check: Check, subject: str) -> Finding:
    """Return the finding of a check that needs the cache Redis, if that does not answer."""
    return warning(check, subject, "not checked: no Redis", "put right what the Redis lines say, then ask again")


#: seconds in which the processes of a deployment come up, on a busy machine too
STARTS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Start:
    """The last start of the deployment. `by`: who starts its processes; `age_s`: seconds since it began."""

    by: str
    age_s: float


def start_fix(start: Start | None, command: str) -> str:
    """Return the fix for a process that is missing. `start`: None if none is known; `command`: starts the process."""
    if start is None:
        return f"start `forecache up`, or `{command}`"
    if start.age_s < STARTS_WITHIN_S:
        return f"{start.by} began {duration_text(start.age_s)} ago and may still be starting it: ask again in a moment"
    since = duration_text(start.age_s)
    return f"{start.by} has been running for {since}: its lines say why; if it runs without this, start `{command}`"


K = TypeVar("K")
T = TypeVar("T")


def at_once(calls: Mapping[K, Callable[[], T]], within_s: float) -> dict[K, T | Exception]:
    """Call all at the same time. Return results and exceptions; TimeoutError for a call that takes too long.

    The thread of such a call keeps running.
    """
    results: dict[K, T | Exception] = {}

    def run(name: K, call: Callable[[], T]) -> None:
        try:
            results[name] = call()
        except Exception as problem:  # noqa: BLE001 - the caller makes a finding of it
            results[name] = problem

    # daemons: the command must end even if a name server never answers
    threads = [threading.Thread(target=run, args=item, daemon=True) for item in calls.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0.0))
    return {name: results.get(name, TimeoutError()) for name in calls}
