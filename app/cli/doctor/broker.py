"""The broker: reachable, and patient enough for the longest chunk."""

from __future__ import annotations

from collections.abc import Sequence

from kombu import Connection

from app.cli.context import place_of
from app.cli.doctor.findings import Check, Finding, duration_text, error, not_checked, ok, warning
from app.cli.doctor.redis_servers import PATIENCE, Failure, Server, check_writes, look_at
from inference.batch import RunState
from inference.batch.records import RunRecord
from inference.settings import Settings
from inference.settings.server_urls import is_amqp, is_redis
from tasks.celery_app import celery_config

#: kombu's own, for Redis: what is not acknowledged by then is delivered once more
VISIBILITY_TIMEOUT_S = 3600.0
#: RabbitMQ's own `consumer_timeout`: the channel is closed, and what it held is delivered once more
CONSUMER_TIMEOUT_S = 1800.0


def check_broker(settings: Settings, results: Server | Failure) -> list[Finding]:
    """Return whether the broker can be reached. `results` is what was found at `redis.url`."""
    url = settings.broker_url
    subject = place_of(url)
    if url == settings.redis_url:
        if isinstance(results, Server):
            return [ok(Check.BROKER, subject, "answers: it is the Redis of url")]
        return [error(Check.BROKER, subject, "it is the Redis of url, which does not answer", "see redis, url")]
    seen = look_at(url, "[celery] broker_url", prefix=settings.redis.prefix) if is_redis(url) else _connect(url)
    if isinstance(seen, Failure):
        return [error(Check.BROKER, subject, seen.detail, seen.fix)]
    refused = check_writes(Check.BROKER, subject, seen) if isinstance(seen, Server) else []
    return refused or [ok(Check.BROKER, subject, "answers")]


def check_patience(
    settings: Settings, model: str, runs: Sequence[RunRecord] | None, batch_workers: int
) -> list[Finding]:
    """Return whether the broker waits long enough for one chunk, judged by the last published run of a model.

    `runs`: the newest first; None when they cannot be read.
    """
    if runs is None:
        return [not_checked(Check.BROKER, f"chunks of {model}")]
    last = next((run for run in runs if run.state is RunState.PUBLISHED), None)
    patience_s, name = _patience(settings)
    if last is None or not last.chunks_total or patience_s is None:
        return []
    took_s = (last.finished_at or 0.0) - (last.started_at or last.created_at)
    # the run took its chunks in so many rounds
    chunk_s = took_s / -(-last.chunks_total // max(batch_workers, 1))
    if chunk_s <= patience_s / 2:
        return [ok(Check.BROKER, f"chunks of {model}", f"about {duration_text(chunk_s)} each; {name} is longer")]
    detail = f"about {duration_text(chunk_s)} each, and after {duration_text(patience_s)} ({name}) they are sent again"
    return [warning(Check.BROKER, f"chunks of {model}", detail, f"lower [models.{model}.batch] rows_per_chunk")]


def _patience(settings: Settings) -> tuple[float | None, str]:
    if is_redis(settings.broker_url):
        options = celery_config(settings)["broker_transport_options"]
        return float(options.get("visibility_timeout", VISIBILITY_TIMEOUT_S)), "the visibility timeout"
    if is_amqp(settings.broker_url):
        return CONSUMER_TIMEOUT_S, "RabbitMQ's consumer_timeout"
    return None, ""


def _connect(url: str) -> Failure | None:
    """Return why a broker other than Redis cannot be reached, without quoting what may hold the password."""
    try:
        with Connection(url, connect_timeout=PATIENCE.timeout_s) as connection:
            connection.connect()
    except Exception as problem:  # noqa: BLE001 - each transport has errors of its own; all of them are the finding
        return _failure(problem)
    return None


def _failure(problem: Exception) -> Failure:
    if isinstance(problem, ImportError):
        return Failure(f"its client library is not installed ({problem.name})", "install it where Forecache runs")
    if isinstance(problem, OSError):
        why = problem.strerror or "no answer in time"
        return Failure(f"it cannot be reached ({why})", "start it, or correct [celery] broker_url")
    if type(problem).__name__ in ("AccessRefused", "NotAllowed"):
        fix = "correct them in [celery] broker_url (special characters %-encoded)"
        return Failure("it refuses the user, the password or the virtual host", fix)
    return Failure(f"it cannot be used ({type(problem).__name__})", "correct [celery] broker_url")
