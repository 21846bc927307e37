"""Wrong passwords and keys: who waits, for how long, and what is remembered of it."""

from __future__ import annotations

import gc
import sys
from itertools import count
from typing import Any

import pytest

from app.defences import BURST, EVERY_S, WrongTries, subscriber_of


class Time:
    """A clock that stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


_numbers = count()


def guess(tries: WrongTries, client: str, number: int) -> None:
    for _ in range(number):
        key = f"guess {next(_numbers)}"
        if not tries.wait_s(client, key):
            tries.count(client, key)


def test_who_guesses_waits_and_what_it_is_told_to_wait_is_enough() -> None:
    time = Time()
    tries = WrongTries(time)
    guess(tries, "a", BURST - 1)
    assert tries.wait_s("a", "x") == 0
    guess(tries, "a", 1000)
    assert tries.wait_s("a", "x") == pytest.approx(EVERY_S)
    assert tries.wait_s("b", "x") == 0
    time.now += EVERY_S
    assert tries.wait_s("a", "x") == 0
    guess(tries, "a", 1)
    assert tries.wait_s("a", "x") > 0
    time.now += EVERY_S * BURST
    guess(tries, "a", BURST - 1)
    assert tries.wait_s("a", "x") == 0


def test_one_wrong_key_again_and_again_holds_up_itself_alone() -> None:
    tries = WrongTries(Time())
    for _ in range(1000):
        if not tries.wait_s("a", "old"):
            tries.count("a", "old")
    assert tries.wait_s("a", "old") > 0
    assert tries.wait_s("a", "right") == 0
    assert tries.wait_s("b", "old") > 0


def test_a_hundred_thousand_strangers_take_no_more_room_and_hold_up_nobody_for_long() -> None:
    time = Time()
    tries = WrongTries(time)
    before = size_of(tries)
    for number in range(100_000):
        tries.count(str(number), f"key {number}")
        time.now += 0.001
    assert size_of(tries) == before
    waits = [tries.wait_s(f"x{number}", f"y{number}") for number in range(1000)]
    assert sum(wait == 0 for wait in waits) > 900
    assert max(waits) < BURST * EVERY_S


def size_of(tries: WrongTries) -> int:
    seen: dict[int, Any] = {}
    waiting: list[Any] = [tries]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not callable(one):
            seen[id(one)] = one
            waiting += gc.get_referents(one)
    return sum(sys.getsizeof(one) for one in seen.values() if not isinstance(one, float | int | str))


@pytest.mark.parametrize(
    ("address", "subscriber"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
    ],
)
def test_a_subscriber_is_an_address_or_a_network_of_its_own(address: str, subscriber: str) -> None:
    assert subscriber_of(address) == subscriber
