"""Applies the messages of a stream to the feature table, in batches, by the rules of single updates.

Messages are acknowledged once they are stored, or noted as dead letters. If the process is killed in between, they come
again: event times let them change nothing. A message that kills the process again and again becomes a dead letter too.
While Redis or the model is away, nothing more is read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from inference.errors import BadInput, Defect, ForecacheError
from inference.failures import Failures
from inference.features import FeatureContract, FeatureUpdate, FeatureWriter
from inference.logs import get_logger
from inference.models.registry import ModelRegistry, VersionRecord
from inference.streams.deliveries import MOST_TOGETHER, Deliveries
from inference.streams.messages import Message, Stream, read_update
from inference.streams.progress import DeadLetter, StreamProgress

#: between two tries to read from a stream, or to store a batch, that failed
_PAUSE_S = 1.0
#: between two looks at the lag, and at what other listeners have in hand; shorter than others wait for a dead one
_LOOK_EVERY_S = 2.0
_CONTRACT_EVERY_S = 1.0
_KILLS = (
    f"the listener's process ended {MOST_TOGETHER + 1} times while it had this message in hand, the last time with no "
    "other: killed by its code (a segmentation fault), for its memory, or from outside"
)

log = get_logger(__name__)

#: told the entities with new features
Changed = Callable[[Sequence[str]], None]


class Listener:
    """One consumer of one stream. `run` does its work until it is stopped.

    `name`: of the stream in the settings. `open_stream`: opens the consumer; raises StreamUnavailable if it cannot.
    `writer`: returns the writer of the model's features by its active contract; raises ModelUnavailable without one.
    `changed`: called with the entities whose features have changed; None if nobody wants to know.
    """

    def __init__(
        self,
        name: str,
        open_stream: Callable[[], Stream],
        progress: StreamProgress,
        deliveries: Deliveries,
        writer: Callable[[], FeatureWriter],
        changed: Changed | None = None,
        *,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._name = name
        self._open_stream = open_stream
        self._progress = progress
        self._deliveries = deliveries
        self._writer = writer
        self._changed = changed
        self._pause_s = pause_s
        self._told_at = 0.0
        self._failures = Failures(__name__, "stream")

    def run(self, stopped: threading.Event) -> None:
        """Apply messages until stopped. Goes on through outages, and logs each once."""
        stream: Stream | None = None
        while not stopped.is_set():
            try:
                stream = stream or self._open_stream()
                self._step(stream, stopped)
            except Exception as error:  # noqa: BLE001 - a boundary: `tell` logs it
                self._failures.tell(error, "stream", stream=self._name)
                stopped.wait(self._pause_s)
            else:
                self._failures.over("stream", stream=self._name)
        if stream is not None:
            stream.close()

    def _step(self, stream: Stream, stopped: threading.Event) -> None:
        is_due = time.monotonic() - self._told_at > _LOOK_EVERY_S
        if is_due:
            # before the messages of a dead listener can come here
            self._deliveries.look()
        for messages in self._deliveries.parts(stream.read()):
            if not self._store(stream, messages, stopped):
                return
            self._acknowledge(stream, messages)
        if is_due:
            self._told_at = time.monotonic()
            self._progress.note_lag(stream.lag())

    def _store(self, stream: Stream, messages: Sequence[Message], stopped: threading.Event) -> bool:
        """Store messages; try again until they are stored. Return False if stopped before that."""
        while not stopped.is_set():
            try:
                self._try(messages)
            except ForecacheError as error:  # an outage: the next try may succeed
                self._failures.tell(error, "store", stream=self._name)
                stream.stay()
                stopped.wait(self._pause_s)
            else:
                self._failures.over("store", stream=self._name)
                return True
        return False

    def _acknowledge(self, stream: Stream, messages: Sequence[Message]) -> None:
        """Acknowledge messages. If that fails, they come again; those after them must not wait for that."""
        with self._failures.kept_here("acknowledge", stream=self._name):
            stream.acknowledge(messages)

    def _try(self, messages: Sequence[Message]) -> None:
        if self._deliveries.of(messages[0]) > MOST_TOGETHER:
            [message] = messages
            log.error("stream.killed_by_message", stream=self._name, id=message.id)
            self._progress.note(letters=[DeadLetter.of(message, Defect(_KILLS))])
            return
        with self._deliveries.attempt(messages):
            self._apply(messages)

    def _apply(self, messages: Sequence[Message]) -> None:
        """Store messages. One that makes the code fail becomes a dead letter, and keeps no other back."""
        try:
            self._write(messages)
        except ForecacheError:
            raise
        except Exception as error:  # noqa: BLE001 - a boundary: `tell` logs it
            sentence = self._failures.tell(error, "update", stream=self._name)
            if len(messages) == 1:
                why = f"a fault of Forecache's, see the listener's log: {sentence}"
                self._progress.note(letters=[DeadLetter.of(messages[0], Defect(why))])
                return
            for message in messages:
                self._apply([message])

    def _write(self, messages: Sequence[Message]) -> None:
        updates: list[FeatureUpdate] = []
        read: list[Message] = []
        dead: list[DeadLetter] = []
        for message in messages:
            try:
                updates.append(read_update(message))
            except BadInput as error:
                dead.append(DeadLetter.of(message, error))
            else:
                read.append(message)
        written = self._writer().write_each(updates)
        dead += [DeadLetter.of(read[position], error) for position, error in written.refused.items()]
        applied = [update.entity_id for update, done in zip(updates, written.applied.tolist(), strict=True) if done]
        if self._changed is not None:
            self._changed(applied)
        self._progress.note(applied=len(applied), older=len(messages) - len(applied) - len(dead), letters=dead)


class ActiveWriter:
    """Returns the writer of a model's features by its active contract, which it reads again every second.

    `make`: makes the writer of a contract.
    """

    def __init__(self, registry: ModelRegistry, model: str, make: Callable[[FeatureContract], FeatureWriter]) -> None:
        self._registry = registry
        self._model = model
        self._make = make
        self._made: tuple[VersionRecord, FeatureWriter] | None = None
        self._read_at = 0.0

    def __call__(self) -> FeatureWriter:
        """Return the writer.

        Raises:
            ModelUnavailable: the model has no active version yet.
            StoreUnavailable: Redis does not answer.
        """
        now = time.monotonic()
        if self._made is None or now - self._read_at > _CONTRACT_EVERY_S:
            record = self._registry.active(self._model)
            if self._made is None or self._made[0] != record:
                self._made = record, self._make(record.contract)
            self._read_at = now
        return self._made[1]
