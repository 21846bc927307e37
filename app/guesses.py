"""Slows down who shows wrong passwords or keys, without a list of who does."""

from __future__ import annotations

import ipaddress
import time
from array import array

from inference.clock import Clock

#: wrong ones that are looked at without a wait, and how often one is from then on
BURST = 20
EVERY_S = 1.0
#: of clients, and of keys; two that share a place share their wait too, which is short
_PLACES = 8192
#: a subscriber has all addresses of an IPv6 network of this size
_SUBSCRIBER_BITS = 64


class WrongTries:
    """Counts wrong keys by who showed them, and by themselves, in tables of fixed size.

    Many keys of one client are guesses, which count against it. One key again and again is a mistake: it counts
    against that key alone, so that others at the same address do not wait for it. Tries that have to wait do not count.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        # the instants at which what was counted is paid off, at one try each EVERY_S (the generic cell rate algorithm)
        self._of_clients = array("d", bytes(8 * _PLACES))
        self._of_keys = array("d", bytes(8 * _PLACES))
        self._last_keys = array("q", bytes(8 * _PLACES))

    def wait_s(self, client: str, key: str) -> float:
        """Return in how many seconds this key of this client is looked at; 0 for now."""
        latest = max(self._of_clients[hash(client) % _PLACES], self._of_keys[hash(key) % _PLACES])
        return max(0.0, latest - self._clock() - (BURST - 1) * EVERY_S)

    def count(self, client: str, key: str) -> None:
        """Count a key that was wrong."""
        now, place = self._clock(), hash(key) % _PLACES
        is_repeated = self._of_keys[place] > now and self._last_keys[place] == hash(key)
        self._last_keys[place] = hash(key)
        self._of_keys[place] = max(self._of_keys[place], now) + EVERY_S
        if not is_repeated:
            place = hash(client) % _PLACES
            self._of_clients[place] = max(self._of_clients[place], now) + EVERY_S


def subscriber_of(address: str) -> str:
    """Return what stands for whoever has an address: itself, or its network where one client has all of it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # of a Unix socket
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), _SUBSCRIBER_BITS), strict=False))
