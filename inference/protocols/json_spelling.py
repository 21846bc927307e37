"""Spells plain values as JSON: large ones in pieces, so that other threads have their turn between two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: values that are spelt at once, which takes a few milliseconds
AT_ONCE = 16_384
#: characters of a text that take as long as a value
_CHARACTERS = 64
#: members of a list that are looked at together
_TOGETHER = 1024

_NESTED = (list, dict, str)


def is_heavy(value: Any, most: int = AT_ONCE) -> bool:
    """Return whether plain values hold more than `most` values; looks no further than that."""
    left, to_see = most, [value]
    while to_see:
        one = to_see.pop()
        if isinstance(one, str):
            left -= len(one) // _CHARACTERS
            continue
        left -= len(one)
        if left < 0:
            return True
        to_see += [each for each in (one.values() if isinstance(one, Mapping) else one) if type(each) in _NESTED]
    return left < 0


def spelt(value: Any, spell: Callable[[Any], bytes]) -> bytes:
    """Return JSON; `spell` spells what is not heavy, without blanks. Belongs in a thread."""
    if not isinstance(value, list | dict) or not is_heavy(value):
        return spell(value)
    if isinstance(value, dict):
        members = [b"%b:%b" % (spell(name), spelt(one, spell)) for name, one in value.items()]
        return b"{%b}" % b",".join(members)
    pieces: list[bytes] = []
    for start in range(0, len(value), _TOGETHER):
        some = value[start : start + _TOGETHER]
        if is_heavy(some):
            pieces += [spelt(one, spell) for one in some]
        else:
            pieces.append(spell(some)[1:-1])
    return b"[%b]" % b",".join(pieces)
