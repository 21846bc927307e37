"""What a listener makes of batches, over a stream in memory: nothing is lost by an outage or by a fault of ours."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from inference.errors import EntityForgotten, ModelUnavailable, StoreUnavailable
from inference.features import EachWritten, FeatureUpdate
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.streams.deliveries import MOST_TOGETHER, Deliveries, Turns
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


class Killed(BaseException):
    """Ends the listener as kill -9 does: nothing after it runs."""


class Writer:
    """Refuses what is told, and raises the errors that are listed, one at each call."""

    def __init__(self, *errors: Exception, breaks_at: str = "", killed_by: Sequence[str] = ()) -> None:
        self.errors = list(errors)
        self.breaks_at, self.killed_by = breaks_at, set(killed_by)
        self.written: list[str] = []

    def write_each(self, updates: Sequence[FeatureUpdate]) -> EachWritten:
        if self.errors:
            raise self.errors.pop(0)
        ids = [update.entity_id for update in updates]
        if self.breaks_at in ids:
            raise ZeroDivisionError("a fault")
        if self.killed_by & set(ids):
            raise Killed
        self.written += ids
        gone = {at: EntityForgotten("forgotten on request") for at, one in enumerate(ids) if one == "gone"}
        return EachWritten(np.array([one != "gone" for one in ids]), gone)


@pytest.fixture
def progress(redis_client: Client) -> StreamProgress:
    return StreamProgress(redis_client, Keys("t"), "in")


def listen(progress: StreamProgress, writer: Writer, *batches: Any, name: str = "me") -> tuple[ListedStream, list[str]]:
    stream = ListedStream(threading.Event(), *batches)
    return stream, run(stream, progress, writer, name=name)


def run(stream: ListedStream, progress: StreamProgress, writer: Writer, *, name: str = "me") -> list[str]:
    """Run a listener until it is stopped or killed; return the entities that have changed."""
    changed = list[str]()
    deliveries = Deliveries(progress._client, Keys("t"), "in", name)
    listener = Listener("in", lambda: stream, progress, deliveries, lambda: writer, changed.extend, pause_s=0)  # type: ignore[arg-type,return-value]
    with contextlib.suppress(Killed):
        listener.run(stream.stopped)
    return changed


def listen_until_all_is_done(
    progress: StreamProgress, killed_by: Sequence[str], ids: Sequence[str], *, names: Sequence[str] = ("me",)
) -> tuple[list[str], int]:
    """Start listeners, one after the other, until none of them is killed; return what was stored, and the deaths."""
    left, stored = [message(number, one) for number, one in enumerate(ids)], list[str]()
    for deaths in range(50):
        stream, changed = listen(progress, Writer(killed_by=killed_by), left, name=names[deaths % len(names)])
        stored += changed
        left = [one for one in left if one.id not in stream.acknowledged]
        if not left:
            return stored, deaths
    raise AssertionError("killed again and again")


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


@pytest.mark.parametrize("names", [("me",), ("me", "other")])
def test_a_message_that_kills_the_process_is_tried_alone_once_and_named(
    progress: StreamProgress, names: Sequence[str]
) -> None:
    stored, deaths = listen_until_all_is_done(progress, ["killer"], ["a", "killer", "b"], names=names)
    assert (stored, deaths) == (["a", "b"], MOST_TOGETHER + 1)
    [letter] = progress.dead_letters()
    assert (letter.id, letter.code) == ("1-0", "internal")
    assert "the listener's process ended 4 times while it had this message in hand" in letter.reason
    assert progress.counts() == {"applied": 2, "older": 0, "dead": 1}


def test_of_many_messages_only_those_that_kill_are_left_out(progress: StreamProgress) -> None:
    ids = [f"e{n}" for n in range(200)]
    stored, deaths = listen_until_all_is_done(progress, ["e7", "e150"], ids)
    assert sorted(stored) == sorted(set(ids) - {"e7", "e150"})
    assert deaths == MOST_TOGETHER + 2, "the second one is known by the first one's deaths, and dies alone too"
    assert {letter.id for letter in progress.dead_letters()} == {"7-0", "150-0"}


def test_an_outage_is_no_death_however_often_the_listener_begins_again(progress: StreamProgress) -> None:
    stopped = threading.Event()

    class NoModel(Writer):
        def write_each(self, updates: Sequence[FeatureUpdate]) -> EachWritten:
            stopped.set()
            raise ModelUnavailable("none")

    for _ in range(10):
        stopped.clear()
        run(ListedStream(stopped, [message(1, "a")]), progress, NoModel())
    _, changed = listen(progress, Writer(), [message(1, "a")])
    assert changed == ["a"]
    assert not progress.dead_letters()


def test_a_listener_works_on_while_messages_cannot_be_acknowledged(progress: StreamProgress) -> None:
    class Refusing(ListedStream):
        def acknowledge(self, messages: Sequence[Message]) -> None:
            raise StreamUnavailable("away")

    assert run(Refusing(threading.Event(), [message(1, "a")], [message(2, "b")]), progress, Writer()) == ["a", "b"]


def test_a_message_that_is_tried_alone_is_alone_in_its_process(redis_client: Client) -> None:
    turns, suspect = Turns(), message(1, "a")
    for _ in range(MOST_TOGETHER):
        deliveries = Deliveries(redis_client, Keys("t"), "in", "me", turns)
        deliveries.look()
        with contextlib.suppress(Killed), deliveries.attempt([suspect]):
            raise Killed
    one, other = (Deliveries(redis_client, Keys("t"), "in", name, turns) for name in ("me", "other"))
    one.look()
    order = list[str]()

    def work() -> None:
        with other.attempt([message(2, "b")]):
            order.append("other")

    thread = threading.Thread(target=work)
    with one.attempt([suspect]):
        thread.start()
        thread.join(0.2)
        order.append("alone")
    thread.join(10)
    assert order == ["alone", "other"]


def test_a_note_that_is_not_ours_keeps_nothing_back(progress: StreamProgress, redis_client: Client) -> None:
    redis_client.hset(Keys("t").stream_in_hand("in"), mapping={"me": "{", "other": "[]"})
    _, changed = listen(progress, Writer(), [message(1, "a")])
    assert changed == ["a"]


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
