"""What a listener makes of batches, over a stream in memory: nothing is lost by an outage or by a fault of ours."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from inference.errors import EntityForgotten, ModelUnavailable, StoreUnavailable
from inference.features import EachWritten, FeatureUpdate
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.streams.listener import Listener
from inference.streams.messages import Lag, Message, StreamUnavailable
from inference.streams.progress import StreamProgress


def message(number: int, entity_id: str) -> Message:
    return Message(f"{number}-0", b'{"entity_id": "%s", "features": {"x": 1}}' % entity_id.encode(), float(number))


class ListedStream:
    """Gives its batches one after the other, and ends the listener after the last one."""

    def __init__(self, stopped: threading.Event, *batches: Sequence[Message] | Exception) -> None:
        self.batches = list(batches)
        self.stopped = stopped
        self.acknowledged: list[str] = []
        self.stays = 0

    def read(self) -> Sequence[Message]:
        if not self.batches:
            self.stopped.set()
            return ()
        batch = self.batches.pop(0)
        if isinstance(batch, Exception):
            raise batch
        return batch

    def acknowledge(self, messages: Sequence[Message]) -> None:
        self.acknowledged += [one.id for one in messages]

    def stay(self) -> None:
        self.stays += 1

    def lag(self) -> Sequence[Lag]:
        return (Lag("a", 3, 1.5), Lag("b", 4, 0.5))

    def close(self) -> None:
        pass


class Writer:
    """Refuses what is told, and raises the errors that are listed, one at each call."""

    def __init__(self, *errors: Exception, breaks_at: str = "") -> None:
        self.errors = list(errors)
        self.breaks_at = breaks_at
        self.written: list[str] = []

    def write_each(self, updates: Sequence[FeatureUpdate]) -> EachWritten:
        if self.errors:
            raise self.errors.pop(0)
        ids = [update.entity_id for update in updates]
        if self.breaks_at in ids:
            raise ZeroDivisionError("a fault")
        self.written += ids
        gone = {at: EntityForgotten("forgotten on request") for at, one in enumerate(ids) if one == "gone"}
        return EachWritten(np.array([one != "gone" for one in ids]), gone)


@pytest.fixture
def progress(redis_client: Client) -> StreamProgress:
    return StreamProgress(redis_client, Keys("t"), "in")


def listen(progress: StreamProgress, writer: Writer, *batches: Any) -> tuple[ListedStream, list[str]]:
    stopped, changed = threading.Event(), list[str]()
    stream = ListedStream(stopped, *batches)
    Listener("in", lambda: stream, progress, lambda: writer, changed.extend, pause_s=0).run(stopped)  # type: ignore[arg-type,return-value]
    return stream, changed


def test_bad_messages_are_kept_with_their_reason_once_however_often_they_come(progress: StreamProgress) -> None:
    batch = [message(1, "a"), Message("2-0", b"{", 2.0), message(3, "gone"), Message("4-0", None, 4.0, fault="lost")]
    stream, changed = listen(progress, Writer(), batch, batch)
    assert changed == ["a", "a"]
    assert stream.acknowledged == ["1-0", "2-0", "3-0", "4-0"] * 2
    letters = {one.id: (one.reason.partition(":")[0], one.message) for one in progress.dead_letters()}
    assert letters == {
        "2-0": ("the message is no JSON", "{"),
        "3-0": ("forgotten on request", None),
        "4-0": ("lost", None),
    }
    assert progress.counts()["dead"] == 3


def test_a_batch_is_tried_again_until_it_is_stored(progress: StreamProgress) -> None:
    writer = Writer(StoreUnavailable("away"), ModelUnavailable("none"), StoreUnavailable("away"))
    stream, _ = listen(progress, writer, [message(1, "a")])
    assert (writer.written, stream.acknowledged, stream.stays) == (["a"], ["1-0"], 3)
    assert progress.counts() == {"applied": 1, "older": 0, "dead": 0}


def test_a_message_that_makes_the_writer_fail_keeps_no_other_back(progress: StreamProgress) -> None:
    writer = Writer(breaks_at="poison")
    stream, changed = listen(progress, writer, [message(1, "a"), message(2, "poison"), message(3, "b")])
    assert changed == ["a", "b"]
    assert stream.acknowledged == ["1-0", "2-0", "3-0"]
    [letter] = progress.dead_letters()
    assert (letter.id, letter.code) == ("2-0", "internal")


def test_a_stream_that_is_away_ends_nothing(progress: StreamProgress) -> None:
    _, changed = listen(progress, Writer(), StreamUnavailable("away"), OSError("odd"), [message(1, "a")])
    assert changed == ["a"]
    lag = progress.lag()
    assert lag is not None
    assert (lag.messages, lag.oldest_s) == (7, 1.5), "of all parts together"


def test_dead_letters_are_forgotten_with_their_entity(progress: StreamProgress) -> None:
    bad = b'{"entity_id": "%s", "features": 1}'
    listen(
        progress, Writer(), [Message(f"{n}-0", bad % one, 1.0) for n, one in enumerate((b"a-7", b"b", b"\\u0061-7"))]
    )
    assert progress.forget("a-7") == 2
    assert [letter.id for letter in progress.dead_letters()] == ["1-0"]
