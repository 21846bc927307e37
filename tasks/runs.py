"""Wires runs to the broker: how chunks are sent, and how the reconciler is woken."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from celery import Celery

from inference.batch import Runs
from inference.failures import Failures
from tasks.celery_app import broker_errors, services
from tasks.dispatch.sender import CONFIRMED, make_sending_app

failures = Failures(__name__, "broker")

#: a wake-up that nobody took is of no use later: the reconciler looks every few seconds anyway
_POKE_EXPIRES_S = 60
_OPTIONS = {"ignore_result": True, **CONFIRMED}


@cache
def runs() -> Runs:
    """Return this process's runs, built on first use."""
    own = services()
    return Runs(
        own.settings,
        own.cache,
        own.keys,
        own.registry,
        lambda: own.host,
        own.table,
        send_chunks,
        hurry,
        start_spark=start_spark,
    )


@cache
def sending_app() -> Celery:
    """Return this process's application for sending, built on first use."""
    return make_sending_app(services().settings)


def send_chunks(run_id: str, numbers: Sequence[int]) -> None:
    """Put chunks on the batch queue.

    Raises:
        BrokerUnavailable: the broker did not take them all; the reconciler sends the rest later.
    """
    with broker_errors(f"a chunk of run {run_id}"), sending_app().producer_or_acquire() as producer:
        for number in numbers:
            sending_app().send_task("forecache.score_chunk", args=(run_id, number), producer=producer, **_OPTIONS)


def start_spark(run_id: str) -> None:
    """Have a Spark driver started for a run, if none lives.

    Raises:
        BrokerUnavailable: the broker did not take the message; the reconciler asks again.
    """
    with broker_errors(f"a message of run {run_id}"):
        sending_app().send_task("forecache.drive_spark", args=(run_id,), expires=_POKE_EXPIRES_S, **_OPTIONS)


def poke() -> None:
    """Ask the maintenance worker to look at the runs now.

    Raises:
        BrokerUnavailable: the broker did not take the message.
    """
    with broker_errors("a message"):
        sending_app().send_task("forecache.reconcile", expires=_POKE_EXPIRES_S, **_OPTIONS)


def hurry() -> None:
    """Ask the maintenance worker to look at the runs now, if the broker takes it; else it looks within seconds."""
    with failures.kept_here("hurry"):
        poke()
