"""Runs `forecache listen`: a thread for each stream, and a heartbeat, until a signal to stop."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from inference.deployment import Deployment
from inference.failures import Failures
from inference.logs import configure_logging, get_logger
from inference.monitoring.presence import BEAT_EVERY_S, LISTENERS, WorkerBeat
from inference.redis.clients import WORKER
from inference.settings import Settings
from inference.settings.streams import chosen_streams
from inference.stored_data import installed_release
from inference.streams.deliveries import Deliveries, Turns
from inference.streams.listener import ActiveWriter, Listener
from inference.streams.opening import open_stream, require_clients
from inference.streams.recomputing import Recomputing
from tasks.broker import CeleryBroker

log = get_logger(__name__)

#: for the batches in hand; one that is not stored by then comes again
_STOP_S = 8.0
#: objects; a batch has 30 000
_COLLECT_AFTER = 200_000

Work = Callable[[threading.Event], None]


def listen(settings: Settings, names: Sequence[str] = (), *, name: str = "listen") -> None:
    """Apply the messages of streams until SIGTERM or SIGINT.

    `names`: of the streams; empty for all. `name`: of this listener; each of a host has its own, and keeps it when it
    begins again, since it then finds the messages that it had in hand.

    Raises:
        SettingsError: there is no stream, one is unknown, or its client is not installed.
    """
    chosen = chosen_streams(settings.streams, names)
    require_clients(settings)
    configure_logging("listen", form=settings.logs.format, level=settings.logs.level)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with Deployment(settings, WORKER, CeleryBroker) as deployment:
        turns = Turns()
        works = [work for stream in chosen for work in _works(deployment, stream, name, turns)]
        threads = [threading.Thread(target=work, args=(stopped,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        # what is in memory by now stays, and the objects of a batch are freed without the collector, which would look
        # through them a dozen times in vain
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        log.info("listen.ready", name=name, streams=",".join(chosen))
        _beat(deployment, name, stopped)
        ends_at = time.monotonic() + _STOP_S
        for thread in threads:
            thread.join(max(0.0, ends_at - time.monotonic()))


def _works(deployment: Deployment, stream: str, name: str, turns: Turns) -> list[Work]:
    """Return what the threads of a stream do."""
    settings, works = deployment.settings, list[Work]()
    model = settings.stream_model(stream)
    recomputing = None
    if settings.streams[stream].recompute == "asked":
        recomputing = Recomputing(
            deployment.cache,
            deployment.keys,
            settings.sharing_features(model),
            deployment.broker.compute_later,
            deployment.cache.now,
        )
        works.append(recomputing.run)
    consumer = f"{socket.gethostname()}:{name}"
    listener = Listener(
        stream,
        partial(open_stream, settings, stream, consumer=consumer),
        deployment.stream_progress(stream),
        Deliveries(deployment.cache, deployment.keys, stream, consumer, turns),
        ActiveWriter(deployment.registry, model, partial(deployment.feature_writer, model)),
        None if recomputing is None else recomputing.add,
    )
    return [*works, listener.run]


def _beat(deployment: Deployment, name: str, stopped: threading.Event) -> None:
    """Tell that this listener is alive, until stopped."""
    failures = Failures(__name__, "heartbeat")
    beat = WorkerBeat(
        name=f"{name}@{socket.gethostname()}",
        process="listen",
        queues=(LISTENERS,),
        host=socket.gethostname(),
        pid=os.getpid(),
        release=installed_release(),
        started_at=time.time(),
        ready=True,
        versions={},
    )
    while not stopped.is_set():
        with failures.kept_here():
            deployment.presence.beat(beat)
        stopped.wait(BEAT_EVERY_S)
    with failures.kept_here():
        deployment.presence.leave(beat)
