"""Checks that streams can be reached and are there, and that somebody listens to them."""

from __future__ import annotations

from app.cli.doctor.findings import Check, Finding, Start, error, ok, start_fix, warning
from inference.errors import SettingsError
from inference.monitoring.presence import Roster
from inference.settings import Settings
from inference.streams.messages import Lag, StreamUnavailable
from inference.streams.opening import require_client, require_stream
from inference.wording import duration_text

#: the listeners are behind if the oldest message has waited for longer
_BEHIND_S = 60.0


def check_stream(
    settings: Settings, name: str, listeners: Roster | None, lag: Lag | None, *, start: Start | None = None
) -> list[Finding]:
    """Return the findings about one stream. `listeners`, `lag`: None if they are not known."""
    where = f"[streams.{name}]"
    try:
        require_client(settings, name)
        require_stream(settings, name)
    except SettingsError as problem:
        return [error(Check.STREAM, name, problem.message, "install it where listeners run, then ask again")]
    except StreamUnavailable as problem:
        fix = f"correct {where} {problem.field or 'url'}, or start what it names"
        return [error(Check.STREAM, name, problem.message, fix)]
    if listeners is not None and not listeners.alive:
        return [warning(Check.STREAM, name, "nobody listens to it", start_fix(start, "forecache listen"))]
    if lag is not None and lag.oldest_s > _BEHIND_S:
        detail = f"its oldest message has waited for {duration_text(lag.oldest_s)}"
        return [warning(Check.STREAM, name, detail, "see the listener's log; if it works, start another listener")]
    return [ok(Check.STREAM, name, f"{settings.streams[name].stream} is there")]


def no_streams() -> list[Finding]:
    """Return the finding about settings without a stream."""
    return [ok(Check.STREAM, "all streams", "none set: features are updated by loads, runs and requests")]
