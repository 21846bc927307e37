"""Slows down who shows wrong passwords or keys, without a list of who does."""

from __future__ import annotations

import ipaddress
import time
from array import array
from collections.abc import Hashable

from inference.clock import Clock

#: wrong ones that are looked at without a wait, and how often one is from then on
BURST = 20
EVERY_S = 1.0
#: two that share one of these share their wait too, which is short
_PLACES = 8192
#: a subscriber has all addresses of an IPv6 network of this size
_SUBSCRIBER_BITS = 64


class WrongTries:
    """Counts wrong tries in a table of fixed size; a try that is made to wait does not lengthen the wait.

    Each place holds the instant at which its tries so far are paid off, at one each `EVERY_S` (this is the generic cell
    rate algorithm).
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._paid_off_at = array("d", bytes(8 * _PLACES))
        self._clock = clock

    def wait_s(self, *who: Hashable) -> float:
        """Return in how many seconds the next try of all these is looked at; 0 for now."""
        latest = max(self._paid_off_at[hash(one) % _PLACES] for one in who)
        return max(0.0, latest - self._clock() - (BURST - 1) * EVERY_S)

    def count(self, *who: Hashable) -> None:
        """Count a wrong try against each of these."""
        now = self._clock()
        for one in who:
            place = hash(one) % _PLACES
            self._paid_off_at[place] = max(self._paid_off_at[place], now) + EVERY_S


def subscriber_of(address: str) -> str:
    """Return what stands for whoever has an address: itself, or its network where one client has all of it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # of a Unix socket
        return address
    if ip.version == 4:
        return address
    return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip), _SUBSCRIBER_BITS), strict=False))
