"""Wires runs to the broker: how chunks are sent, and how the reconciler is woken."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from kombu.exceptions import OperationalError

from inference.batch import Runs
from inference.errors import BrokerUnavailable
from tasks.celery_app import celery_app, services

#: a wake-up that nobody took is of no use later: the reconciler looks every few seconds anyway
_POKE_EXPIRES_S = 60


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
        poke,
        start_spark=start_spark,
    )


def send_chunks(run_id: str, numbers: Sequence[int]) -> None:
    """Put chunks on the batch queue.

    Raises:
        BrokerUnavailable: the broker did not take them all; the reconciler sends the rest later.
    """
    try:
        with celery_app.producer_or_acquire() as producer:
            for number in numbers:
                celery_app.send_task(
                    "forecache.score_chunk", args=(run_id, number), ignore_result=True, producer=producer
                )
    except OperationalError as error:
        raise BrokerUnavailable(f"the broker did not take a chunk of run {run_id}: {error}") from error


def start_spark(run_id: str) -> None:
    """Have a Spark driver started for a run, if none lives.

    Raises:
        BrokerUnavailable: the broker did not take the message; the reconciler asks again.
    """
    try:
        celery_app.send_task("forecache.drive_spark", args=(run_id,), ignore_result=True, expires=_POKE_EXPIRES_S)
    except OperationalError as error:
        raise BrokerUnavailable(f"the broker did not take a message of run {run_id}: {error}") from error


def poke() -> None:
    """Ask the maintenance worker to look at the runs now.

    Raises:
        BrokerUnavailable: the broker did not take the message.
    """
    try:
        celery_app.send_task("forecache.reconcile", ignore_result=True, expires=_POKE_EXPIRES_S)
    except OperationalError as error:
        raise BrokerUnavailable(f"the broker did not take a message: {error}") from error
